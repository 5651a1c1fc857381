"""Local copies of stores and caches in an object store, for readers that map files.

A copy is in ``FOLDER/KEY/NAME.zarr``. KEY is made of the root document and the manifests, so a copy
never differs from what the address holds: other content gets another copy. Several processes may
use one folder; the first downloads, and the others wait for its lock.

A copy is downloaded as ``.NAME.zarr.partial`` and renamed when each of its objects agrees with its
manifest. A download that was killed goes on with the files that are there and agree.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.storage.backend import Backend
from antigram.pipeline.storage.chunks import CRC_BYTES, crc32c
from antigram.pipeline.storage.durable import PARTIAL, flush_filesystem, fsync_folder
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import (
    DOCUMENT,
    KEY,
    chunk_keys,
    inner_groups,
    read_manifest,
)
from antigram.pipeline.storage.opening import open_backend
from antigram.pipeline.storage.root import has_parts

__all__ = ["evict", "local_copy"]

_THREADS = 16  # requests at once
_DAY_S = 86_400
_USED = "used"  # its time of change is when the copy was last asked for
_FORMATS = ("antigram/features", "antigram/grams")


def local_copy(
    address: str, folder: Path, *, on_message: Callable[[str], None] = lambda _: None
) -> Path:
    """Return the path of a local copy of a store or cache, which is downloaded if it is missing.

    Every object is checked against the manifest when it arrives. The store of a fold is copied,
    too.

    Args:
        address: such as ``s3://bucket/prefix/features/NAME.zarr``.
        folder: where copies are kept; it may be shared by processes of one machine.
        on_message: called with a line before a download.

    Raises:
        InputError: the address cannot be read, holds no store or cache, or the disk has no room.
        DamagedError: an object is missing, or differs from what the manifest lists.
    """
    address = address.rstrip("/")
    remote = open_backend(address)
    raw, fold_of = _root(remote)
    manifests = [f"{name}/{KEY}".lstrip("/") for name in ("", *inner_groups(remote))]
    texts = [raw, *(_document(remote, manifest) for manifest in manifests)]
    key = sha256(b"".join(sha256(text).digest() for text in (address.encode(), *texts))).hexdigest()
    target = folder / key[:24] / address.rpartition("/")[2]
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock_of(target.parent)):
        target.parent.mkdir(parents=True, exist_ok=True)  # it may have been evicted meanwhile
        (target.parent / _USED).touch()
        if not (target / DOCUMENT).is_file():
            _download(remote, target, on_message)
    if fold_of is not None:
        base = local_copy(f"{address.rpartition('/')[0]}/{fold_of}", folder, on_message=on_message)
        _link(target.with_name(fold_of), base.absolute())
    return target


def evict(folder: Path, days: float) -> list[Path]:
    """Delete the copies that nobody has asked for in some days; return their paths.

    A training asks when it begins, so ``days`` should be more than the longest training takes.

    Args:
        folder: where copies are kept.
        days: copies asked for since then are kept.
    """
    before, removed = time.time() - days * _DAY_S, []
    for mark in sorted(folder.glob(f"*/{_USED}")):
        try:
            with FileLock(_lock_of(mark.parent), timeout=0):
                if mark.stat().st_mtime < before:
                    shutil.rmtree(mark.parent)
                    removed.append(mark.parent)
        except (Timeout, FileNotFoundError):  # being downloaded, or evicted by another process
            continue
    return removed


def _document(remote: Backend, key: str) -> bytes:
    """Return a manifest.

    Raises:
        DamagedError: it is missing.
    """
    try:
        return remote.get(key)
    except FileNotFoundError:
        raise DamagedError(f"{remote.where(key)}: missing; upload it again") from None


def _root(remote: Backend) -> tuple[bytes, str | None]:
    """Return the root document, and the name of the store if it is that of a fold.

    Raises:
        InputError: there is no store or cache.
        DamagedError: the root document is missing or unreadable.
    """
    where = remote.where()
    try:
        raw = remote.get(DOCUMENT)
    except FileNotFoundError:
        if has_parts(remote):
            raise DamagedError(f"{where}/{DOCUMENT}: missing; upload it again") from None
        raise InputError(f"{where}: no store or cache there") from None
    try:
        root = json.loads(raw)["attributes"]["antigram"]
        if root["format"] not in _FORMATS:
            raise InputError(f"{where}: not a store or cache, but {root['format']!r}")
        fold_of = root["fold"]["of"] if "fold" in root else None
    except (ValueError, KeyError, TypeError, RecursionError):
        if has_parts(remote):
            raise DamagedError(f"{where}/{DOCUMENT}: unreadable; upload it again") from None
        raise InputError(f"{where}: no store or cache there") from None
    if fold_of is not None and (not isinstance(fold_of, str) or Path(fold_of).name != fold_of):
        raise DamagedError(f"{where}: does not say what it is a fold of")
    return raw, fold_of


@dataclass(frozen=True, slots=True)
class _Object:
    """An object to copy: its group, key and checksum; ``chunk`` tells chunks from documents."""

    remote: Backend
    local: Folder
    key: str
    crc: int
    chunk: bool

    def agrees(self, raw: NDArray[np.uint8]) -> bool:
        """Whether bytes are those that the manifest lists."""
        if not self.chunk:
            return crc32c(raw) == self.crc
        tail = int.from_bytes(raw[-CRC_BYTES:].tobytes(), "little")
        return crc32c(raw[:-CRC_BYTES]) == self.crc == tail

    def copy(self) -> None:
        """Download the object, unless the file is there and agrees with the checksum.

        Raises:
            DamagedError: the object is missing or damaged.
        """
        path = self.local.path / self.key
        if path.is_file() and self.agrees(np.fromfile(path, np.uint8)):
            return
        try:
            raw = self.remote.view(self.key)
        except FileNotFoundError:
            raise DamagedError(
                f"{self.remote.where(self.key)}: missing, and the manifest lists it; upload it "
                "again"
            ) from None
        if not self.agrees(raw):
            raise DamagedError(
                f"{self.remote.where(self.key)}: damaged, it differs from its manifest; upload it "
                "again"
            )
        self.local.put(self.key, raw.data, flush=False)


def _download(remote: Backend, target: Path, on_message: Callable[[str], None]) -> None:
    """Copy a store or cache to ``target``, which does not exist yet."""
    partial = target.with_name(f".{target.name}{PARTIAL}")
    size = sum(entry.size for entry in remote.list())
    there = sum(entry.size for entry in Folder(partial).list())
    if size - there > (free := shutil.disk_usage(target.parent).free):
        raise InputError(
            f"`local_cache` {target.parent.parent}: {remote.where()} needs {size / 1e9:.1f} GB, and"
            f" {free / 1e9:.1f} GB are free. Free some, or remove old copies with `evict_days`"
        )
    on_message(f"downloading {remote.where()} ({size / 1e6:.1f} MB) to {target}")
    objects = _objects(remote, Folder(partial))
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for _ in pool.map(_Object.copy, objects):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    flush_filesystem(partial)
    partial.replace(target)
    fsync_folder(target.parent)


def _objects(remote: Backend, local: Folder) -> Iterator[_Object]:
    """Yield all objects that the manifests of a group and of its inner groups list."""
    for name in ("", *inner_groups(remote)):
        group, own = (remote.below(name), local.below(name)) if name else (remote, local)
        manifest = read_manifest(group)
        _check_names(group, (*manifest.metadata, *manifest.arrays))
        yield _Object(group, own, KEY, crc32c(group.get(KEY)), chunk=False)
        for key, crc in manifest.metadata.items():
            yield _Object(group, own, key, crc, chunk=False)
        for array, entry in manifest.arrays.items():
            for key, crc in chunk_keys(group, array, entry["crc32c"], ()):
                yield _Object(group, own, key, crc, chunk=True)


def _check_names(remote: Backend, names: Iterable[str]) -> None:
    """Raise if a manifest lists names that would lead out of the folder of the copy."""
    for name in names:
        if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name:
            raise DamagedError(f"{remote.where(KEY)}: lists {name!r}, which antigram never writes")


def _link(link: Path, base: Path) -> None:
    """Make a link to the copy of a fold's store; another process may make the same one."""
    if link.is_symlink() and link.readlink() == base:
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(base)
    temporary.replace(link)


def _lock_of(copy: Path) -> Path:
    return copy.with_name(f".{copy.name}.lock")
