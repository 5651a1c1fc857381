"""Resolve names of files, folders and patterns to a list of audio files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from antigram.pipeline.audio.decoding import SUFFIXES
from antigram.pipeline.errors import InputError

__all__ = ["audio_files"]


def audio_files(names: Iterable[Path]) -> list[Path]:
    """Return the audio files that files, folders and patterns name, without duplicates.

    Files come in the order of ``names``; files of one folder or pattern are sorted.

    Args:
        names: files, folders and patterns. A file is taken whatever its suffix, even if it does not
            exist (`pipeline.audio.decoding` reports that). A folder stands for all files below it
            that have an audio suffix and are not hidden; a pattern such as ``rec/**/*.wav`` stands
            for the files and folders that match it.

    Raises:
        InputError: a folder cannot be read, or a folder or pattern has no audio file.
    """
    paths: list[Path] = []
    for name in names:
        if name.is_dir():
            matching = _below(name)
        elif glob.has_magic(str(name)) and not name.exists():
            matches = sorted(map(Path, glob.glob(str(name), recursive=True)))  # noqa: PTH207
            matching = [
                path
                for match in matches
                for path in (_below(match) if match.is_dir() else [match])
                if _is_audio(path)
            ]
        else:
            matching = [name]
        if not matching:
            known = ", ".join(sorted(SUFFIXES))
            raise InputError(f"{name}: no audio file there; wanted files that end in {known}")
        paths += matching
    return list(dict.fromkeys(paths))


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _below(folder: Path) -> list[Path]:
    """Return the sorted audio files below a folder; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None

    paths: list[Path] = []
    for parent, subfolders, files in os.walk(folder, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        paths += [path for path in (Path(parent) / name for name in files) if _is_audio(path)]
    return sorted(paths)
