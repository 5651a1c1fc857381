"""Return the names and bytes of files in folders, and flip bits of files."""

from __future__ import annotations

from pathlib import Path


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, by relative name."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def names_in(folder: Path) -> list[str]:
    """Return the sorted names of a folder, without the source records of stores."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".sources")


def all_names_in(folder: Path) -> list[str]:
    """Return all names of a folder, sorted."""
    return sorted(p.name for p in folder.iterdir())


def flip(path: Path, byte: int = -9, bit: int = 0) -> None:
    """Flip one bit of a file; a negative byte counts from the end."""
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1 << bit
    path.write_bytes(raw)
