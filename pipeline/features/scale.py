"""Mean and standard deviation of a store, and checks that normalised values are finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.errors import InputError
from antigram.pipeline.features.listing import Row
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.row_audio import RowResult
from antigram.pipeline.features.row_results import Results

__all__ = ["check_range", "mean_std", "normalised", "ordered_sum"]

_LEAST_STD = float(np.finfo(np.float32).tiny)  # float32 values below this are denormal
_NAMED = 3
_AT_ONCE = 1 << 16


def normalised(
    magnitudes: NDArray[np.float32], mean: float, std: float, dtype: str
) -> NDArray[Any]:
    """Return ``(magnitudes - mean) / std`` in the stored dtype.

    Args:
        magnitudes: array of any shape; overwritten.
        mean: mean of the training split.
        std: standard deviation of the training split.
        dtype: float32 or float16.
    """
    np.subtract(magnitudes, np.float32(mean), out=magnitudes)
    np.multiply(magnitudes, np.float32(1 / std), out=magnitudes)
    return magnitudes.astype(dtype, copy=False)


def mean_std(
    results: Sequence[RowResult], split: Sequence[int], recipe: Recipe, home: Path
) -> tuple[float, float]:
    """Return mean and standard deviation of the training split.

    The sums of the segments are added in their order, so that the result does not depend on the
    number of workers.

    Raises:
        InputError: the training split is empty, or its standard deviation is too small for float32.
    """
    columns = Results.of(results).columns
    if len(columns) != len(split):
        raise ValueError(f"{len(columns)} results, and splits of {len(split)} rows")
    train = columns[np.asarray(split) == 0]
    count = len(train) * math.prod(recipe.shape)
    if not count:
        raise InputError(f"{home}: no segment is in the training split; see `split`")
    mean = ordered_sum(train["total"]) / count
    std = math.sqrt(max(0.0, ordered_sum(train["squares"]) / count - mean**2))
    if train["high"].max() == train["low"].min():
        raise InputError(f"{home}: all {len(train)} training segments are silent: nothing to learn")
    if std < _LEAST_STD:
        raise InputError(
            f"{home}: all {len(train)} training segments are almost silent: their magnitudes' "
            f"standard deviation is {std:.2g}, wanted at least {_LEAST_STD:.2g}. Scale them up."
        )
    return mean, std


def ordered_sum(values: NDArray[np.float64]) -> float:
    """Return the sum as Python adds numbers, one after the other, without a list of all."""
    parts = (values[i : i + _AT_ONCE].tolist() for i in range(0, len(values), _AT_ONCE))
    return float(sum(chain.from_iterable(parts)))


def check_range(
    rows: Sequence[Row],
    results: Sequence[RowResult],
    recipe: Recipe,
    scale: tuple[float, float],
    home: Path,
) -> None:
    """Raise if a normalised value would not be finite, before anything is normalised.

    Normalisation keeps the order of values, so it is enough to check the lowest and the highest
    magnitude of each row.

    Args:
        rows: rows of the store.
        results: result of rendering each row.
        recipe: recipe of the store, for its dtype.
        scale: mean and standard deviation.
        home: the corpus's folder, for the message.

    Raises:
        InputError: some segments have values that the dtype cannot hold; the message names a few.
    """
    columns = Results.of(results).columns
    ends = np.stack([columns["low"], columns["high"]], axis=1).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        values = normalised(ends.copy(), *scale, "float32")
        stored = values.astype(recipe.dtype)
    bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
    if not bad.size:
        return
    named = ", ".join(rows[index].source(recipe.sample_rate) for index in bad[:_NAMED])
    more = f" and {bad.size - _NAMED} more" if bad.size > _NAMED else ""
    half = recipe.dtype == "float16"
    raise InputError(
        f"{home}: {bad.size} of {len(rows)} segments have normalised values up to "
        f"{float(np.abs(values[bad]).max()):.3g}, but {recipe.dtype} ends at "
        f"{float(np.finfo(recipe.dtype).max):.3g}: {named}{more}. "
        f"{'Use `dtype=float32`, or leave' if half else 'Leave'} these recordings out."
    )
