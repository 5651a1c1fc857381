"""One step of a training: forward pass, task loss, AT loss of any number of teachers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from antigram.model.loss.at_loss import compare, released_loss
from antigram.model.loss.sources import LiveGrams, Sources, TeacherRows
from antigram.model.nets.vgg import Vgg
from antigram.model.training.at_effect import Probe
from antigram.model.training.batches import Batch
from antigram.model.training.config import TrainConfig
from antigram.model.training.distributed import DistributedContext
from antigram.model.training.precision import autocast
from antigram.pipeline.errors import InputError

__all__ = ["Step", "Sums"]


@dataclass(slots=True)
class Sums:
    """Sums over clips of one pass, kept on the device so that no step waits for them.

    Attributes:
        sources: names of the teachers.
        device: where the sums are.
        values: ce, right decisions, and the AT loss of each source.
        clips: how many were added.
    """

    sources: tuple[str, ...]
    device: torch.device
    values: Tensor = field(init=False)
    clips: int = 0

    def __post_init__(self) -> None:
        self.values = torch.zeros(2 + len(self.sources), dtype=torch.float64, device=self.device)

    def add(self, ce: Tensor, right: Tensor, at: Tensor, clips: int) -> None:
        """Add the means of a batch: cross-entropy, right decisions, (source,) AT losses."""
        each = [ce.detach().reshape(1) * clips, right.reshape(1), at.detach() * clips]
        self.values += torch.cat(each)
        self.clips += clips

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint: `restore` takes it."""
        return {"values": self.values.tolist(), "clips": self.clips}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Go on from `to_plain`."""
        self.values.copy_(torch.tensor(plain["values"], dtype=torch.float64))
        self.clips = plain["clips"]

    def means(
        self, weights: Mapping[str, float], distributed: DistributedContext
    ) -> dict[str, float | dict[str, float]]:
        """Means over clips: loss, ce, at (before beta), accuracy; AT by source if several."""
        clips = torch.tensor([float(self.clips)], dtype=torch.float64, device=self.device)
        whole = distributed.sum(torch.cat([self.values, clips]))
        ce, right, *each = (whole[:-1] / whole[-1].clamp_min(1)).tolist()
        by_source = dict(zip(self.sources, each, strict=True))
        loss = ce + sum(weights[name] * value for name, value in by_source.items())
        found: dict[str, float | dict[str, float]] = {
            "loss": loss,
            "ce": ce,
            "at": sum(each),
            "accuracy": right,
        }
        return {**found, "at_by_source": by_source} if len(each) > 1 else found


class Step:
    """Forward pass and losses of a batch: the same for training and validation.

    Args:
        net: in training.
        sources: the teachers' side; None without AT.
        config: of the training.
        device: where all of it is.
        forward: the net as the team wraps it, if there is one.
    """

    def __init__(
        self,
        net: Vgg,
        sources: Sources | None,
        config: TrainConfig,
        device: torch.device,
        forward: nn.Module | None = None,
    ) -> None:
        self.net, self.sources, self.config, self.device = net, sources, config, device
        self.forward = forward or net
        self.names = sources.names if sources else ()
        self.weights = {name: config.at_weight(name) for name in self.names}
        self.layers = sources.layers if sources else ()
        weights = list(self.weights.values())
        self._weights = torch.tensor(weights, dtype=torch.float32, device=device)
        self._all = tuple(range(len(self.names)))
        self._some: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, batch: Batch, sums: Sums, probe: Probe | None = None) -> Tensor:
        """Return the batch's mean loss, and add its clips' losses to the sums.

        Args:
            batch: the segments; the teachers' rows in it are taken, layer by layer.
            sums: of the pass.
            probe: looks at the forward pass, and changes nothing.
        """
        config, sources = self.config, self.sources
        at = torch.zeros(len(self.names), device=self.device)  # means by source, before beta
        losses: list[Tensor] = []
        teacher: dict[int, Tensor] = {}
        rows: TeacherRows | None = None
        # A live teacher runs as `antigram cache-grams` of the same --precision runs it.
        with autocast(self.device, config.precision):
            if config.loss == "released":
                teacher = self._released_maps(batch)
            elif sources is not None:
                rows = batch.rows
                if rows is None:
                    rows = sources.batch_rows(batch.read, batch.x)

        def on_tap(layer: int, maps: Tensor) -> None:
            nonlocal at
            if teacher:
                loss = released_loss(maps, teacher[layer])
                losses.append(loss * self._weights[0])
                at = at + loss.detach()
                if probe is not None:

                    def released(maps: Tensor, weights: Tensor) -> Tensor:
                        return released_loss(maps, teacher[layer]) * weights[0]

                    probe.tap(layer, maps, self._all, loss.detach(), released)
                return
            if rows is None:
                raise LookupError(f"layer {layer}: tapped, and no teacher is compared there")
            groups = rows.take(layer)  # gone with this function, before the backward pass
            members = tuple(itertools.chain.from_iterable(numbers for numbers, _ in groups))
            places, weights = self._of(members)
            stacks = [stack for _, stack in groups]

            def loss_of(maps: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
                return compare(maps, stacks, weights, config.aggregation, config.similarity)

            loss, means = loss_of(maps, weights)
            losses.append(loss)
            if probe is not None:
                probe.tap(layer, maps, members, means, lambda *given: loss_of(*given)[0])
            at = at + means if members == self._all else at.index_add(0, places, means)

        with autocast(self.device, config.precision):
            forward = self.forward if self.net.training else self.net
            logits = forward(batch.x, self.layers, config.tap, on_tap)
        ce = functional.cross_entropy(logits.float(), batch.y)
        right = (logits.argmax(1) == batch.y).sum()
        if batch.weight:
            sums.add(ce, right, at, len(batch.y))
        if probe is not None:
            probe.end(ce, len(batch.y) if batch.weight else 0)
        loss = sum(losses, start=ce)
        return loss if batch.weight == 1 else loss * batch.weight

    def _of(self, members: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Places of some sources, on the device, and their weights."""
        if members not in self._some:
            places = torch.tensor(members, device=self.device)
            self._some[members] = places, self._weights[places]
        return self._some[members]

    def _released_maps(self, batch: Batch) -> dict[int, Tensor]:
        only = list(self.sources.members.values()) if self.sources is not None else []
        if len(only) != 1 or not isinstance(only[0], LiveGrams):
            raise InputError("`loss=released` needs one teacher itself: `mode=online`")
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            only[0].net.run_features(
                batch.x, self.layers, self.config.tap, found.__setitem__, stop=True
            )
        return found
