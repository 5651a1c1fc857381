"""Canonical JSON text of a value, and its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

__all__ = ["canonical_json", "digest", "digest_of_list"]


def canonical_json(value: object) -> str:
    """Return JSON text that is the same for equal values: sorted keys, no blanks, not escaped."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest(value: object) -> str:
    """Return the SHA-256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_of_list(values: Iterable[object]) -> str:
    """Return the `digest` of a list of values, without holding the list in memory."""
    sha = hashlib.sha256(b"[")
    for index, value in enumerate(values):
        sha.update((canonical_json(value) if index == 0 else f",{canonical_json(value)}").encode())
    sha.update(b"]")
    return sha.hexdigest()
