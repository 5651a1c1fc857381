"""Any network as the teacher of a cache that is built from batches: see `cache.from_loader`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antigram.cache.key import CacheKey
from antigram.cache.loaded import LoadedBatch
from antigram.cache.plan import LayerPlan
from antigram.model.choices import Aggregation, Codec, Layer, RowDtype
from antigram.model.loss.codecs import encode_rows, exact_codec
from antigram.model.loss.pairwise import Grid, default_grid
from antigram.model.nets.arch import Arch
from antigram.model.nets.backbone import Backbone
from antigram.model.nets.external import module_digest
from antigram.model.nets.hooks import check_names, watch
from antigram.pipeline.errors import InputError

__all__ = ["NOT_KNOWN", "Form", "LoaderTeacher", "frozen", "names_of"]

NOT_KNOWN = ""  # fingerprint of the segments, before the loader has ended


class _Enough(Exception):
    """Raised in the forward pass when all layers have run."""


@dataclass(frozen=True, slots=True)
class Form:
    """In which form rows are stored: as `build_from_loader` takes it."""

    aggregation: Aggregation
    grid: Grid | None
    codec: Codec | Literal["auto"]
    dtype: RowDtype


class LoaderTeacher:
    """The network, with the plans of its layers once the size of its maps is known.

    Args:
        net: the network.
        names: layer -> name of the module.
        form: form of the rows.
    """

    def __init__(self, net: nn.Module, names: Mapping[Layer, str], form: Form) -> None:
        self.net, self.names, self.form = net, names, form
        self.layer_of = {name: layer for layer, name in names.items()}
        tensor = next((t for t in net.state_dict().values() if isinstance(t, Tensor)), None)
        self.device = torch.device("cpu") if tensor is None else tensor.device
        self.source = module_digest(net)
        self.plans: dict[Layer, LayerPlan] = {}

    def extractor(self, name: str) -> str:
        """Return the digest of the network and of the module whose output is stored."""
        return hashlib.sha256(f"{self.source}\0{name}".encode()).hexdigest()

    def run(self, batch: LoadedBatch) -> None:
        """Compute the rows of a batch; the first batch decides the plans."""
        left, first = set(self.names.values()), not self.plans

        def on_tap(name: str, maps: Tensor) -> None:
            layer = self.layer_of[name]
            if len(maps) != len(batch.ids):
                raise InputError(
                    f"`layers` {name!r}: its output has {len(maps)} segments, the batch of "
                    f"`loader` has {len(batch.ids)} ids; wanted one id for each segment"
                )
            if first:
                self.plans[layer] = self._plan(layer, maps)
            batch.rows[layer] = self._rows(self.plans[layer], maps, batch.ids)
            left.discard(name)
            if not first and not left:  # the first pass is complete, so that mistakes are noticed
                raise _Enough

        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            try:
                with watch(self.net, self.names.values(), on_tap):
                    batch.run(self.net, self.device)
            except _Enough:
                return

    def _plan(self, layer: Layer, maps: Tensor) -> LayerPlan:
        form, size = self.form, (maps.shape[2], maps.shape[3])
        pairs = form.aggregation == "pairwise"
        grid = (form.grid or default_grid(size)) if pairs else None
        positions = math.prod(grid or size)
        codec = form.codec
        if codec == "auto":
            codec = exact_codec(form.aggregation, maps.shape[1], positions)
        net = self.net
        kind = f"{type(net).__module__.rpartition('.')[2]}.py:{type(net).__qualname__}"
        key = CacheKey(
            extractor=self.extractor(self.names[layer]),
            arch=net.arch if isinstance(net, Backbone) else Arch(kind, source=self.source),
            features=NOT_KNOWN,
            layer=layer,
            tap="relu",
            aggregation=form.aggregation,
            codec=codec,
            dtype=form.dtype,
            grid=grid,
        )
        return LayerPlan(key, maps.shape[1], positions)

    def _rows(self, plan: LayerPlan, maps: Tensor, ids: Sequence[str]) -> tuple[NDArray[Any], ...]:
        key = plan.key
        dtype = getattr(torch, key.dtype)
        rows = encode_rows(maps, key.aggregation, dtype, key.codec, grid=key.grid)
        if tuple(rows.data.shape[1:]) != plan.row:
            raise InputError(
                f"`layers` {key.layer!r}: rows of {tuple(rows.data.shape[1:])} in this batch, of "
                f"{plan.row} in the first; wanted segments of the same size, `codec` 'packed', or "
                "`aggregation` 'pairwise'"
            )
        finite = torch.isfinite(rows.norm) & torch.isfinite(rows.row_norm)
        if not finite.all():
            odd = ids[int((~finite).nonzero()[0])]
            raise InputError(
                f"`layers` {key.layer!r}: the maps of segment {odd!r} are not finite numbers; look "
                "at its input and at the weights of `net`"
            )
        return tuple(tensor.cpu().numpy() for tensor in rows.arrays())


def names_of(net: nn.Module, layers: Sequence[Layer]) -> dict[Layer, str]:
    """Return the module of each layer.

    Raises:
        InputError: there is no layer, or the network has no such module or convolution layer.
    """
    if isinstance(layers, str | int) or not layers:
        raise InputError(f"`layers` is {layers!r}; wanted a list of modules of `net`")
    names: dict[Layer, str] = {
        layer: _numbered(net, layer) if isinstance(layer, int) else layer for layer in layers
    }
    check_names(net, names.values())
    if len(set(names.values())) < len(names):
        raise InputError(f"`layers` {list(layers)}: a number and a name stand for one module")
    return names


def _numbered(net: nn.Module, number: int) -> str:
    """Return the name of the ReLU behind a convolution layer of a VGG, counted from 1."""
    features = getattr(net, "features", None)
    modules = list(features) if isinstance(features, nn.Sequential) else []
    convolutions = [i for i, module in enumerate(modules) if isinstance(module, nn.Conv2d)]
    if not 1 <= number <= len(convolutions):
        raise InputError(
            f"`layers` {number}: {type(net).__name__} has {len(convolutions)} numbered convolution "
            "layers (those of `features`, in a VGG); name a module instead"
        )
    behind = range(convolutions[number - 1], len(modules))
    relu = next((i for i in behind if isinstance(modules[i], nn.ReLU)), convolutions[number - 1])
    return f"features.{relu}"


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Put a network into eval mode in the block, and its modules back into theirs afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
