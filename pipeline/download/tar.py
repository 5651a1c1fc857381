"""Read tar as a stream: regular files and folders, with headers of a bounded size.

`tarfile` parses the headers. It reads them through `_Forward`, a stream that only goes forward,
counts its bytes and refuses what no corpus needs: ``tarfile``'s own mode ``r|`` has a buffer, which
hides how much a header makes it read. Left alone, `tarfile` reads extended headers of any size into
memory, keeps every member, and takes an archive for complete that is cut between two members or
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

# Bytes of all headers of one member: enough for the longest path that Linux opens. Without the fix
# of CVE-2024-6232, time and memory grow with the square of a pax header's size.
_MOST_HEADER = 1 << 13
_MOST_GLOBAL = 64  # pax records for all members; git keeps its commit in one
_BLOCK = tarfile.BLOCKSIZE
_REFUSED = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a fifo",
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


class _Forward:
    """Bytes of a tar as `tarfile` may read them.

    Args:
        archive: named in messages.
        file: the tar, already decompressed.
        allowed: bytes of it, headers and padding too, that are read at most.

    Attributes:
        header_left: bytes that the headers of this member may still have; None while the member's
            own bytes are read.
        last: bytes that were read last.
    """

    def __init__(self, archive: Path, file: IO[bytes] | io.BufferedIOBase, allowed: int) -> None:
        self.archive, self._file, self._allowed = archive, file, allowed
        self._position = 0
        self.header_left: int | None = _MOST_HEADER
        self.last = b""

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes; fewer at the end of the file."""
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
        """Bytes that were read or skipped."""
        return self._position

    def seek(self, position: int) -> None:
        """Skip bytes, up to a position or the end of the file."""
        if position < self._position:
            raise self.refuse("has a member that ends before it begins", "one after the other")
        header_left, self.header_left = self.header_left, None
        while self._position < position and self.read(min(position - self._position, 1 << 20)):
            pass
        self.header_left = header_left

    def read_to_end(self) -> None:
        """Read what is behind the end mark, too: there gzip keeps its checksum."""
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
    """Files and folders in their order; all else is refused.

    Args:
        archive: named in messages.
        file: bytes of the tar, already decompressed.
        allowed: how many bytes of it, headers and padding too, are read at most.

    Raises:
        ArchiveError: it holds another kind of member, or headers of more than 8 KiB.
        tarfile.TarError: it is no tar, is damaged, or stops before its end mark.
        ValueError: a number in a header is none.
    """
    stream = _Forward(archive, file, allowed)
    opened = cast("IO[bytes]", stream)  # nothing else of a file is used to read
    with tarfile.open(fileobj=opened, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        while (info := tar.next()) is not None:
            stream.header_left = None
            # Else it keeps a million of them; from Python 3.13 on, there is an option for it.
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
                assert data is not None  # which it is of links alone
                yield Member(name, is_folder=False, size=info.size, read=data.read)
            stream.header_left = _MOST_HEADER
        # A header that is cut off or damaged ends tarfile's loop, as the end mark does.
        if stream.last != bytes(_BLOCK):
            raise tarfile.ReadError("a header is damaged or missing")
        stream.read_to_end()


def _check(stream: _Forward, info: tarfile.TarInfo) -> None:
    """Refuse what is neither a file nor a folder, and a size that is no number."""
    is_sparse = info.issparse() or any(key.startswith("GNU.sparse") for key in info.pax_headers)
    plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
    if is_sparse or not plain:
        what = "a sparse file" if is_sparse else _REFUSED.get(info.type, f"of kind {info.type!r}")
        raise stream.refuse(f"{info.name!r} is {what}", "files and folders only")
    size = info.pax_headers.get("size", "0")  # tarfile takes what is no number for 0
    if info.size < 0 or not size.isdecimal():
        raise stream.refuse(f"{info.name!r} has {info.size or size!r} for a size", "a number")
