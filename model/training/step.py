"""One step of a training: forward pass, cross-entropy, and AT loss of any number of teachers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from antigram.model.choices import Layer
from antigram.model.loss.at_loss import released_loss
from antigram.model.loss.compare import compare
from antigram.model.loss.domains import DomainLoss
from antigram.model.loss.sources import LiveGrams, Sources, TeacherRows
from antigram.model.nets.backbone import Backbone
from antigram.model.training.at_effect import Probe
from antigram.model.training.batches import Batch
from antigram.model.training.config import TrainConfig
from antigram.model.training.distributed import DistributedContext
from antigram.model.training.precision import autocast
from antigram.pipeline.errors import InputError

__all__ = ["Step", "Sums"]


@dataclass(slots=True)
class Sums:
    """Sums of losses over the segments of a pass, kept on the device so that no step waits.

    Attributes:
        sources: names of the teachers.
        device: device of the sums.
        measures: names of the values of a loss between domains.
        values: ``(2 + teacher,)`` float64: sums of the cross-entropy, of correct predictions, and
            of each teacher's AT loss before beta.
        of_domains: ``(1 + measure,)`` float64: the number of segments that count for the measures,
            and the sum of each measure.
        clips: number of segments.
    """

    sources: tuple[str, ...]
    device: torch.device
    measures: tuple[str, ...] = ()
    values: Tensor = field(init=False)
    of_domains: Tensor = field(init=False)
    clips: int = 0

    def __post_init__(self) -> None:
        count = 1 + len(self.measures)
        self.of_domains = torch.zeros(count, dtype=torch.float64, device=self.device)
        self.values = torch.zeros(2 + len(self.sources), dtype=torch.float64, device=self.device)

    def add(self, ce: Tensor, correct: Tensor, at: Tensor, clips: int) -> None:
        """Add the losses of a batch.

        Args:
            ce: mean cross-entropy.
            correct: number of correct predictions.
            at: ``(teacher,)`` mean AT losses, before beta.
            clips: number of segments in the batch.
        """
        sums = [ce.detach().reshape(1) * clips, correct.reshape(1), at.detach() * clips]
        self.values += torch.cat(sums)
        self.clips += clips

    def to_plain(self) -> dict[str, Any]:
        """Return the sums as plain types, to store in last.pt."""
        plain = {"values": self.values.tolist(), "clips": self.clips}
        return {**plain, "domains": self.of_domains.tolist()} if self.measures else plain

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Set the sums to a result of `to_plain`."""
        self.values.copy_(torch.tensor(plain["values"], dtype=torch.float64))
        if self.measures:
            self.of_domains.copy_(torch.tensor(plain["domains"], dtype=torch.float64))
        self.clips = plain["clips"]

    def means(
        self, weights: Mapping[str, float], distributed: DistributedContext
    ) -> dict[str, float | dict[str, float] | None]:
        """Return means over the segments of all ranks.

        Args:
            weights: factor of each teacher's AT loss.
            distributed: rank and world size.

        Returns:
            ``loss``, ``ce``, ``at`` (before beta, summed over teachers) and ``accuracy``; with
            several teachers also ``at_by_source``. A loss between domains adds its measures, which
            ``loss`` does not include; a measure is None if no segment counts for it.
        """
        clips = torch.tensor([float(self.clips)], dtype=torch.float64, device=self.device)
        sums = distributed.sum(torch.cat([self.values, clips]))
        ce, accuracy, *at = (sums[:-1] / sums[-1].clamp_min(1)).tolist()
        by_source = dict(zip(self.sources, at, strict=True))
        loss = ce + sum(weights[name] * value for name, value in by_source.items())
        means: dict[str, float | dict[str, float] | None] = {
            "loss": loss,
            "ce": ce,
            "at": sum(at),
            "accuracy": accuracy,
        }
        if self.measures:
            count, *measured = self.of_domains.tolist()  # of one process: see `prepare_domains`
            for name, value in zip(self.measures, measured, strict=True):
                means[name] = value / count if count else None
        return {**means, "at_by_source": by_source} if len(at) > 1 else means


class Step:
    """Forward pass and losses of a batch, the same for training and validation.

    Args:
        net: the student.
        sources: sources of the teachers' rows; None without AT.
        config: settings of the training.
        device: device of student, teachers and batches.
        forward: the student as `DistributedContext.wrap` returns it; by default ``net``.
        domain_loss: loss between the domains of a batch; None in modes without a second label.
        class_weights: ``(class,)`` float32 weights in the cross-entropy; None for equal weights.
    """

    def __init__(
        self,
        net: Backbone,
        sources: Sources | None,
        config: TrainConfig,
        device: torch.device,
        forward: nn.Module | None = None,
        domain_loss: DomainLoss | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        self._class_weights = class_weights
        self.domain_loss = domain_loss
        self.measures = domain_loss.measures if domain_loss is not None else ()
        self.net, self.sources, self.config, self.device = net, sources, config, device
        self.forward = forward or net
        self.names = sources.names if sources else ()
        self.weights = {name: config.at_weight(name) for name in self.names}
        self.layers = sources.layers if sources else ()
        self._weights = tuple(self.weights.values())
        self._all = tuple(range(len(self.names)))
        self._none = torch.zeros(len(self.names), device=device)
        self._some: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, batch: Batch, sums: Sums, probe: Probe | None = None) -> Tensor:
        """Return the mean loss of a batch, and add its losses to the sums.

        Args:
            batch: segments; the teachers' rows are taken from it, layer by layer.
            sums: sums of the pass.
            probe: observes the forward pass without changing it.
        """
        config, sources = self.config, self.sources
        at = self._none  # AT loss by teacher, before beta
        losses: list[Tensor] = []
        teacher: dict[Layer, Tensor] = {}
        rows: TeacherRows | None = None
        # A live teacher runs in the same precision as when a cache is built.
        with autocast(self.device, config.precision):
            if config.loss == "released":
                teacher = self._released_maps(batch)
            elif sources is not None:
                rows = batch.rows
                if rows is None:
                    rows = sources.batch_rows(batch.read, batch.x)

        def on_tap(layer: Layer, maps: Tensor) -> None:
            nonlocal at
            if teacher:
                loss = released_loss(maps, teacher[layer])
                losses.append(loss * self._weights[0])
                at = at + loss.detach()
                if probe is not None:

                    def released(maps: Tensor, weights: Sequence[float]) -> Tensor:
                        return released_loss(maps, teacher[layer]) * weights[0]

                    probe.tap(layer, maps, self._all, loss.detach(), released)
                return
            if rows is None:
                raise LookupError(f"layer {layer}: tapped, and no teacher is compared there")
            groups = rows.take(layer)  # freed when this function returns, before the backward pass
            members = tuple(itertools.chain.from_iterable(numbers for numbers, _ in groups))
            weights = [self._weights[member] for member in members]
            stacks = [stack for _, stack in groups]

            def loss_of(maps: Tensor, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
                return compare(maps, stacks, weights, config.aggregation, config.similarity)

            loss, means = loss_of(maps, weights)
            losses.append(loss)
            if probe is not None:
                probe.tap(layer, maps, members, means, lambda *args: loss_of(*args)[0])
            if members != self._all:
                at = at.index_add(0, self._indices(members), means)
            else:
                at = means if at is self._none else at + means

        features: list[Tensor] = []
        with autocast(self.device, config.precision):
            forward = self.forward if self.net.training else self.net
            on_features = None if self.domain_loss is None else features.append
            logits = forward(batch.x, self.layers, config.tap, on_tap, on_features)
        ce = self._cross_entropy(logits.float(), batch.y)
        correct = (logits.argmax(1) == batch.y).sum()
        if self.domain_loss is not None:
            self.domain_loss.train(self.net.training)
            loss, measured = self.domain_loss(features[0], batch.domains)
            losses.append(loss)
            sums.of_domains += measured
        if batch.weight:
            sums.add(ce, correct, at, len(batch.y))
        if probe is not None:
            probe.end(ce, len(batch.y) if batch.weight else 0)
        loss = sum(losses, start=ce)
        return loss if batch.weight == 1 else loss * batch.weight

    def _cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the mean over segments of the weighted cross-entropy.

        torch's own weighted mean divides by the weights of a batch, so that a segment would count
        more or less by the company it is in, and two processes would not do what one does.
        """
        if self._class_weights is None:
            return functional.cross_entropy(logits, y)
        weights = self._class_weights
        return functional.cross_entropy(logits, y, weight=weights, reduction="none").mean()

    def _indices(self, members: tuple[int, ...]) -> Tensor:
        """Return the indices of some teachers as a tensor on the device."""
        if members not in self._some:
            self._some[members] = torch.tensor(members, device=self.device)
        return self._some[members]

    def _released_maps(self, batch: Batch) -> dict[Layer, Tensor]:
        sources = list(self.sources.members.values()) if self.sources is not None else []
        if len(sources) != 1 or not isinstance(sources[0], LiveGrams):
            raise InputError("`loss=released` needs one teacher itself: `mode=online`")
        maps: dict[Layer, Tensor] = {}
        with torch.no_grad():
            sources[0].net.run_features(
                batch.x, self.layers, self.config.tap, maps.__setitem__, stop=True
            )
        return maps
