"""Random numbers that depend on a seed and a name only, never on order, process or numpy version.

Each number is cut from SHA-256("seed, purpose, name"): the same on every machine for ever, which no
generator of a library promises, and cheaper than seeding one for each clip (1 against 15 us).
"""

from __future__ import annotations

import hashlib
import struct

__all__ = ["draw"]

_UNSIGNED = struct.Struct("<4Q")


def draw(seed: int, purpose: str, name: str, count: int = 1) -> list[int]:
    """Return ``count`` (at most 4) uniform integers in [0, 2^64)."""
    raw = hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()
    return list(_UNSIGNED.unpack(raw)[:count])
