"""List the recordings of a corpus whose labels are in the names of its files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from antigram.pipeline.corpus import CorpusError, Skipped

__all__ = ["named_files"]


def named_files(
    corpus: str, home: Path, pattern: str, name: re.Pattern[str], wanted: str
) -> Iterator[tuple[str, re.Match[str]] | Skipped]:
    """Yield path, relative to ``home``, and matched name of each WAV file, sorted by path.

    Args:
        corpus: name of the corpus, for messages.
        home: the corpus's own folder.
        pattern: glob pattern of the files below it.
        name: what the name of each file has to match.
        wanted: the same for people.

    Yields:
        A path and its match; at the end, the number of hidden files.

    Raises:
        CorpusError: a file is named otherwise.
    """
    hidden = 0
    for path in sorted(home.glob(pattern)):
        if path.name.startswith("."):
            hidden += 1
            continue
        if (match := name.fullmatch(path.name)) is None:
            raise CorpusError(f"{corpus}: {path} is not named {wanted}")
        yield path.relative_to(home).as_posix(), match
    if hidden:
        yield Skipped("hidden file", hidden)
