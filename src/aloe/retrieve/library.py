"""A user's own library: folders of documents, kept searchable and brought up to date in place.

    library.json     settings, folders, and which version is current: replaced whole, as the last step of every change
    000007/          that version: an index (see `index`) and files.jsonl, which says what each file held when it was read

A change writes the next version beside the current one and then points to it, so that a killed change leaves the old one as
it was, and a library after many changes equals one made at once. Files that did not change are not read again; passages
whose words did not change are not encoded again. The version before the current one is kept for readers that have it open.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from aloe.artifact import fingerprint, fsync_tree, locked, sha256_file, write_text
from aloe.core.config import Config, nearest
from aloe.core.errors import ArtifactError, RecipeError, SourceError
from aloe.core.qa import Passage
from aloe.core.rows import read_jsonl, write_jsonl
from aloe.retrieve.corpus import corpus_files, file_passages
from aloe.retrieve.embed import Embedder, open_embedder
from aloe.retrieve.index import PASSAGES, Stored, read_info, token_window, write_index
from aloe.retrieve.vectors import ANEW, open_nearest
from aloe.retrieve.windows import OVERLAP_TOKENS, PASSAGE_TOKENS

STATE, FILES = "library.json", "files.jsonl"


class Settings(Config):
    """What a library is made with; fixed when it is made."""

    embedder: str = "minilm"
    passage_tokens: int = PASSAGE_TOKENS
    overlap_tokens: int = OVERLAP_TOKENS


class Folder(Config):
    """A folder of documents, and what holds for all of them."""

    path: str
    licence: str = ""
    metadata: dict[str, str] = {}


class Library(Config):
    """What library.json says."""

    version: Literal[1] = 1
    settings: Settings
    current: str = ""
    """Folder of the current version; empty before the first."""
    folders: dict[str, Folder] = {}
    """By the folder's name, with which the ids of its passages begin."""


class File(Config):
    """A document file as it was when it was read."""

    key: str
    """Hash of its bytes and of the licence and metadata given to its folder."""
    passages: tuple[str, ...]


class Change(NamedTuple):
    """What a change did, in files; and how many passages there are now and had to be encoded."""

    new: int = 0
    changed: int = 0
    gone: int = 0
    unchanged: int = 0
    passages: int = 0
    encoded: int = 0


def current(root: Path) -> Path:
    """The folder of the library's index, for `open_index`. ArtifactError where there is no library."""
    return root / read_library(root).current


def read_library(root: Path) -> Library:
    """library.json. ArtifactError where there is none, or it is damaged."""
    file = root / STATE
    try:
        return Library.model_validate_json(file.read_bytes())
    except OSError:
        raise ArtifactError("there is no library", where=str(file), do="make one with: aloe index add DIR --to LIBRARY") from None
    except ValidationError as error:
        raise ArtifactError(f"the library is damaged: {error.errors()[0]['msg']}", where=str(file), do="make it again from its folders") from None


def read_files(root: Path, library: Library) -> dict[str, File]:
    """The files of the current version by name (`<folder>/<path in it>`)."""
    if not library.current:
        return {}
    return {record.pop("file"): File.model_validate_json(json.dumps(record)) for record in read_jsonl(root / library.current / FILES)}


def add(
    root: Path,
    folders: Sequence[Path],
    settings: Settings | None = None,
    licence: str | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    anew: bool = False,
) -> Change:
    """Bring the library in line with the folders: files that are new or changed are read, files that are gone leave it.

    `settings` make a new library (None = the defaults) and must be those of an old one; `licence` and `metadata` hold for all
    documents of the folders (None = as before). `anew` reads and encodes all folders of the library again. Raises SourceError
    where a document cannot be read, RecipeError for other settings, ArtifactError where another encoder is installed than made
    the library, and not `anew`.
    """
    paths = [path.expanduser().resolve() for path in folders]
    for path in paths:
        if root.resolve().is_relative_to(path):
            raise SourceError("a library cannot lie in a folder of its documents", where=str(root), do="keep it elsewhere")
    with locked(root):
        library = _settled(root, settings)
        for path in paths:
            library = _with_folder(library, path, licence, metadata)
        return _update(root, library, library.folders if anew else {path.name: library.folders[path.name] for path in paths}, anew)


def remove(root: Path, source: str) -> Change:
    """Take a folder, a file (`<folder>/<path in it>`), or everything of one source out of the library. SourceError where there is no such thing."""
    with locked(root):
        library = read_library(root)
        files = read_files(root, library)
        old = _passages(root, library, files)
        out = {name for name in files if name == source or name.startswith(source.rstrip("/") + "/")}
        leaving = {name for name, passage in old.items() if passage.source == source} | {name for file in out for name in files[file].passages}
        if not leaving and not out:
            known = [*library.folders, *files, *sorted({passage.source for passage in old.values()})]
            raise SourceError(f"the library holds nothing called {source!r}", where=str(root), do=nearest(source, known)[:300])
        kept = {name: File(key=file.key, passages=tuple(p for p in file.passages if p not in leaving)) for name, file in files.items()}
        kept = {name: file for name, file in kept.items() if name not in out and (file.passages or not files[name].passages)}
        if leaving == old.keys():
            raise SourceError("nothing would be left of the library", where=str(root), do="delete its folder instead")
        folders = {name: folder for name, folder in library.folders.items() if any(file.startswith(f"{name}/") for file in kept)}
        staying = (old[name] for file in kept.values() for name in file.passages)
        _publish(root, library.model_copy(update={"folders": folders}), kept, staying, open_embedder(library.settings.embedder))
        changed = sum(kept[name] != files[name] for name in kept)
        gone = len(files) - len(kept)
        return Change(changed=changed, gone=gone, unchanged=len(kept) - changed, passages=len(old) - len(leaving))


def _settled(root: Path, settings: Settings | None) -> Library:
    if not (root / STATE).is_file():
        return Library(settings=settings or Settings())
    library = read_library(root)
    if settings not in (None, library.settings):
        raise RecipeError(
            f"the library was made with {library.settings}, not {settings}", where=str(root), do="leave the options out, or make another one"
        )
    return library


def _with_folder(library: Library, path: Path, licence: str | None, metadata: Mapping[str, str] | None) -> Library:
    known = library.folders.get(path.name) or Folder(path=str(path))
    if known.path != str(path):
        what = f"the library has a folder {path.name!r} already, from {known.path}"
        raise SourceError(what, where=str(path), do=f"rename the folder, or first: aloe index remove LIBRARY {path.name}")
    given = {"licence": licence, "metadata": None if metadata is None else dict(metadata)}
    folder = known.model_copy(update={name: value for name, value in given.items() if value is not None})
    return library.model_copy(update={"folders": {**library.folders, path.name: folder}})


def _update(root: Path, library: Library, folders: Mapping[str, Folder], anew: bool) -> Change:
    """Read what changed in `folders`, or all of it, publish the next version if anything did."""
    before = read_files(root, library)
    old = {} if anew else _passages(root, library, before)
    encoder = open_embedder(library.settings.embedder)
    window = token_window(encoder, library.settings.passage_tokens, library.settings.overlap_tokens)
    files = {name: file for name, file in before.items() if name.partition("/")[0] not in folders}
    fresh: dict[str, Passage] = {}
    for name, folder in folders.items():
        for path in corpus_files(f"folder:{folder.path}"):
            file = f"{name}/{path.relative_to(folder.path).as_posix()}"
            key = fingerprint({"sha256": sha256_file(path), "licence": folder.licence, "metadata": folder.metadata})
            if file in before and before[file].key == key and not anew:
                files[file] = before[file]
            else:
                found = list(file_passages(Path(folder.path), path, window, folder.licence, folder.metadata))
                fresh |= {passage.id: passage for passage in found}
                files[file] = File(key=key, passages=tuple(passage.id for passage in found))
    new, gone = len(files.keys() - before.keys()), len(before.keys() - files.keys())
    changed = sum(name in before and before[name].key != file.key for name, file in files.items())
    total = sum(len(file.passages) for file in files.values())
    change = Change(new=new, changed=changed, gone=gone, unchanged=len(files) - new - changed, passages=total)
    if not (new or changed or gone or anew) and (not library.current or _reusable(root, library)):
        return change
    every = (fresh.get(name) or old[name] for file in files.values() for name in file.passages)
    return change._replace(encoded=_publish(root, library, files, every, encoder, anew))


def _reusable(root: Path, library: Library) -> Path | None:
    """The index whose vectors can be used; one of an older aloe, or a damaged one, is made anew from its passages."""
    if not library.current:
        return None
    index = root / library.current
    try:
        info = read_info(index)
        if info.dim:
            open_nearest(index, signs=info.recall is not None)
    except ArtifactError:
        return None
    return index


def _passages(root: Path, library: Library, files: Mapping[str, File]) -> dict[str, Passage]:
    """The passages of the files. ArtifactError where one is not in the index."""
    if not library.current:
        return {}
    stored = Stored(root / library.current / PASSAGES)
    passages = (stored[number] for number in range(len(stored)))
    found = {passage.id: passage for passage in passages}
    if lost := sum(name not in found for file in files.values() for name in file.passages):
        raise ArtifactError(f"the library is damaged: {lost} of its passages are gone", where=str(root / library.current / PASSAGES), do=ANEW)
    return found


def _publish(root: Path, library: Library, files: Mapping[str, File], passages: Iterable[Passage], encoder: Embedder, anew: bool = False) -> int:
    """Write the next version, point to it, and clear away what is older than the one before; returns the number of passages encoded."""
    for left in root.glob("*.tmp"):
        shutil.rmtree(left)  # of a change that was killed
    name = f"{int(library.current or 0) + 1:06}"
    temporary = root / f"{name}.tmp"
    temporary.mkdir()
    reuse = None if anew else _reusable(root, library)
    _, encoded = write_index(passages, temporary, library.settings.embedder, encoder, reuse)
    write_jsonl(temporary / FILES, [{"file": file, **files[file].model_dump(mode="json")} for file in sorted(files)])
    fsync_tree(temporary)
    final = root / name
    if final.exists():
        shutil.rmtree(final)  # written whole, but the change was killed before library.json pointed to it
    temporary.rename(final)
    write_text(root / STATE, library.model_copy(update={"current": name}).model_dump_json(indent=1) + "\n")
    _fsync_folder(root)
    for version in root.iterdir():
        if version.name.isdigit() and version.name not in (name, library.current):
            shutil.rmtree(version)
    return encoded


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


class Stats(NamedTuple):
    """What a library holds."""

    library: Library
    encoder: str
    dim: int
    num_passages: int
    num_words: int
    num_files: dict[str, int]
    """By kind of file."""
    num_bytes: int
    """On disk, with the version before."""
    recall: float | None
    """See `IndexInfo`."""


def stats(root: Path) -> Stats:
    """Counts of the current version."""
    library = read_library(root)
    info = read_info(root / library.current)
    kinds = [Path(file).suffix.lower() for file in read_files(root, library)]
    num_files = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    num_bytes = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    return Stats(library, info.encoder, info.dim, info.num_passages, info.num_words, num_files, num_bytes, info.recall)
