"""Plan the layers of a cache before anything is computed, and run the teacher up to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from antigram.cache.key import CacheKey
from antigram.cache.layer import SCALE, scales_of, values_name
from antigram.model.choices import (
    CODECS,
    ROW_DTYPES,
    Codec,
    Control,
    Layer,
    RowDtype,
    matrix_side,
    precision_of,
)
from antigram.model.loss.codecs import exact_codec, row_shape
from antigram.model.loss.int8 import INT8_REFUSED
from antigram.model.loss.sources import TapSpec
from antigram.model.nets.backbone import Backbone
from antigram.model.training.any_teacher import AnyTeacher
from antigram.model.training.precision import autocast, set_precision
from antigram.pipeline.audio.augmentation import COLUMNS, Views
from antigram.pipeline.choices import check_choice
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.chunks import ArraySpec

__all__ = ["DEFAULT_ENERGY", "LayerPlan", "plan_layers", "run_taps", "teacher_net"]

DEFAULT_ENERGY = 0.9999
_ROWS_PER_CHUNK = 128  # also the most views of a segment, as a chunk has all views of its segments
_CHUNKS_TOGETHER = 1 << 13  # chunks of the values whose norms are one chunk: 2^20 rows


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Key and shape of a layer to build.

    Attributes:
        key: identity of the layer.
        channels: channels of the maps.
        positions: frames x frequencies of the maps, for ``pairwise`` of the grid.
        rank: columns of a ``lowrank`` row; None until `find_rank` has found it.
        pilot: findings of `find_rank`, for the layer's attributes; empty for other codecs.
    """

    key: CacheKey
    channels: int
    positions: int
    rank: int | None = None
    pilot: Mapping[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of the values of one row."""
        key = self.key
        return row_shape(key.codec, self.channels, self.positions, self.rank, key.aggregation)

    @property
    def side(self) -> int:
        """Number of rows of the square matrix that is compared: see `matrix_side`."""
        return matrix_side(self.key.aggregation, self.channels, self.positions)

    @property
    def scales(self) -> int:
        """Number of float16 scales of a row: see `model.loss.int8`; 0 unless it is int8."""
        return scales_of(self.key, self.side)

    @property
    def views(self) -> int:
        """Number of rows of a segment: the number of its views, or 1."""
        return self.key.views.count if self.key.views else 1

    @property
    def bytes_per_clip(self) -> int:
        """Bytes of a segment on disk, including norms, scales, energy and augmentation."""
        scalars = (12 if self.key.codec == "lowrank" else 8) + 2 * self.scales
        if self.key.views:
            scalars += 4 * len(COLUMNS)
        return self.views * (math.prod(self.row) * np.dtype(self.key.dtype).itemsize + scalars)

    def specs(self, clips: int, small_rows: int | None = None) -> list[ArraySpec]:
        """Return the arrays of the layer: values, norms, energy of ``lowrank``, scales, and views.

        Args:
            clips: segments of the store.
            small_rows: rows in a chunk of all arrays but the values, in an existing layer; by
                default the rows of many chunks of the values.
        """
        rows = max(1, min(_ROWS_PER_CHUNK // self.views, clips))
        small = small_rows or max(1, min(rows * _CHUNKS_TOGETHER, clips))
        scalars = ["norm", "row_norm"] + ["energy"] * (self.key.codec == "lowrank")
        axes = (clips, self.views) if self.key.views else (clips,)
        specs = [
            ArraySpec(values_name(self.key), (*axes, *self.row), self.key.dtype, rows),
            *(ArraySpec(name, axes, "float32", small) for name in scalars),
        ]
        if self.scales:
            specs.append(ArraySpec(SCALE, (*axes, self.scales), "float16", rows))
        if self.key.views:
            specs.append(ArraySpec("views", (*axes, len(COLUMNS)), "float32", small))
        return specs


def plan_layers(
    store: FeatureStore,
    teacher: AnyTeacher,
    spec: TapSpec,
    *,
    codec: Codec | Literal["auto"] = "auto",
    dtype: RowDtype = "float16",
    energy: float | None = None,
    rank: int | None = None,
    precision: str = "32",
    views: Views | None = None,
    control: Control | None = None,
) -> dict[Layer, LayerPlan]:
    """Plan the layers of a cache, without computing their rows.

    Args:
        store: features.
        teacher: network that computes the rows.
        spec: layers, tap and aggregation.
        codec: form of the rows; ``auto`` is the smaller lossless codec.
        dtype: dtype of the stored values: float32, float16 or int8.
        energy: share of ||G||^2 that every segment of the pilot keeps; for ``lowrank`` only, by
            default 0.9999.
        rank: columns of a ``lowrank`` row, instead of ``energy``.
        precision: precision of the teacher's arithmetic: 32 (or float32), tf32 or bf16.
        views: augmentation of the segments, and number of views of each; None for no augmentation.
        control: kind of control that the teacher is (see `control_teacher`); ``mean-gram`` stores
            one row for all segments.

    Returns:
        Plans by layer.

    Raises:
        InputError: a value is invalid, the codec cannot hold the aggregation, ``energy`` or
            ``rank`` do not apply to it, or maps are smaller than the grid.
    """
    of_matrix = spec.aggregation in ("gram", "pairwise")
    if views is not None and not 1 <= views.count <= _ROWS_PER_CHUNK:
        raise InputError(f"`views` {views.count}: wanted 1 to {_ROWS_PER_CHUNK} views of a clip")
    check_choice("codec", codec, ("auto", *CODECS))
    check_choice("dtype", dtype, ROW_DTYPES)
    if control == "mean-gram":
        if views is not None:
            raise InputError("`views`: a mean Gram has none; leave them out")
        if codec not in ("auto", "packed", "map"):
            raise InputError(
                f"`codec={codec}`: a mean Gram is no product of maps; use `codec=auto`"
            )
        codec = "packed" if of_matrix else "map"
    if not of_matrix and codec not in ("auto", "map"):
        raise InputError(
            f"`codec={codec}`: the aggregation {spec.aggregation} is stored as a map; "
            "use `codec=auto`"
        )
    if of_matrix and codec == "map":
        raise InputError("`codec=map`: holds the other aggregations; use `codec=auto`")
    if dtype == "int8" and not of_matrix:
        raise InputError(INT8_REFUSED)
    if codec == "lowrank":
        if energy is not None and rank is not None:
            raise InputError("`energy` and `rank`: one of the two decides; leave the other out")
        if energy is None and rank is None:
            energy = DEFAULT_ENERGY
    elif energy is not None or rank is not None:
        raise InputError("`energy` and `rank` belong to `codec=lowrank`")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"`energy` {energy}: wanted a share of ||G||^2, above 0, at most 1")
    plans = {}
    for layer in spec.layers:
        channels, *size = teacher.map_shape(layer, spec.tap, store)
        grid = spec.grid(layer, (size[0], size[1]))
        positions = math.prod(grid or size)
        side = matrix_side(spec.aggregation, channels, positions)
        if rank is not None and not 1 <= rank <= side:
            what = "channels" if grid is None else "positions"
            raise InputError(f"`rank` {rank}: layer {layer} has {side} {what}; wanted 1 to {side}")
        key = CacheKey(
            extractor=teacher.digest(layer, spec.tap),
            arch=teacher.arch,
            features=store.fingerprint,
            layer=layer,
            tap=spec.tap,
            aggregation=spec.aggregation,
            codec=exact_codec(spec.aggregation, channels, positions) if codec == "auto" else codec,
            dtype=dtype,
            energy=energy,
            rank=rank,
            precision=precision_of(precision),
            views=views,
            control="mean-gram" if control == "mean-gram" else None,
            grid=grid,
        )
        plans[layer] = LayerPlan(key, channels, positions, rank)
    return plans


def teacher_net(teacher: AnyTeacher, key: CacheKey, device: torch.device) -> Backbone:
    """Build a frozen teacher on a device, and set torch to the precision of a key."""
    net = teacher.net().to(device).to(memory_format=torch.channels_last)
    net.eval().requires_grad_(requires_grad=False)
    net.set_tap(key.tap)
    # With bf16, only the network runs in bfloat16; Grams are computed in full float32.
    set_precision("tf32" if key.precision == "tf32" else "32")
    return net


@torch.no_grad()
def run_taps(
    net: Backbone,
    x: NDArray[np.float32],
    plans: Sequence[LayerPlan],
    batch_clips: int,
    device: torch.device,
    on_tap: Callable[[LayerPlan, torch.Tensor], None],
) -> None:
    """Run the teacher over segments, batch by batch, up to the deepest layer.

    Args:
        net: from `teacher_net`.
        x: ``(segment, frame, freq)`` features, or ``(segment, sample)`` audio.
        plans: layers, which differ in number only.
        batch_clips: segments in a batch.
        device: device of ``net``.
        on_tap: called with a layer's plan and its maps, ``(batch, channel, frame, freq)``.
    """
    by_layer = {plan.key.layer: plan for plan in plans}
    for start in range(0, len(x), batch_clips):
        batch = torch.from_numpy(x[start : start + batch_clips]).to(device)
        if batch.ndim == 3:
            batch = batch[:, None]  # features have one channel
        with autocast(device, plans[0].key.precision):
            net.run_features(
                batch,
                list(by_layer),
                plans[0].key.tap,
                lambda layer, maps: on_tap(by_layer[layer], maps),
                stop=True,
            )
