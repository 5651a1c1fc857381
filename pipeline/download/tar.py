"""Read tar as a stream: regular files and folders, with headers of a bounded size.

`tarfile` parses the headers. It reads them through `_Forward`, a stream that only goes forward,
counts its bytes and limits the size of headers. (``tarfile``'s own streaming mode, ``r|``, has a
buffer that hides how many bytes a header takes.) On its own, `tarfile` reads extended headers of
any size into memory, keeps every member, and accepts an archive that is cut between two members or
has a damaged header. Nothing is extracted here: `pipeline.download.extract` writes the files.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from antigram.pipeline.errors import InputError

__all__ = ["ArchiveError", "Member", "tar_members"]

# Bytes of all headers of one member: enough for the longest path on Linux. Without the fix of
# CVE-2024-6232, time and memory grow with the square of a pax header's size.
_MOST_HEADER = 1 << 13
_MOST_GLOBAL = 64  # global pax records; git stores the commit in one
_BLOCK = tarfile.BLOCKSIZE
_REFUSED = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a fifo",
}


class ArchiveError(InputError):
    """An archive is damaged, or has members that no corpus has."""


def _nothing(_count: int) -> bytes:
    return b""


@dataclass(frozen=True, slots=True)
class Member:
    """A file or a folder; its bytes can be read until the next member is requested."""

    name: bytes
    is_folder: bool
    size: int
    read: Callable[[int], bytes] = _nothing


class _Forward:
    """A file object for `tarfile` that only reads forward and limits headers and total size.

    Args:
        archive: path of the archive, for messages.
        file: the tar, already decompressed.
        allowed: largest number of bytes to read, including headers and padding.

    Attributes:
        header_left: bytes that the headers of the current member may still have; None while the
            member's contents are read.
        last: the bytes read last.
    """

    def __init__(self, archive: Path, file: IO[bytes] | io.BufferedIOBase, allowed: int) -> None:
        self.archive, self._file, self._allowed = archive, file, allowed
        self._position = 0
        self.header_left: int | None = _MOST_HEADER
        self.last = b""

    def read(self, count: int) -> bytes:
        """Return ``count`` bytes; fewer at the end of the file."""
        if self.header_left is not None:
            if not 0 <= count <= self.header_left:
                size = _MOST_HEADER - self.header_left + count
                found = f"has {size} bytes of extended header or more before one member"
                raise self.refuse(found, f"at most {_MOST_HEADER}")
            self.header_left -= count
        self.last = self._file.read(count)
        self._position += len(self.last)
        if self._position > self._allowed:
            raise self.refuse("unpacks to far more than its size", "a corpus's archive")
        return self.last

    def tell(self) -> int:
        """Return the number of bytes read or skipped so far."""
        return self._position

    def seek(self, position: int) -> None:
        """Skip to a position, or to the end of the file."""
        if position < self._position:
            raise self.refuse("has a member that ends before it begins", "one after the other")
        header_left, self.header_left = self.header_left, None
        while self._position < position and self.read(min(position - self._position, 1 << 20)):
            pass
        self.header_left = header_left

    def read_to_end(self) -> None:
        """Read on after the end mark, so that gzip checks its checksum."""
        self.header_left = None
        while self.read(1 << 20):
            pass

    def refuse(self, found: str, wanted: str) -> ArchiveError:
        return ArchiveError(
            f"{self.archive}: {found}; wanted {wanted}. Nothing was kept: this is not the corpus's "
            "archive, or it is damaged; delete it and fetch it again."
        )


def tar_members(
    archive: Path, file: IO[bytes] | io.BufferedIOBase, allowed: int
) -> Iterator[Member]:
    """Yield the files and folders of a tar in their order.

    Args:
        archive: path of the archive, for messages.
        file: the tar, already decompressed.
        allowed: largest number of bytes to read, including headers and padding.

    Raises:
        ArchiveError: a member is neither file nor folder, or has headers of more than 8 KiB.
        tarfile.TarError: the file is not a tar, is damaged, or ends before its end mark.
        ValueError: a field of a header that should be a number is not.
    """
    stream = _Forward(archive, file, allowed)
    opened = cast("IO[bytes]", stream)  # `tarfile` uses only these methods for reading
    with tarfile.open(fileobj=opened, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        while (info := tar.next()) is not None:
            stream.header_left = None
            # `tarfile` keeps every member in memory; Python 3.13 has an option against it.
            tar.members.clear()  # type: ignore[attr-defined]
            if len(tar.pax_headers) > _MOST_GLOBAL:
                found = f"has {len(tar.pax_headers)} pax records for all of its members"
                raise stream.refuse(found, f"at most {_MOST_GLOBAL}")
            _check(stream, info)
            name = info.name.encode("utf-8", "surrogateescape")
            if info.isdir() or info.name.endswith("/"):
                yield Member(name, is_folder=True, size=info.size)
            else:
                data = tar.extractfile(info)
                assert data is not None  # None for links only
                yield Member(name, is_folder=False, size=info.size, read=data.read)
            stream.header_left = _MOST_HEADER
        # A damaged or incomplete header ends the loop of `tarfile`, like the end mark.
        if stream.last != bytes(_BLOCK):
            raise tarfile.ReadError("a header is damaged or missing")
        stream.read_to_end()


def _check(stream: _Forward, info: tarfile.TarInfo) -> None:
    """Raise if a member is neither a file nor a folder, or if its size is not a number."""
    is_sparse = info.issparse() or any(key.startswith("GNU.sparse") for key in info.pax_headers)
    plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
    if is_sparse or not plain:
        what = "a sparse file" if is_sparse else _REFUSED.get(info.type, f"of kind {info.type!r}")
        raise stream.refuse(f"{info.name!r} is {what}", "files and folders only")
    size = info.pax_headers.get("size", "0")  # tarfile reads an invalid number as 0
    if info.size < 0 or not size.isdecimal():
        raise stream.refuse(f"{info.name!r} has {info.size or size!r} for a size", "a number")
