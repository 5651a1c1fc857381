"""Audio files that a user names: themselves, by folders that hold them, or by patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from antigram.pipeline.audio.decoding import SUFFIXES
from antigram.pipeline.errors import InputError

__all__ = ["audio_files"]


def audio_files(names: Iterable[Path]) -> list[Path]:
    """List the audio files that are meant, each once: named ones first to last, others sorted.

    Args:
        names: files, whatever they are called, there or not (`pipeline.audio.decoding` says what is
            wrong with one); folders, of which every file below counts that is audio by its name and
            not hidden; and patterns such as ``rec/**/*.wav``, whose matches are files or folders.

    Raises:
        InputError: a folder cannot be read or, like a pattern, gives no audio file.
    """
    found: list[Path] = []
    for name in names:
        if name.is_dir():
            inside = _below(name)
        elif glob.has_magic(str(name)) and not name.exists():
            matches = sorted(map(Path, glob.glob(str(name), recursive=True)))  # noqa: PTH207
            inside = [
                path
                for match in matches
                for path in (_below(match) if match.is_dir() else [match])
                if _is_audio(path)
            ]
        else:
            inside = [name]
        if not inside:
            known = ", ".join(sorted(SUFFIXES))
            raise InputError(f"{name}: no audio file there; wanted files that end in {known}")
        found += inside
    return list(dict.fromkeys(found))


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _below(folder: Path) -> list[Path]:
    """Audio files of a folder and those below it, sorted; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None

    found: list[Path] = []
    for where, inner, files in os.walk(folder, onerror=refuse):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [path for path in (Path(where) / name for name in files) if _is_audio(path)]
    return sorted(found)
