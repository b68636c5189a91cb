"""`aloe index`: a library of one's own documents on the command line. Everything heavy is imported inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aloe.core.errors import RecipeError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Keep a library of your own documents that can be searched and cited.")

Root = Annotated[Path, typer.Argument(metavar="LIBRARY", help="Folder of the library.")]
Meta = Annotated[list[str] | None, typer.Option("--meta", help="NAME=VALUE; may be given several times.")]
SHOWN = 300  # characters of a passage


@app.command()
def add(
    folders: Annotated[list[Path], typer.Argument(help="Folders with txt, md, html, pdf, jsonl or csv documents.")],
    to: Annotated[Path, typer.Option("--to", help="Folder of the library; made where there is none.")],
    embedder: Annotated[str | None, typer.Option(help="minilm, hashing, none, st:PATH, http://HOST/v1#MODEL; fixed once made.")] = None,
    passage_tokens: Annotated[int | None, typer.Option(min=20, help="Longest passage; fixed once made.")] = None,
    overlap_tokens: Annotated[int | None, typer.Option(min=0, help="Repeated from the passage before; fixed once made.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the documents that name none; default: as before.")] = None, meta: Meta = None,
    anew: Annotated[bool, typer.Option("--anew", help="Read and encode all of it again: the encoder is another one now.")] = False,
) -> None:  # fmt: skip
    """Bring a library in line with folders of documents: only what changed is encoded.  Example: aloe index add guidelines --to library"""
    from aloe.retrieve import library

    asked = {"embedder": embedder, "passage_tokens": passage_tokens, "overlap_tokens": overlap_tokens}
    given = {name: value for name, value in asked.items() if value is not None}
    old = library.read_library(to).settings if (to / library.STATE).is_file() else library.Settings()
    _print(library.add(to, folders, old.model_copy(update=given), licence, None if meta is None else _pairs(meta), anew=anew))


@app.command()
def search(
    root: Root, query: Annotated[str, typer.Argument(help="Words, or a question.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Passages to show.")] = 5,
    mode: Annotated[str | None, typer.Option(help="text, vector or hybrid; default: hybrid where the library has vectors.")] = None,
    rerank: Annotated[str | None, typer.Option(help="A cross-encoder: PATH or ORG/NAME@REVISION.")] = None,
    source: Annotated[str, typer.Option(help="Only this source; a final * stands for any ending.")] = "",
    title: Annotated[str, typer.Option(help="Only this title; a final * stands for any ending.")] = "",
    licence: Annotated[str, typer.Option(help="Only this licence.")] = "", meta: Meta = None,
) -> None:  # fmt: skip
    """Find passages.  Example: aloe index search library "dose of colchicine in gout" --source "guidelines/*" """
    from typing import cast

    from aloe.retrieve.index import Mode, Where, open_index, read_info
    from aloe.retrieve.library import current
    from aloe.retrieve.rerank import open_reranker

    path = current(root)
    mode = mode or ("hybrid" if read_info(path).dim else "text")
    index = open_index(path, cast(Mode, mode), reranker=open_reranker(rerank))
    (hits,) = index.search([query], k, Where(source=source, title=title, licence=licence, metadata=_pairs(meta)))
    for rank, (passage, score) in enumerate(hits, 1):
        place = " > ".join(part for part in (passage.title, passage.section) if part)
        print(f"{rank:>3}. [{passage.id}] {place}  ({score:.4f})")
        where = f", page {passage.page}" if passage.page else ""
        print(f"     {passage.source}{where}, characters {passage.start} to {passage.end}" + (f", {passage.licence}" if passage.licence else ""))
        text = " ".join(passage.text.split())
        print(f"     {text[:SHOWN]}{' ...' if len(text) > SHOWN else ''}")
    if not hits:
        print("nothing found")


@app.command()
def stats(root: Root) -> None:
    """Say what a library holds.  Example: aloe index stats library"""
    from aloe.retrieve import library

    found = library.stats(root)
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.num_files.items())
    print(f"files      {sum(found.num_files.values())} ({kinds})")
    print(f"passages   {found.num_passages} ({found.num_words} words)")
    settings = found.library.settings
    print(f"cut at     {settings.passage_tokens} tokens, {settings.overlap_tokens} repeated")
    print(f"encoder    {found.encoder}, {found.dim} numbers")
    if found.dim:
        share = "all" if found.recall is None else f"{found.recall:.1%}"
        print(f"meaning    finds {share} of the 10 nearest passages")
    for name, folder in found.library.folders.items():
        told = [folder.licence, *(f"{key}={value}" for key, value in folder.metadata.items())]
        print(f"folder     {name}: {folder.path}" + "".join(f", {word}" for word in told if word))
    print(f"version    {int(found.library.current)}, {found.num_bytes / 1e6:.1f} MB on disk")


@app.command()
def remove(root: Root, source: Annotated[str, typer.Argument(help="A folder, a file (FOLDER/PATH) or a source.")]) -> None:
    """Take documents out of a library.  Example: aloe index remove library guidelines/gout.pdf"""
    from aloe.retrieve import library

    _print(library.remove(root, source))


def _print(change: tuple[int, ...]) -> None:
    new, changed, gone, unchanged, passages, encoded = change
    print(f"files: {new} new, {changed} changed, {gone} gone, {unchanged} unchanged")
    print(f"passages: {passages}, of which {encoded} were encoded now")


def _pairs(words: list[str] | None) -> dict[str, str]:
    pairs = [word.partition("=") for word in words or []]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise RecipeError(f"--meta takes NAME=VALUE, not {name!r}", where="command line", do="for example --meta year=2024")
    return {name: value for name, _, value in pairs}
