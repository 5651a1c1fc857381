"""Canonical JSON and the digests made from it."""

from __future__ import annotations

import hashlib
import json

__all__ = ["canonical_json", "digest"]


def canonical_json(value: object) -> str:
    """JSON text that is the same for equal values: sorted keys, no blanks, UTF-8."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest(value: object) -> str:
    """SHA-256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
