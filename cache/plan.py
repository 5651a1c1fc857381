"""What a cache will hold, before anything is computed; and running the teacher for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from antigram.cache.key import CacheKey
from antigram.cache.layer import ARRAY_OF
from antigram.model.choices import CODECS, DTYPES, Codec, Control, Dtype, precision_of
from antigram.model.loss.codecs import exact_codec, row_shape
from antigram.model.loss.sources import TapSpec
from antigram.model.nets.vgg import Vgg, extractor_digest, tap_shape
from antigram.model.training.checkpoint import Teacher
from antigram.model.training.precision import autocast, set_precision
from antigram.pipeline.audio.augmentation import COLUMNS, Views
from antigram.pipeline.choices import check_choice
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.chunks import ArraySpec

__all__ = ["DEFAULT_ENERGY", "LayerPlan", "plan_layers", "run_taps", "teacher_net"]

DEFAULT_ENERGY = 0.9999
_ROWS_PER_CHUNK = 128


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What a layer of a cache will be.

    Attributes:
        key: identity.
        channels: of the maps.
        positions: frames x frequencies of the maps.
        rank: columns of a low-rank row; None while the pilot has not found it.
        pilot: what the pilot found of a low-rank layer, for the layer's attributes.
    """

    key: CacheKey
    channels: int
    positions: int
    rank: int | None = None
    pilot: Mapping[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of a row's values: those of one clip, or of one view of it."""
        return row_shape(self.key.codec, self.channels, self.positions, self.rank)

    @property
    def views(self) -> int:
        """Rows of a clip."""
        return self.key.views.count if self.key.views else 1

    @property
    def bytes_per_clip(self) -> int:
        """On disk; norms, the energy of a low rank and what was drawn for views included."""
        beside = 12 if self.key.codec == "lowrank" else 8
        if self.key.views:
            beside += 4 * len(COLUMNS)
        return self.views * (math.prod(self.row) * np.dtype(self.key.dtype).itemsize + beside)

    def specs(self, clips: int) -> list[ArraySpec]:
        """The arrays of the layer's group: values, norms, what else the rows need; then views."""
        per = max(1, min(_ROWS_PER_CHUNK // self.views, clips))
        beside = ["norm", "row_norm"] + ["energy"] * (self.key.codec == "lowrank")
        axes = (clips, self.views) if self.key.views else (clips,)
        specs = [
            ArraySpec(ARRAY_OF[self.key.codec], (*axes, *self.row), self.key.dtype, per),
            *(ArraySpec(name, axes, "float32", per) for name in beside),
        ]
        if self.key.views:
            specs.append(ArraySpec("views", (*axes, len(COLUMNS)), "float32", per))
        return specs


def plan_layers(
    store: FeatureStore,
    teacher: Teacher,
    spec: TapSpec,
    *,
    codec: Codec | Literal["auto"] = "auto",
    dtype: Dtype = "float16",
    energy: float | None = None,
    rank: int | None = None,
    precision: str = "32",
    views: Views | None = None,
    control: Control | None = None,
) -> dict[int, LayerPlan]:
    """Key and size of each layer, before anything is computed.

    Args:
        store: the features.
        teacher: the net.
        spec: layers, tap and aggregation.
        codec: ``auto`` takes the smaller of those that lose nothing.
        dtype: float16 or float32, of the stored values.
        energy: for ``lowrank``: share of ||G||^2 that the pilot's clips are to keep.
        rank: for ``lowrank``, in its place.
        precision: of the net's arithmetic: 32 (or float32), tf32 or bf16.
        views: how clips are augmented, and how many views of each are kept.
        control: that the teacher is of (see `control_teacher`); ``mean-gram`` stores one row for
            all segments.

    Raises:
        InputError: the codec cannot hold the aggregation, or an option has no meaning with it.
    """
    if views is not None and not 1 <= views.count <= _ROWS_PER_CHUNK:
        raise InputError(f"`views` {views.count}: wanted 1 to {_ROWS_PER_CHUNK} views of a clip")
    check_choice("codec", codec, ("auto", *CODECS))
    check_choice("dtype", dtype, DTYPES)
    if control == "mean-gram":
        if views is not None:
            raise InputError("`views`: a mean Gram has none; leave them out")
        if codec not in ("auto", "packed", "map"):
            raise InputError(
                f"`codec={codec}`: a mean Gram is no product of maps; use `codec=auto`"
            )
        codec = "packed" if spec.aggregation == "gram" else "map"
    if spec.aggregation != "gram" and codec not in ("auto", "map"):
        raise InputError(
            f"`codec={codec}`: the aggregation {spec.aggregation} is stored as a map; "
            "use `codec=auto`"
        )
    if spec.aggregation == "gram" and codec == "map":
        raise InputError("`codec=map`: holds the other aggregations; use `codec=auto`")
    if codec == "lowrank":
        if energy is not None and rank is not None:
            raise InputError("`energy` and `rank`: one of the two decides; leave the other out")
        if energy is None and rank is None:
            energy = DEFAULT_ENERGY
    elif energy is not None or rank is not None:
        raise InputError("`energy` and `rank` belong to `codec=lowrank`")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"`energy` {energy}: wanted a share of ||G||^2, above 0, at most 1")
    with torch.device("meta"):
        net = Vgg(teacher.arch, 0)
    plans = {}
    for layer in spec.layers:
        channels, positions = tap_shape(teacher.arch, layer, spec.tap, store.shape)
        if rank is not None and not 1 <= rank <= channels:
            raise InputError(
                f"`rank` {rank}: layer {layer} has {channels} channels; wanted 1 to {channels}"
            )
        key = CacheKey(
            extractor=extractor_digest(teacher.state, net, layer, spec.tap),
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
        )
        plans[layer] = LayerPlan(key, channels, positions, rank)
    return plans


def teacher_net(teacher: Teacher, key: CacheKey, device: torch.device) -> Vgg:
    """The teacher on its device, and torch set to the precision that a key names."""
    net = teacher.net().to(device).to(memory_format=torch.channels_last)
    net.eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature
    net.set_tap(key.tap)
    # With bf16 the network runs in bfloat16, and Grams are multiplied in full float32.
    set_precision("tf32" if key.precision == "tf32" else "32")
    return net


@torch.no_grad()
def run_taps(
    net: Vgg,
    x: NDArray[np.float32],
    plans: Sequence[LayerPlan],
    batch_clips: int,
    device: torch.device,
    on_tap: Callable[[LayerPlan, torch.Tensor], None],
) -> None:
    """Run the net over clips (clip, frame, freq), batch by batch, up to the deepest layer."""
    by_layer = {plan.key.layer: plan for plan in plans}
    for start in range(0, len(x), batch_clips):
        batch = torch.from_numpy(x[start : start + batch_clips])[:, None].to(device)
        with autocast(device, plans[0].key.precision):
            net.run_features(
                batch,
                list(by_layer),
                plans[0].key.tap,
                lambda layer, maps: on_tap(by_layer[layer], maps),
                stop=True,
            )
