"""Random numbers that depend on a seed and a name only, never on order, process or numpy version.

Each number is cut from SHA-256("seed, purpose, name"): the same on every machine for ever, which no
generator of a library promises, and cheaper than seeding one for each clip (1 against 15 us).
"""

from __future__ import annotations

import hashlib
import struct

from antigram.pipeline.errors import InputError

__all__ = ["SEEDS", "check_seed", "draw"]

SEEDS = range(2**63)
_UNSIGNED = struct.Struct("<4Q")


def draw(seed: int, purpose: str, name: str, count: int = 1) -> list[int]:
    """Return ``count`` (at most 4) uniform integers in [0, 2^64)."""
    raw = hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()
    return list(_UNSIGNED.unpack(raw)[:count])


def check_seed(seed: int) -> None:
    """Refuse a seed that is none of `SEEDS`: each of those has numbers of its own.

    Raises:
        InputError: below 0, or above 2^63 - 1.
    """
    if seed not in SEEDS:
        raise InputError(f"--seed {seed}: wanted 0 to {SEEDS[-1]}")
