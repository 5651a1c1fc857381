"""Data of a training that are named by addresses: downloaded, then opened as local files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.local_copy import evict, local_copy
from antigram.pipeline.storage.objects import is_address
from antigram.studies.options import Options

__all__ = ["check_local_cache", "localised"]


def check_local_cache(options: Options, folder: Path | None, evict_days: float | None) -> None:
    """Raise if addresses and the folder for local copies do not go together.

    Args:
        options: ``data`` and ``caches`` may be addresses.
        folder: folder for local copies.
        evict_days: as for `localised`.

    Raises:
        InputError: an address without a folder, or what goes with a folder without one.
    """
    addresses = [name for name in (options.data, *options.caches) if is_address(name)]
    if addresses and folder is None:
        raise InputError(
            f"{addresses[0]}: is read from a local copy: name a folder for it, `local_cache=DIR`"
        )
    if evict_days is not None and folder is None:
        raise InputError("`evict_days` goes with `local_cache`")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InputError(f"`local_cache` {folder}: is not a folder")


def localised(
    options: Options,
    folder: Path | None,
    evict_days: float | None,
    on_message: Callable[[str], None],
) -> tuple[Options, dict[str, str]]:
    """Download what is named by addresses.

    Args:
        options: ``data`` and ``caches`` may be addresses.
        folder: folder for local copies; checked by `check_local_cache`.
        evict_days: first delete copies that nobody has asked for in as many days.
        on_message: called with a line for each download.

    Returns:
        Options with local paths, and the addresses by the names of stores and caches.

    Raises:
        InputError: an address cannot be read, or the disk has no room.
        DamagedError: an object is missing or damaged.
    """
    if folder is None:
        return options, {}
    if evict_days is not None:
        for removed in evict(folder, evict_days):
            on_message(f"removed the local copy {removed}")
    addresses: dict[str, str] = {}

    def local(name: str) -> str:
        if not is_address(name):
            return name
        path = local_copy(name, folder, on_message=on_message)
        addresses[path.stem] = name
        return str(path)

    data = None if options.data is None else local(options.data)
    return replace(options, data=data, caches=tuple(map(local, options.caches))), addresses
