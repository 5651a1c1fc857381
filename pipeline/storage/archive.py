"""Seal and check files of torch.save, without torch: checksums, digest, and types in them.

Such a file is a zip archive with uncompressed records: ``data.pkl`` describes the contents, and
``data/0`` and so on hold the bytes of tensors. torch does not check the checksums of records. A
checkpoint of antigram is sealed: the comment of the zip, which is at its end, holds the SHA-256 of
all bytes before it. Any flipped bit is detected, even in headers and padding.
"""

from __future__ import annotations

import io
import os
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.storage.files import named
from antigram.pipeline.storage.manifest import Problem

__all__ = ["SUFFIXES", "Seal", "Sink", "check_archive", "verify_archive"]

SUFFIXES = (".pt", ".pth")  # suffixes of files that `verify` treats as checkpoints
_SEAL = b"antigram-sha256:"
_SEALED = re.compile(_SEAL + rb"([0-9a-f]{64})")
_MAGIC = b"PK\3\4"
_END = 22  # bytes of a zip's last structure; its last two are the length of the comment
_MOST_RECORDS = 100_000  # a VGG19 with its optimiser has 120
_MOST_PICKLE = 16 << 20  # bytes of data.pkl; a checkpoint with 100,000 classes takes 2 MB
_LEGACY_PICKLES = 5  # number of pickles at the start of a file in torch.save's first format
_AT_ONCE = 8 << 20  # bytes
_REPAIR = "Copy it again, or train it again."
# Accepted names in a pickle: none of them can allocate more memory than the file has bytes. Types
# that allocate by a count (bytearray, torch.Tensor), and sparse, quantised and meta tensors can.
_HARMLESS = re.compile(
    r"collections OrderedDict|torch Size|torch (?!Untyped|Typed)\w+Storage"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
# Exceptions that reading a damaged archive may raise.
_BROKEN = (ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


class Sink(Protocol):
    """A file that can be written to."""

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - bytes, or an object with a buffer
        """Write all of the data."""

    def flush(self) -> None:
        """Flush written data."""


@dataclass(slots=True)
class Seal:
    """A file object that writes an archive to ``file``, and appends its SHA-256 as its comment."""

    file: Sink
    _total: Any = field(default_factory=sha256)
    _end: bytes = b""  # the last bytes so far, which include the length of the comment

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - see `Sink`
        """Write the next bytes of the archive."""
        view = memoryview(data).cast("B")
        if view.nbytes < _END:
            last = self._end + bytes(view)
            self._pass_on(last[:-_END])
            self._end = last[-_END:]
        else:
            self._pass_on(self._end)
            self._pass_on(view[:-_END])
            self._end = bytes(view[-_END:])
        return view.nbytes

    def flush(self) -> None:
        """Flush the bytes written to the file."""
        self.file.flush()

    def finish(self) -> None:
        """Write the end of the archive, with the digest as its comment."""
        size = len(_SEAL) + 2 * sha256().digest_size
        self._pass_on(self._end[:-2] + size.to_bytes(2, "little"))
        self.file.write(_SEAL + self._total.hexdigest().encode())

    def _pass_on(self, part: bytes | memoryview) -> None:
        self._total.update(part)
        self.file.write(part)


def check_archive(path: Path, file: BinaryIO) -> None:
    """Check an archive by its digest or, without a digest, by the checksums of its records.

    Files in torch.save's first format have no checksums; only the names in them are checked.

    Args:
        path: path of the file, for messages.
        file: the file, open at its beginning; its position is undefined afterwards.

    Raises:
        InputError: the file names more than tensors and plain types, or torch.save did not write
            it: records are compressed, too many, or larger than the file.
        DamagedError: the file is damaged; the message names the record.
        OSError: the file cannot be read.
    """
    if not _is_zip(file):
        _check_names(path, file, _LEGACY_PICKLES)
        return
    try:
        with zipfile.ZipFile(file) as archive:
            sealed = _is_sealed(path, file, archive)
            _check_directory(path, archive.infolist())
            if not sealed and (broken := _broken_record(archive)):
                raise DamagedError(f"{path}: damaged: {broken}. {_REPAIR}")
            for info in archive.infolist():
                if info.filename.endswith("/data.pkl"):
                    _check_names(path, io.BytesIO(archive.read(info)), 1)
    except (InputError, DamagedError):
        raise
    except _BROKEN as error:
        raise DamagedError(f"{path}: damaged: no intact zip ({error}). {_REPAIR}") from None


def _is_zip(file: BinaryIO) -> bool:
    """Whether a file is a zip, by its first or its last bytes, as either may be damaged."""
    file.seek(0)
    is_zip = file.read(len(_MAGIC)) == _MAGIC or zipfile.is_zipfile(file)
    file.seek(0)
    return is_zip


def _is_sealed(path: Path, file: BinaryIO, archive: zipfile.ZipFile) -> bool:
    """Return whether an archive has a digest, after checking it.

    Raises:
        DamagedError: the archive does not match its digest.
    """
    if not archive.comment:
        return False
    seal = _SEALED.fullmatch(archive.comment)
    digest = sha256()
    remaining = file.seek(0, os.SEEK_END) - len(archive.comment)
    file.seek(0)
    while remaining and (part := file.read(min(remaining, _AT_ONCE))):
        digest.update(part)
        remaining -= len(part)
    if seal is None or digest.hexdigest().encode() != seal[1]:
        problem = _broken_record(archive) or "not what its digest was made of"
        raise DamagedError(f"{path}: damaged: {problem}. {_REPAIR}")
    return True


def _broken_record(archive: zipfile.ZipFile) -> str:
    """Return name and error of the first record with a wrong CRC-32, or an empty string."""
    for info in archive.infolist():
        try:
            with archive.open(info) as record:
                while record.read(_AT_ONCE):
                    pass
        except _BROKEN as error:
            return f"record {info.filename}: {error}"
    return ""


def _check_directory(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Raise if torch.save cannot have written the records, before any of them is read."""
    if len(infos) > _MOST_RECORDS:
        raise InputError(f"{path}: {len(infos)} records in it; wanted at most {_MOST_RECORDS}")
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise InputError(
                f"{path}: record {info.filename} is compressed ({info.compress_size} bytes stand "
                f"for {info.file_size}); wanted a file of torch.save, which stores them as they are"
            )
        if info.flag_bits & 1:
            raise InputError(f"{path}: record {info.filename} is encrypted")
        if info.filename.endswith("/data.pkl") and info.file_size > _MOST_PICKLE:
            raise InputError(
                f"{path}: {info.filename} takes {info.file_size} bytes; wanted at most "
                f"{_MOST_PICKLE}: names, shapes and settings, no data"
            )
    if sum(info.file_size for info in infos) > path.stat().st_size:
        raise InputError(f"{path}: its records claim more bytes than the file has")
    if len({info.filename for info in infos}) < len(infos):
        raise InputError(f"{path}: a record is in it twice; wanted a file of torch.save")


def _check_names(path: Path, file: BinaryIO, pickles: int) -> None:
    """Raise if pickles name anything but plain tensors; they are parsed, but not executed."""
    try:
        for _ in range(pickles):
            for opcode, name, _place in pickletools.genops(file):
                if opcode.name == "GLOBAL" and _HARMLESS.fullmatch(str(name)) is None:
                    raise InputError(
                        f"{path}: not a checkpoint that can be read safely: it names "
                        f"{str(name).replace(' ', '.')[:80]}; wanted plain tensors, numbers and "
                        "text, as `antigram train` with `save` and torch.save of a state dict write"
                    )
    except InputError:
        raise
    except _BROKEN:
        raise InputError(
            f"{path}: not a checkpoint that can be read safely: neither a zip nor a pickle of "
            "torch.save. Wanted: a file of `antigram train` with `save`, or a VGG state dict."
        ) from None


def verify_archive(path: Path) -> Iterator[Problem]:
    """Yield the problems of a checkpoint file, without loading tensors.

    Raises:
        InputError: the file has no checksums.
    """
    try:
        with named(path), path.open("rb") as file:
            check_archive(path, file)
            has_no_checksums = not _is_zip(file)
    except (DamagedError, InputError) as error:
        yield Problem(path, str(error).removeprefix(f"{path}: "))
        return
    except OSError as error:
        yield Problem(path, f"unreadable: {error.strerror}")
        return
    if has_no_checksums:
        raise InputError(
            f"{path}: written in torch.save's first format, which has no checksums: nothing to "
            "verify it with. Load it, and torch.save it again."
        )
