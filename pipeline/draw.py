"""Random numbers that depend on a seed and a name only, never on order, process or numpy version.

The numbers are taken from SHA-256("seed, purpose, name"), so they are the same on every machine and
in every version. No library generator promises that, and seeding one for each clip is slower
(15 us against 1 us).
"""

from __future__ import annotations

import hashlib
import struct

from antigram.pipeline.errors import InputError

__all__ = ["SEEDS", "check_seed", "draw"]

SEEDS = range(2**63)
_UNSIGNED = struct.Struct("<4Q")


def draw(seed: int, purpose: str, name: str, count: int = 1) -> list[int]:
    """Return ``count`` (1 to 4) integers, uniform in [0, 2^64)."""
    raw = hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()
    return list(_UNSIGNED.unpack(raw)[:count])


def check_seed(seed: int) -> None:
    """Raise if a seed is not in `SEEDS`.

    Raises:
        InputError: the seed is below 0 or above 2^63 - 1.
    """
    if seed not in SEEDS:
        raise InputError(f"`seed` {seed}: wanted 0 to {SEEDS[-1]}")
