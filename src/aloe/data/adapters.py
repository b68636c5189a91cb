"""Published data sets in the layout of their publisher, read as declared in catalogue.yaml and sets.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from aloe.core.config import Config, load_document, validate
from aloe.core.errors import SourceError
from aloe.core.public_data import data_file
from aloe.core.rows import Row
from aloe.data.mapping import Map, Unfit, rows_of
from aloe.data.records import ENDINGS, Bad, Layout, Record, read

SETS = Path(__file__).with_name("sets.yaml")
HUB_FOLDER = "hub"
"""Below ALOE_DATA: hub/ORG/NAME holds a hub data set as its repository does."""
ALL = ("**/*",)
"""Files of a set whose layout is not declared: all but those of test and validation parts."""
OTHER_PARTS = re.compile(r"(^|[/_-])(test|validation|valid|val|dev|eval)([-_./]|$)")
PACKED = (".gz", ".zip", ".tar", ".tgz")


class Adapter(Config):
    """Where a set's files lie and how their records become rows."""

    files: tuple[str, ...] = ALL
    """Patterns below the set's folder; of a set that is on no hub below ALOE_DATA."""
    members: str = "*"
    """Which files of an archive."""
    format: Literal["json", "jsonl", "csv", "xml", "bioc", "pubtator"] | None = None
    """None: as the files' endings say."""
    root: str = ""
    tag: str = ""
    columns: Literal["seen", "documented", "assumed"] = "assumed"
    """Read from the files by us; published by their makers; neither, so that `aloe data preview` should be looked at first."""
    map: Map


class LocalSet(Config):
    """A set that is read from ALOE_DATA, beside those of the catalogue."""

    licence: str
    adapter: Adapter
    note: str = ""


class _Sets(Config):
    sets: dict[str, LocalSet] = Field(min_length=1)


@cache
def local_sets() -> dict[str, LocalSet]:
    """The file sets.yaml."""
    return validate(_Sets, load_document(SETS)).sets


def local_files(adapter: Adapter) -> list[Path]:
    """The files of a set that lies below ALOE_DATA; SourceError where one is missing."""
    return [file for pattern in adapter.files for file in _matching(pattern)]


def _matching(pattern: str) -> list[Path]:
    if "*" not in pattern:
        return [data_file(pattern)]
    folder, _, rest = pattern.partition("/")
    root = data_file(folder)
    found = sorted(p for p in root.glob(rest) if p.is_file())
    if not found:
        raise SourceError("no file of the set is there", where=str(root / rest), do="put the published files there")
    return found


def hub_files(hub: str, revision: str, adapter: Adapter) -> list[Path]:
    """The files of a hub set on this machine: below ALOE_DATA/hub, otherwise in the hub's own cache at that revision."""
    try:
        folder = data_file(f"{HUB_FOLDER}/{hub}")
    except SourceError as missing:
        cached = None if revision == "unpinned" else _cached(hub, revision)
        if cached is None:
            do = f"put its files into ALOE_DATA/{HUB_FOLDER}/{hub}, or give its commit as `revision` so that a run fetches it"
            raise SourceError(f"the data set {hub} is not on this machine", where=missing.where, do=do) from None
        folder = cached
    found = {p for pattern in adapter.files for p in folder.glob(pattern) if _is_data(p, folder)}
    if adapter.files == ALL:
        found = {p for p in found if not OTHER_PARTS.search(p.relative_to(folder).as_posix().lower())}
    if not found:
        raise SourceError(f"no file of the data set {hub} is there ({', '.join(adapter.files)})", where=str(folder), do="fetch it again")
    return sorted(found)


def _is_data(path: Path, folder: Path) -> bool:
    inside = path.relative_to(folder).parts
    name = path.name.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    known = name.endswith(ENDINGS) or name != path.name.lower()
    return path.is_file() and known and not any(part.startswith(".") for part in inside) and name not in ("dataset_infos.json", "dataset_dict.json")


def _cached(hub: str, revision: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub, repo_type="dataset", revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


def fetch_hub(hub: str, revision: str, adapter: Adapter) -> None:
    """Bring the set's files to the hub's cache, unless they lie below ALOE_DATA; only a commit is fetched, never a branch."""
    try:
        hub_files(hub, revision, adapter)
        return
    except SourceError:
        if revision == "unpinned":  # `preflight` says what to do
            return
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        snapshot_download(hub, repo_type="dataset", revision=revision, allow_patterns=list(adapter.files))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        do = "check network, name, revision and HF_TOKEN"
        raise SourceError(f"the data set cannot be fetched: {reason}", where=f"{hub}@{revision}", do=do) from None


def adapted(source: str, licence: str, adapter: Adapter, files: Sequence[Path]) -> Iterator[Row | Bad]:
    """The rows of a set's files; what cannot become one comes as Bad."""
    layout = Layout(adapter.format, adapter.members, adapter.root, adapter.tag)
    return rows_from((item for file in files for item in read(file, layout)), source, licence, adapter.map)


def rows_from(items: Iterable[Record | Bad], source: str, licence: str, how: Map) -> Iterator[Row | Bad]:
    """Records to rows; those that have no id of their own are numbered."""
    for number, item in enumerate(items):
        if isinstance(item, Bad):
            yield item
            continue
        try:
            yield from rows_of(item.value, how, source, licence, number)
        except Unfit as error:
            yield unfit(item, str(error))


def unfit(item: Record, why: str) -> Bad:
    """A record that could be read and cannot become a row."""
    return Bad(item.where, why, str(item.value)[:2000])
