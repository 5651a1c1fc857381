"""The root document of a store or cache: which of the two it is, and that it is complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.storage.hdf5 import inside, read_bytes
from antigram.pipeline.storage.manifest import FOLDER as MANIFEST

__all__ = ["DOCUMENT", "has_parts", "read_root"]

DOCUMENT = "zarr.json"  # of a group
_FORMATS = ("antigram/features", "antigram/grams")  # the one in the place of the other is no damage
_PARTS = (MANIFEST, "features", "labels", "split", "clip_id", "source")  # of stores and caches


def has_parts(path: Path) -> bool:
    """Whether parts of a store or cache lie in a folder, or it is a file that was exported."""
    if inside(path) is not None:
        return True
    return any((path / name).is_dir() for name in _PARTS) or any(path.glob("layer[0-9][0-9]"))


def read_root(path: Path, wanted: str, version: int, what: str) -> dict[str, Any]:
    """Attribute ``antigram`` of a group.

    Args:
        path: the group's folder.
        wanted: value of ``format``.
        version: newest ``format_version`` that can be read.
        what: "feature store" or "Gram cache", for the message.

    Raises:
        InputError: there is no such group, or it is something else.
        StoredDataError: it is unreadable, incomplete, or of a newer version.
    """
    document = path / DOCUMENT
    try:
        attributes = json.loads(read_bytes(document))["attributes"]
    except (FileNotFoundError, NotADirectoryError):
        if has_parts(path):
            raise DamagedError(f"{document}: missing; make the {what} again") from None
        raise InputError(f"{path}: no {what} there; `antigram status` lists what is") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{document}: unreadable ({error}); make the {what} again") from None
    root = attributes.get("antigram") if isinstance(attributes, dict) else None
    if not isinstance(root, dict) or root.get("format") != wanted:
        found = root.get("format") if isinstance(root, dict) else "no antigram attribute"
        if has_parts(path) and found not in _FORMATS:
            raise DamagedError(
                f"{document}: not as antigram writes it ({found}); make the {what} again"
            )
        raise InputError(f"{path}: not a {what} ({found}), wanted {wanted}")
    if not isinstance(number := root.get("format_version"), int):
        raise DamagedError(f"{document}: format_version is {number!r}; make the {what} again")
    if number > version:
        raise StoredDataError(
            f"{path}: written by format version {number}, "
            f"this antigram reads up to {version}. Update antigram."
        )
    return root
