"""The paper's setting of each corpus: what ``--preset paper`` stands for.

Source: Guizzo, Weyde and Tarroni (2021), section on data. An option given beside a preset wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from antigram.pipeline.errors import InputError

__all__ = ["PRESETS", "preset_for"]

# Keys are fields of the recipe, or options of the corpus.
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "gsc": {"paper": {"words": "digits", "limit_per_class": 1000}},
    "ms-snsd": {"paper": {"hours": "20", "noise": "low"}},
    "librispeech": {"paper": {"unit": "word", "words": "1000", "subset": "train-clean-100"}},
    # Windows of 4 s for emotion; with --seconds 1, for words, they do not overlap.
    "iemocap": {"paper": {"last_window": "end"}},
    "nsynth": {"paper": {"limit": 59_400, "split": "official"}},
    "good-sounds": {"paper": {"balance": True}},
}


def preset_for(corpus: str, name: str | None) -> Mapping[str, Any]:
    """Settings of a preset; none if no name is given.

    Raises:
        InputError: the corpus has no such preset.
    """
    if name is None:
        return {}
    known = PRESETS.get(corpus, {})
    if name not in known:
        raise InputError(f"--preset {name!r}: {corpus} has {', '.join(known) or 'none'}")
    return known[name]
