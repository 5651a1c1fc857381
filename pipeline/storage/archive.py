"""Archives that torch.save writes, written and checked without torch: checksums, digest, types.

Such a file is a zip whose records are stored as they are: ``data.pkl`` says what is in it,
``data/0`` and so on hold the bytes of the tensors. torch reads it without a look at the checksums.
A checkpoint of antigram is sealed: the zip's comment, its last bytes, holds the SHA-256 of all
bytes before it, so that every flipped bit is found, in a header or in padding, too.
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

SUFFIXES = (".pt", ".pth")  # of files that `verify` takes for such archives
_SEAL = b"antigram-sha256:"
_SEALED = re.compile(_SEAL + rb"([0-9a-f]{64})")
_MAGIC = b"PK\3\4"
_END = 22  # bytes of a zip's last structure; its last two count those of the comment
_MOST_RECORDS = 100_000  # a VGG19 with its optimiser has 120
_MOST_PICKLE = 16 << 20  # bytes of data.pkl; a checkpoint with 100,000 classes takes 2 MB
_LEGACY_PICKLES = 5  # at the head of a file of torch.save's first format
_AT_ONCE = 8 << 20  # bytes
_REPAIR = "Copy it again, or train it again."
# What a file may name: with these, nothing takes more memory than the file has bytes. Counts that
# allocate (bytearray, torch.Tensor), and sparse, quantised and meta tensors are not among them.
_HARMLESS = re.compile(
    r"collections OrderedDict|torch Size|torch (?!Untyped|Typed)\w+Storage"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
# What reading a damaged archive may raise.
_BROKEN = (ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


class Sink(Protocol):
    """What a file's content is written to."""

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - bytes, or anything with a buffer
        """Take all of it."""

    def flush(self) -> None:
        """Hand on what was taken."""


@dataclass(slots=True)
class Seal:
    """Passes an archive on to a file, and at its end adds the SHA-256 of it as its comment."""

    file: Sink
    _total: Any = field(default_factory=sha256)
    _end: bytes = b""  # the last bytes so far: those that count the comment's are among them

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - see `Sink`
        """Write what comes next."""
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
        """Flush what was passed on."""
        self.file.flush()

    def finish(self) -> None:
        """Write the end, with the comment."""
        size = len(_SEAL) + 2 * sha256().digest_size
        self._pass_on(self._end[:-2] + size.to_bytes(2, "little"))
        self.file.write(_SEAL + self._total.hexdigest().encode())

    def _pass_on(self, part: bytes | memoryview) -> None:
        self._total.update(part)
        self.file.write(part)


def check_archive(path: Path, file: BinaryIO) -> None:
    """Hold an archive against its digest, or else its records against their checksums.

    Files of torch.save's first format have no checksums: only what they name is looked at.

    Args:
        path: for messages.
        file: open at its beginning; left anywhere.

    Raises:
        InputError: it names more than tensors and plain types; or its records are compressed, too
            many or larger than the file: torch.save wrote none of that.
        DamagedError: it is not as it was written; names the record.
        OSError: it cannot be read.
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
    """Whether a file is a zip: by its first bytes or by its last, as one may be damaged."""
    file.seek(0)
    found = file.read(len(_MAGIC)) == _MAGIC or zipfile.is_zipfile(file)
    file.seek(0)
    return found


def _is_sealed(path: Path, file: BinaryIO, archive: zipfile.ZipFile) -> bool:
    """Whether an archive has a digest; it is held against it.

    Raises:
        DamagedError: it is not what the digest was made of.
    """
    if not archive.comment:
        return False
    seal = _SEALED.fullmatch(archive.comment)
    total = sha256()
    left = file.seek(0, os.SEEK_END) - len(archive.comment)
    file.seek(0)
    while left and (part := file.read(min(left, _AT_ONCE))):
        total.update(part)
        left -= len(part)
    if seal is None or total.hexdigest().encode() != seal[1]:
        what = _broken_record(archive) or "not what its digest was made of"
        raise DamagedError(f"{path}: damaged: {what}. {_REPAIR}")
    return True


def _broken_record(archive: zipfile.ZipFile) -> str:
    """Name the first record that does not match its CRC-32; '' if all do."""
    for info in archive.infolist():
        try:
            with archive.open(info) as record:
                while record.read(_AT_ONCE):
                    pass
        except _BROKEN as error:
            return f"record {info.filename}: {error}"
    return ""


def _check_directory(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Refuse what torch.save never writes, before any of it is unpacked."""
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
    """Refuse pickles that name anything but plain tensors. Nothing is made of them."""
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
    """Problems of a checkpoint's file: its records and its digest; no tensor is made of it.

    Raises:
        InputError: there is nothing to hold it against.
    """
    try:
        with named(path), path.open("rb") as file:
            check_archive(path, file)
            old = not _is_zip(file)
    except (DamagedError, InputError) as error:
        yield Problem(path, str(error).removeprefix(f"{path}: "))
        return
    except OSError as error:
        yield Problem(path, f"unreadable: {error.strerror}")
        return
    if old:
        raise InputError(
            f"{path}: written in torch.save's first format, which has no checksums: nothing to "
            "verify it with. Load it, and torch.save it again."
        )
