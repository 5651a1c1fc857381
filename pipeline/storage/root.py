"""Read the root document of a store or cache, and check its format and version."""

from __future__ import annotations

import json
from typing import Any

from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.storage.backend import Backend, Grouped
from antigram.pipeline.storage.manifest import DOCUMENT, inner_groups
from antigram.pipeline.storage.manifest import FOLDER as MANIFEST

__all__ = ["has_parts", "read_root"]

_FORMATS = (
    "antigram/features",
    "antigram/grams",
)  # a store at a cache's path, or the reverse, is a user's mistake, not damage
# Names that occur in stores and caches.
_PARTS = (MANIFEST, "features", "labels", "split", "clip_id", "source")


def has_parts(group: Grouped) -> bool:
    """Whether a group contains at least one part of a store or cache."""
    return bool(inner_groups(group)) or any(name in _PARTS for name in group.groups())


def read_root(group: Backend, wanted: str, version: int, what: str) -> dict[str, Any]:
    """Return the root attribute ``antigram`` of a group.

    Args:
        group: the store or cache.
        wanted: value of ``format``.
        version: newest ``format_version`` that can be read.
        what: "feature store" or "Gram cache", for the message.

    Raises:
        InputError: the group does not exist, or holds another format.
        StoredDataError: the document is missing, unreadable, or of a newer version.
    """
    path, document = group.where(), group.where(DOCUMENT)
    try:
        attributes = json.loads(group.get(DOCUMENT))["attributes"]
    except (FileNotFoundError, NotADirectoryError):
        if has_parts(group):
            raise DamagedError(f"{document}: missing; make the {what} again") from None
        raise InputError(f"{path}: no {what} there; `antigram status` lists what is") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{document}: unreadable ({error}); make the {what} again") from None
    root = attributes.get("antigram") if isinstance(attributes, dict) else None
    if not isinstance(root, dict) or root.get("format") != wanted:
        found_format = root.get("format") if isinstance(root, dict) else "no antigram attribute"
        if has_parts(group) and found_format not in _FORMATS:
            raise DamagedError(
                f"{document}: not as antigram writes it ({found_format}); make the {what} again"
            )
        raise InputError(f"{path}: not a {what} ({found_format}), wanted {wanted}")
    if not isinstance(number := root.get("format_version"), int):
        raise DamagedError(f"{document}: format_version is {number!r}; make the {what} again")
    if number > version:
        raise StoredDataError(
            f"{path}: written by format version {number}, "
            f"this antigram reads up to {version}. Update antigram."
        )
    return root
