"""Extract untrusted zip, tar and tar.gz archives safely: files and folders only.

The standard library reads the archives (tar through `pipeline.download.tar`), but this module
writes the files: `tarfile`'s ``filter="data"`` was bypassed five times in 2024 and 2025
(CVE-2025-4517, -4330, -4138, -4435, CVE-2024-12718), and no filter limits the extracted size.
Links, devices and all other kinds of members are refused rather than skipped, as no corpus has
them. Modes and owners in the archive are ignored.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from antigram.pipeline.download.tar import ArchiveError, Member, tar_members
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.publish import discard, work_folder

__all__ = ["ArchiveError", "Limits", "unpacked"]

_CHUNK = 1 << 20
_DRIVE = re.compile(r"[A-Za-z]:")
_MOST_PARTS, _LONGEST_PART = 32, 255
# Exceptions of the standard library for damaged archives; a full disk raises none of these.
_DAMAGE = (
    EOFError,
    NotImplementedError,  # zip: an unknown compression
    OverflowError,
    ValueError,  # zip: an offset outside the file, a name that is not UTF-8
    gzip.BadGzipFile,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Largest accepted contents of an archive; the largest corpus stays well below each limit.

    Attributes:
        members: number of files and folders. NSynth's training set has 289,205 notes.
        file_bytes: size of one file.
        total_bytes: size of all files. LibriSpeech's largest subset has 31 GB, NSynth 39 GB.
        ratio: extracted size over archive size. Recordings have 1 to 3; a zip bomb 1,000 and more.
        harmless_bytes: extracted size up to which the ratio is not checked, as a tar of small files
            is mostly padding.
    """

    members: int = 1_000_000
    file_bytes: int = 8 << 30
    total_bytes: int = 200 << 30
    ratio: float = 50.0
    harmless_bytes: int = 64 << 20


@contextmanager
def unpacked(
    archives: Sequence[Path],
    target: Path,
    *,
    limits: Limits | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Path]:
    """Extract archives into a temporary folder beside ``target``, flushed to disk.

    The caller renames the folder, or a part of it; the rest is deleted when the block ends, also
    after an exception. The folder is beside ``target``, so that both are on one file system.

    Args:
        archives: the archives, which are extracted into the same folder.
        target: where the caller is going to put the result.
        limits: largest accepted contents; default: `Limits`.
        on_progress: called with a stage, the megabytes read and the megabytes in total.

    Yields:
        The folder.

    Raises:
        ArchiveError: an archive is damaged, or has members that no corpus has; nothing is kept.
    """
    partial = work_folder(target)
    discard(partial)  # left by a process that was killed
    tree = partial / target.name
    tree.mkdir(parents=True)
    try:
        for archive in archives:
            _unpack(archive, tree, limits or Limits(), on_progress)
        os.sync()  # once: a call for each of 300,000 files takes minutes
        yield tree
    finally:
        discard(partial)


def _unpack(
    archive: Path, tree: Path, limits: Limits, on_progress: Callable[[str, int, int], None] | None
) -> None:
    size = archive.stat().st_size
    allowed = min(limits.total_bytes, max(limits.harmless_bytes, int(limits.ratio * size)))
    writer = _Writer(archive, tree, limits, allowed)
    try:
        with archive.open("rb") as file:
            for member in _members(archive, file, allowed):
                writer.write(member)
                if on_progress is not None and writer.count % 100 == 0:
                    on_progress(
                        f"unpacking {archive.name} (MB)", file.tell() // 10**6, size // 10**6
                    )
    except InputError:
        raise
    except FileExistsError as error:
        # The file system does not distinguish upper and lower case, or two archives share a name.
        raise ArchiveError(
            f"{archive}: {error.filename} exists already, perhaps with other upper and lower case; "
            "wanted each name once. Nothing was kept; delete the archive and fetch it again."
        ) from None
    except (*_DAMAGE, OSError) as error:
        # An OSError for damage has no errno, or EINVAL for a negative offset in a zip.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ArchiveError(
            f"{archive}: damaged or cut short ({type(error).__name__}: {error}); wanted an intact "
            "archive. Nothing was kept; delete the archive and fetch it again."
        ) from None


def _members(archive: Path, file: BinaryIO, allowed: int) -> Iterator[Member]:
    """Return the members of a zip, tar or tar.gz; the file's first bytes show its format."""
    head = file.read(512)
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _zip_members(archive, file)
    if head.startswith(b"\x1f\x8b"):
        return tar_members(archive, gzip.GzipFile(fileobj=file), allowed)
    if head[257:262] == b"ustar":
        return tar_members(archive, file, allowed)
    raise ArchiveError(
        f"{archive}: begins with {head[:16]!r}; wanted a zip, tar or tar.gz archive. "
        "Delete it and fetch it again."
    )


def _zip_members(archive: Path, file: BinaryIO) -> Iterator[Member]:
    with zipfile.ZipFile(file) as opened:
        for info in opened.infolist():
            name = info.orig_filename  # `filename` ends at a NUL
            kind = stat.S_IFMT(info.external_attr >> 16)
            wanted = stat.S_IFDIR if name.endswith("/") else stat.S_IFREG
            if kind not in (0, wanted):
                raise ArchiveError(
                    f"{archive}: {name!r} is a link or device (mode {kind:o}); wanted files and "
                    "folders only. Nothing was kept: this is not the corpus's archive."
                )
            if info.flag_bits & 1 or info.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                raise ArchiveError(
                    f"{archive}: {name!r} is encrypted, or packed by method {info.compress_type}; "
                    "wanted stored or deflated files. Nothing was kept."
                )
            raw = name.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
            if name.endswith("/"):
                yield Member(raw, is_folder=True, size=info.file_size)
            else:
                with opened.open(info) as data:
                    yield Member(raw, is_folder=False, size=info.file_size, read=data.read)


class _Writer:
    """Writes the members of one archive; refuses any member outside the folder or over a limit."""

    def __init__(self, archive: Path, tree: Path, limits: Limits, allowed: int) -> None:
        self.archive, self.tree, self.limits, self.allowed = archive, tree, limits, allowed
        self.count = self.total = 0
        self._files: set[tuple[str, ...]] = set()
        self._folders: set[tuple[str, ...]] = {()}

    def _refuse(self, name: object, found: str, wanted: str) -> ArchiveError:
        return ArchiveError(
            f"{self.archive}: {name!r} {found}; wanted {wanted}. Nothing was kept: this is not "
            "the corpus's archive, or it is damaged; delete it and fetch it again."
        )

    def write(self, member: Member) -> None:
        """Write one member: a folder, or a complete file."""
        parts = self._parts(member.name)
        self.count += 1
        self.total += member.size
        if self.count > self.limits.members:
            most = f"at most {self.limits.members}"
            raise self._refuse(member.name, f"is member {self.count}", most)
        if member.is_folder:
            if member.size:
                raise self._refuse(member.name, "is a folder with bytes", "a folder without bytes")
            self._folder(parts, member.name)
            return
        if member.size > self.limits.file_bytes:
            most = f"at most {self.limits.file_bytes}"
            raise self._refuse(member.name, f"has {member.size} bytes", most)
        if self.total > self.allowed:
            packed = self.archive.stat().st_size
            found = f"brings the total to {self.total} bytes, from {packed} packed"
            raise self._refuse(member.name, found, f"at most {self.allowed}")
        if not parts or parts in self._folders:
            raise self._refuse(member.name, "is a file and a folder", "one of the two")
        if parts in self._files:
            raise self._refuse(member.name, "is there twice", "each name once")
        self._folder(parts[:-1], member.name)
        self._files.add(parts)
        left = member.size
        with self.tree.joinpath(*parts).open("xb") as file:
            while left and (chunk := member.read(min(left, _CHUNK))):
                left -= file.write(chunk)
        if left:
            raise self._refuse(member.name, f"ends {left} bytes early", f"all {member.size}")

    def _folder(self, parts: tuple[str, ...], name: bytes) -> None:
        for depth in range(1, len(parts) + 1):
            part = parts[:depth]
            if part in self._files:
                raise self._refuse(name, "is a file, or is below a file", "a folder there")
            if part not in self._folders:
                self._folders.add(part)
                # A second archive may hold the same folder.
                self.tree.joinpath(*part).mkdir(exist_ok=True)

    def _parts(self, raw: bytes) -> tuple[str, ...]:
        """Split a name into parts; refuse one that could leave the folder on any system."""
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._refuse(raw, "is not UTF-8", "a name in UTF-8") from None
        if any(ord(c) < 32 or ord(c) == 127 for c in name):
            raise self._refuse(raw, "holds control characters", "a plain name")
        if name.startswith("/") or _DRIVE.match(name) or "\\" in name:
            found = "is absolute, or another system's path"
            raise self._refuse(name, found, "a relative path with slashes")
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if ".." in parts:
            raise self._refuse(name, "leaves the folder", "a path below it")
        if len(parts) > _MOST_PARTS or any(len(p.encode()) > _LONGEST_PART for p in parts):
            raise self._refuse(name[:80], "is too long or too deep", "a shorter path")
        return parts
