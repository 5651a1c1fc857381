"""A small corpus made into a store, in a few lines, for every test that needs one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from antigram.pipeline.audio.noise import NoiseBank, noise_files
from antigram.pipeline.corpora import GSC
from antigram.pipeline.features.preparation import OnProgress, Prepared, prepare
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.storage import chunks

ROW_BYTES = 126 * 129 * 4


def gsc_recipe(**changes) -> Recipe:
    return Recipe(corpus="gsc", options={"words": "digits"}, **changes)


def prepare_gsc(
    home: Path,
    target: Path,
    *,
    workers: int = 1,
    noise_home: Path | None = None,
    max_rejected: int = 0,
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] | None = None,
    check_all: bool = False,
    **changes,
) -> Prepared:
    """Prepare with 4 rows a chunk, so that a handful of clips makes several chunks."""
    noise = noise_files([noise_home])[1] if noise_home else None
    if noise is not None:
        changes = {"noise": "high", "noise_files": NoiseBank.digest_of(noise), **changes}
    recipe = gsc_recipe(**changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_TARGET_BYTES", 4 * ROW_BYTES)
        return prepare(
            GSC,
            home,
            recipe,
            target,
            noise=noise,
            workers=workers,
            max_rejected=max_rejected,
            on_progress=on_progress,
            on_message=on_message,
            **({"check_all": True} if check_all else {}),
        )


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def names_in(folder: Path) -> list[str]:
    """Sorted names of what lies in a folder, less the records of stores' recordings."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".sources")


def all_names_in(folder: Path) -> list[str]:
    """Sorted names of all that lies in a folder."""
    return sorted(p.name for p in folder.iterdir())


def flip(path: Path, byte: int, bit: int = 0) -> None:
    """Flip one bit of a file; a negative byte counts from the end."""
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1 << bit
    path.write_bytes(raw)
