"""Prepare the domains and the loss of modes that need a second label of the student's segments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from antigram.model.loss.domains import Adversary, Coral, DomainLoss
from antigram.model.nets.backbone import Backbone
from antigram.model.training.config import TrainConfig
from antigram.model.training.distributed import DistributedContext
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.store import FeatureStore

__all__ = ["Domains", "prepare_domains"]

_SHARE = 4  # the student's hidden linear layers are this many times as wide as the discriminator


@dataclass(frozen=True, slots=True)
class Domains:
    """Domains of the segments, and the loss that makes features alike between them.

    Attributes:
        labels: ``(segment,)`` int32 domains of the segments of a store; -1 if a segment has no
            domain, or a domain that does not occur in training.
        loss: the loss; its parameters are trained together with the student's.
    """

    labels: NDArray[np.int32]
    loss: DomainLoss


def prepare_domains(
    store: FeatureStore,
    config: TrainConfig,
    rows: Mapping[str, NDArray[np.int64]],
    net: Backbone,
    device: torch.device,
    distributed: DistributedContext,
    on_message: Callable[[str], None],
) -> Domains | None:
    """Return the domains and the loss of a training; None in modes without a second label.

    Args:
        store: features and labels.
        config: settings of the training.
        rows: indices of the segments of each split.
        net: the student.
        device: device of the student.
        distributed: rank and world size.
        on_message: called with the number of training segments without a domain, if there are any.

    Raises:
        InputError: the store has no such label, fewer than two of its classes occur in training, or
            the world size is above 1.
    """
    if config.against is None:
        return None
    if distributed.size > 1:
        raise InputError(
            f"`mode={config.mode}` trains in one process, and this job has {distributed.size}: "
            "start it without torchrun"
        )
    if config.against not in store.classes:
        raise InputError(
            f"{store.path}: no label {config.against!r} for `against`; it has "
            f"{', '.join(store.classes)}"
        )
    stored = store.labels(config.against)
    train = stored[rows["train"]]
    seen = np.unique(train[train >= 0])
    if len(seen) < 2:
        found = f"only {store.classes[config.against][seen[0]]}" if len(seen) else "none"
        raise InputError(
            f"{store.path}: `against={config.against}`: the {len(train)} training segments must "
            f"have at least two classes of it, and they have {found}; take another label or split"
        )
    if lacking := int((train < 0).sum()):
        on_message(
            f"{lacking} of {len(train)} training segments have no {config.against}, and only the "
            f"loss of {config.task} is computed for them"
        )
    number = np.full(len(store.classes[config.against]) + 1, -1, np.int32)  # the last is that of -1
    number[seen] = np.arange(len(seen))
    labels = number[stored]
    if config.mode == "coral":
        return Domains(labels, Coral(config.beta))
    features, hidden = net.head_sizes
    loss = Adversary(
        features,
        max(1, hidden // _SHARE),
        len(seen),
        dropout=config.dropout,
        beta=config.beta,
        steps=config.epochs * -(-len(train) // config.batch_clips),
        seed=config.seed,
    )
    return Domains(labels, loss.to(device))
