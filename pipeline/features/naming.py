"""Make a recipe from a user's settings, and the default name of the store made from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from antigram.pipeline.corpus import Corpus
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.recipe import Recipe

__all__ = ["default_overlap", "recipe_for", "store_name"]


def recipe_for(corpus: Corpus, settings: Mapping[str, Any]) -> tuple[Corpus, Recipe]:
    """Make a recipe from settings, with the defaults of a corpus.

    Args:
        corpus: the adapter.
        settings: fields of the recipe, and options of the corpus.

    Returns:
        The corpus, adapted to its options, and the recipe.

    Raises:
        InputError: the corpus has no such option, or a value is not accepted.
    """
    fields = {key: value for key, value in settings.items() if key in Recipe.__dataclass_fields__}
    corpus_options = {key: value for key, value in settings.items() if key not in fields}
    if unknown := sorted(set(corpus_options) - set(corpus.options)):
        known = ", ".join(map(_named, corpus.options)) or "none of its own"
        raise InputError(f"{_named(unknown[0])}: {corpus.name} has no such option; it has {known}")
    for key, value in corpus_options.items():
        if not str(value).strip():
            raise InputError(f"{_named(key)} {value!r}: is empty; give a value, or leave it out")
    options = {k: corpus.resolve(k, v) for k, v in {**corpus.options, **corpus_options}.items()}
    corpus = corpus.adapt(corpus, options)
    options = {key: value for key, value in options.items() if value}
    seconds = fields.get("seconds", corpus.seconds)
    defaults = {
        "seconds": seconds,
        "overlap": default_overlap(corpus, seconds),
        "longer": corpus.longer,
        "noise": corpus.noise,
    }
    return corpus, Recipe(corpus=corpus.name, options=options, **{**defaults, **fields})


def _named(option: str) -> str:
    return f"`{option}`"


def store_name(corpus: Corpus, recipe: Recipe) -> str:
    """Return the default name of a store: the corpus, and the settings that are not defaults."""
    parts = [corpus.name]
    if recipe.noise != corpus.noise:
        parts.append(recipe.noise)
    if recipe.snr_mode != "exact":
        parts.append(recipe.snr_mode)
    parts += [
        value.replace(",", "+")
        for key, value in sorted(recipe.options.items())
        if value != corpus.options[key]
    ]
    if recipe.seconds != corpus.seconds:
        parts.append(f"{recipe.seconds:g}s")
    if recipe.longer == "segment" and recipe.overlap != default_overlap(corpus, recipe.seconds):
        parts.append(f"overlap{recipe.overlap:g}")
    if recipe.split != "random":
        parts.append(recipe.split.replace(":", "-"))
    if recipe.within:
        parts.append(f"within-{recipe.within[:8]}")
    if recipe.last_window != "pad":
        parts.append(recipe.last_window)
    if recipe.limit_per_class:
        parts.append(f"{recipe.limit_per_class}-a-class")
    if recipe.limit:
        parts.append(f"limit{recipe.limit}")
    if recipe.balance:
        parts.append("balanced")
    if recipe.features != "magnitude":
        parts.append(recipe.features + (str(recipe.n_mels) if recipe.n_mels else ""))
    usual = Recipe(corpus=recipe.corpus)
    for field, mark in (("sample_rate", "hz"), ("n_fft", "fft"), ("hop", "hop")):
        if (value := getattr(recipe, field)) != getattr(usual, field):
            parts.append(f"{mark}{value}")
    if recipe.seed:
        parts.append(f"seed{recipe.seed}")
    if recipe.dtype != "float32":
        parts.append("f16")
    return "-".join(parts)[:120]


def default_overlap(corpus: Corpus, seconds: float) -> float:
    """Return the default overlap; one-second windows (words) do not overlap, as in the paper."""
    return 0.0 if seconds == 1 else corpus.overlap
