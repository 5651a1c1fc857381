"""`antigram.build_cache`: from a feature store, or from batches of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from antigram.cache.build import Built
from antigram.cache.build import build_cache as build_from_store
from antigram.cache.from_loader import build_from_loader
from antigram.cache.plan import LayerPlan
from antigram.model.choices import Aggregation, Codec, Layer, RowDtype
from antigram.model.loss.pairwise import Grid
from antigram.model.training.checkpoint import Teacher
from antigram.model.training.distributed import DistributedContext
from antigram.pipeline.callbacks import OnProgress
from antigram.pipeline.execution.dask_cluster import DaskCluster
from antigram.pipeline.features.store import FeatureStore

__all__ = ["build_cache"]


@overload
def build_cache(
    net: nn.Module,
    layers: Sequence[Layer],
    loader: Iterable[Any],
    target: str | Path,
    *,
    aggregation: Aggregation = ...,
    grid: Grid | None = ...,
    codec: Codec | Literal["auto"] = ...,
    dtype: RowDtype = ...,
    device: torch.device | str | None = ...,
    on_progress: OnProgress = ...,
) -> Built: ...


@overload
def build_cache(
    store: FeatureStore,
    teacher: Teacher,
    plans: Mapping[Layer, LayerPlan],
    target: Path,
    *,
    made_from: Mapping[str, str],
    batch_clips: int = ...,
    device: torch.device,
    on_progress: OnProgress = ...,
    distributed: DistributedContext | None = ...,
    cluster: DaskCluster | None = ...,
    check_all: bool = ...,
) -> Built: ...


def build_cache(*args: Any, **kwargs: Any) -> Built:
    """Run a teacher once over all segments, and store its rows.

    ``build_cache(net, layers, loader, target, ...)`` runs any network over the batches of a loader:
    see `antigram.cache.from_loader.build_from_loader`.

    ``build_cache(store, teacher, plans, target, made_from=..., device=...)`` runs a teacher from a
    checkpoint over a feature store: see `antigram.cache.build.build_cache`.

    Returns:
        The cache, and the cost of building it.

    Raises:
        InputError: as the function that is called.
        StoredDataError: likewise.
    """
    if "net" in kwargs or (args and isinstance(args[0], nn.Module)):
        return build_from_loader(*args, **kwargs)
    return build_from_store(*args, **kwargs)
