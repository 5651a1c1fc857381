"""Read tar as a stream: regular files and folders of ustar, GNU and pax archives.

Not `tarfile`, which reads an extended header of any size into memory, takes an archive that stops
between two members for a whole one, and knows links, sparse files and devices, which a corpus has
not. Tests compare this reader with what `tarfile` writes, in its three formats.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from antigram.pipeline.errors import InputError

__all__ = ["ArchiveError", "Member", "tar_members"]

_BLOCK = 512
_MOST_EXTENDED = 1 << 16  # bytes of a long name or of pax records
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a fifo",
    b"S": "a sparse file",
}


class ArchiveError(InputError):
    """An archive is damaged, or holds what a corpus does not hold."""


def _nothing(_count: int) -> bytes:
    return b""


@dataclass(frozen=True, slots=True)
class Member:
    """A file or a folder; its bytes can be read until the next member is asked for."""

    name: bytes
    is_folder: bool
    size: int
    read: Callable[[int], bytes] = _nothing


class _Stream:
    """Counts what it reads: not only files, but headers and padding cannot swell without end."""

    def __init__(self, archive: Path, file: IO[bytes] | io.BufferedIOBase, allowed: int) -> None:
        self.archive, self._file, self._left = archive, file, allowed
        self.in_member = 0  # bytes of the current member that were not read yet

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        self._left -= len(data)
        if self._left < 0:
            raise self.refuse("unpacks to far more than its size", "a corpus's archive")
        return data

    def exactly(self, count: int) -> bytes:
        data = self.read(count)
        while len(data) < count and (more := self.read(count - len(data))):
            data += more
        if len(data) < count:
            raise self.refuse("is cut short", "its end mark")
        return data

    def read_member(self, count: int) -> bytes:
        data = self.read(min(count, self.in_member))
        self.in_member -= len(data)
        return data

    def skip(self, count: int) -> None:
        while count:
            count -= len(self.exactly(min(count, 1 << 20)))

    def refuse(self, found: str, wanted: str) -> ArchiveError:
        return ArchiveError(
            f"{self.archive}: {found}; wanted {wanted}. Nothing was kept: this is not the corpus's "
            "archive, or it is damaged; delete it and fetch it again."
        )


def tar_members(
    archive: Path, file: IO[bytes] | io.BufferedIOBase, allowed: int
) -> Iterator[Member]:
    """Files and folders in their order; all else is refused.

    Args:
        archive: named in messages.
        file: bytes of the tar, already decompressed.
        allowed: how many bytes of it, headers and padding too, are read at most.

    Raises:
        ArchiveError: it holds another kind of member, is no tar, or stops before its end mark.
    """
    stream = _Stream(archive, file, allowed)
    name, records = b"", dict[bytes, bytes]()
    while (header := stream.exactly(_BLOCK)) != bytes(_BLOCK):
        kind, size = header[156:157], _number(stream, header[124:136])
        if _number(stream, header[148:156]) != sum(header[:148]) + 8 * 32 + sum(header[156:]):
            raise stream.refuse("has a header with a wrong checksum", "a tar header")
        if kind in (b"L", b"x", b"g"):
            if size > _MOST_EXTENDED:
                raise stream.refuse(f"has {size} bytes of extended header", f"<= {_MOST_EXTENDED}")
            data = stream.exactly(size)
            stream.skip(-size % _BLOCK)
            if kind == b"L":
                name = data.removesuffix(b"\0")
            elif kind == b"x":
                records = _pax(stream, data)
            continue  # g: one for the whole archive; git keeps its commit there
        path = name or records.get(b"path", b"") or _plain_name(header)
        if b"size" in records:
            size = int(records[b"size"])
        if kind not in (b"0", b"\0", b"5") or any(k.startswith(b"GNU.sparse") for k in records):
            what = _KINDS.get(kind, f"of the kind {kind!r}")
            raise stream.refuse(f"{path!r} is {what}", "files and folders only")
        name, records = b"", {}
        stream.in_member = size
        is_folder = kind == b"5" or path.endswith(b"/")
        yield Member(path, is_folder, size, stream.read_member)
        stream.skip(stream.in_member)
        stream.skip(-size % _BLOCK)
    while stream.read(1 << 20):  # to the end, where gzip keeps its checksum
        pass


def _plain_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    # GNU's own format has other things in the place of the prefix.
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(stream: _Stream, field: bytes) -> int:
    """Octal digits, or GNU's binary form for what does not fit."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    if (found := _OCTAL.fullmatch(field)) is None:
        raise stream.refuse(f"has {field!r} in a header", "an octal number")
    return int(found[1] or b"0", 8)


def _pax(stream: _Stream, data: bytes) -> dict[bytes, bytes]:
    """Records ``LENGTH KEY=VALUE``, each ended by a newline; LENGTH counts all of it."""
    records: dict[bytes, bytes] = {}
    while data:
        digits = data[:8].split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() else 0
        record, data = data[:length], data[length:]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or len(record) != length or not record.endswith(b"\n"):
            raise stream.refuse("has a pax record that is none", "LENGTH KEY=VALUE")
        if key == b"size" and not (value.isdigit() and len(value) < 20):
            raise stream.refuse(f"has {value[:40]!r} for a size", "a number")
        records[key] = value
    return records
