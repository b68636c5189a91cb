"""Files as streams of bytes, also packed ones and those inside archives, without a file ever being written.

An archive is refused where a path would leave it, where it holds a link, or where it unpacks to more than 200 times its size.
"""

from __future__ import annotations

import fnmatch
import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from aloe.core.errors import SourceError

MAX_RATIO = 200  # text packs 3 to 50 times; deflate's limit, which bombs come near, is 1,032
FREE_BYTES = 16 * 2**20  # a small file of zeros is no danger
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")

BROKEN = (OSError, ValueError, EOFError, RuntimeError, KeyError, IndexError, zlib.error, zipfile.BadZipFile, tarfile.TarError)


class Part(NamedTuple):
    """One file of data: where it is for people, its name's ending, its bytes."""

    where: str
    ending: str
    stream: IO[bytes]


@contextmanager
def reading(where: str) -> Iterator[None]:
    """What the libraries of formats raise on broken files, as the user's error."""
    try:
        yield
    except BROKEN as error:  # RecursionError and NotImplementedError are RuntimeErrors, UnicodeError a ValueError
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SourceError(f"the file cannot be read: {reason}", where=where, do="fetch the file again, or mend it") from None


def parts(path: Path, members: str = "*") -> Iterator[Part]:
    """The file itself, or the files of an archive whose path below it fits the pattern, in the archive's order."""
    name = path.name.lower()
    with reading(str(path)), path.open("rb") as raw:
        packed = path.stat().st_size
        if name.endswith(".zip"):
            yield from _zip_parts(raw, path, packed, members)
        elif name.endswith(ARCHIVES):
            yield from _tar_parts(raw, path, packed, members)
        elif name.endswith(".gz"):
            yield Part(str(path), _ending(name.removesuffix(".gz")), unpacked(gzip.GzipFile(fileobj=raw), packed, str(path)))
        else:
            yield Part(str(path), _ending(name), raw)


def _zip_parts(raw: IO[bytes], path: Path, packed: int, members: str) -> Iterator[Part]:
    with zipfile.ZipFile(raw) as archive:
        for info in archive.infolist():
            _stays_inside(info.filename, path)
            if info.external_attr >> 28 == 0o12:
                raise _refused(f"the archive holds the link {info.filename!r}", path)
            if not info.is_dir() and fnmatch.fnmatch(info.filename, members):
                with archive.open(info) as stream:
                    where = f"{path}/{info.filename}"
                    yield Part(where, _ending(info.filename.lower()), unpacked(stream, min(packed, info.compress_size), where))


def _tar_parts(raw: IO[bytes], path: Path, packed: int, members: str) -> Iterator[Part]:
    whole = unpacked(raw if path.suffix == ".tar" else gzip.GzipFile(fileobj=raw), packed, str(path))
    with tarfile.open(fileobj=whole, mode="r|") as archive:
        for info in archive:
            _stays_inside(info.name, path)
            if not (info.isfile() or info.isdir()):
                raise _refused(f"the archive holds {info.name!r}, which is neither a file nor a folder", path)
            stream = archive.extractfile(info) if info.isfile() and fnmatch.fnmatch(info.name, members) else None
            if stream is not None:
                yield Part(f"{path}/{info.name}", _ending(info.name.lower()), stream)


def _stays_inside(name: str, path: Path) -> None:
    plain = PurePosixPath(name.replace("\\", "/"))
    if plain.is_absolute() or ".." in plain.parts or ":" in plain.parts[0] if plain.parts else False:
        raise _refused(f"the archive holds the path {name!r}, which leaves it", path)


def _refused(what: str, path: Path) -> SourceError:
    return SourceError(what, where=str(path), do="do not use this file; fetch the set from its publisher")


def _ending(name: str) -> str:
    return PurePosixPath(name).suffix


def unpacked(stream: Any, packed: int, where: str) -> io.BufferedReader:
    """A packed stream that stops where it grows out of proportion to its packed size (bytes)."""
    return io.BufferedReader(_Unpacked(stream, max(FREE_BYTES, packed * MAX_RATIO), where))


class _Unpacked(io.RawIOBase):
    def __init__(self, stream: Any, limit: int, where: str) -> None:
        self._stream, self._left, self._limit, self._where = stream, limit, limit, where

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise SourceError(
                f"it unpacks to more than {self._limit // 2**20} MiB, over {MAX_RATIO} times its size: a bomb or a damaged file",
                where=self._where, do="do not use this file; unpack it yourself where you know it to be good",
            )  # fmt: skip
        buffer[: len(data)] = data
        return len(data)
