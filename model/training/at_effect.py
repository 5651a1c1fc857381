"""Measure the effect of AT: similarities, and gradients of AT relative to the cross-entropy.

The measurements do not change a training: they draw no random number, and their gradients reach no
parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from antigram.model.choices import Layer
from antigram.model.loss.sources import Sources
from antigram.model.training.distributed import DistributedContext

__all__ = ["Effect", "Gradients", "Probe", "Similarities", "Table", "effect_note"]

# Layer -> teacher -> value; layers are text, as JSON has it.
Table = dict[str, dict[str, Any]]
# Computes the loss of a layer from its maps and a weight for each teacher that is compared there.
LossOf = Callable[[Tensor, Sequence[float]], Tensor]

_LITTLE = 0.01  # an AT gradient below this share of the cross-entropy's has next to no effect


class Probe(Protocol):
    """Observes the forward pass of a step."""

    def tap(
        self, layer: Layer, maps: Tensor, members: Sequence[int], means: Tensor, loss_of: LossOf
    ) -> None:
        """Receive maps and similarities at a tap; called for each layer that is compared.

        Args:
            layer: layer of the student.
            maps: maps of the student at the tap, ``(batch, channel, frame, freq)``.
            members: teachers that are compared at this layer, as indices into `Sources.names`.
            means: ``(teacher,)`` similarities, averaged over the batch.
            loss_of: computes the AT loss from maps and a weight for each of these teachers.
        """

    def end(self, ce: Tensor, segments: int) -> None:
        """Receive the cross-entropy; called after the forward pass.

        Args:
            ce: mean cross-entropy of the batch.
            segments: number of segments in the batch; 0 if they only fill in for an empty share of
                this rank, and do not count.
        """


def _pairs(sources: Sources) -> list[tuple[Layer, int]]:
    """Return pairs of a layer and a teacher's index, for all teachers compared at that layer."""
    specs = [source.spec for source in sources.members.values()]
    return [(n, i) for n in sources.layers for i, spec in enumerate(specs) if n in spec.layers]


def _table(sources: Sources, values: Mapping[tuple[Layer, int], Any]) -> Table:
    table: Table = {}
    for (layer, teacher), value in values.items():
        table.setdefault(str(layer), {})[sources.names[teacher]] = value
    return table


class Similarities:
    """A `Probe` that averages similarities over the segments of a pass, by layer and teacher.

    Args:
        sources: the teachers.
        device: device of the student.
    """

    def __init__(self, sources: Sources, device: torch.device) -> None:
        self._sources = sources
        self._pairs = _pairs(sources)
        self._sums = torch.zeros(len(self._pairs) + 1, dtype=torch.float64, device=device)
        self._of_batch: dict[tuple[Layer, int], Tensor] = {}

    def tap(
        self, layer: Layer, maps: Tensor, members: Sequence[int], means: Tensor, loss_of: LossOf
    ) -> None:
        """See `Probe`."""
        del maps, loss_of
        for teacher, mean in zip(members, means.reshape(-1), strict=True):
            self._of_batch[layer, teacher] = mean.double()

    def end(self, ce: Tensor, segments: int) -> None:
        """See `Probe`."""
        del ce
        values = [self._of_batch.pop(pair) for pair in self._pairs]
        if segments:
            one = torch.ones((), dtype=torch.float64, device=self._sums.device)
            self._sums += torch.stack([*values, one]) * segments

    def means(self, distributed: DistributedContext) -> Table:
        """Return the means over the segments of all ranks."""
        sums = distributed.sum(self._sums.clone())
        means = (sums[:-1] / sums[-1].clamp_min(1)).tolist()
        return _table(self._sources, dict(zip(self._pairs, means, strict=True)))


class Gradients:
    """A `Probe` of one training batch that compares the gradients of AT and cross-entropy.

    At each tap, and for each teacher, it divides the norm of the AT gradient by the norm of the
    cross-entropy gradient; both are taken with respect to the tap's feature maps. The AT gradient
    belongs to the similarity to this one teacher, and is not yet multiplied by beta. The ratio is
    None if the cross-entropy gradient is zero. It is 0 if the tap is the network's input, as AT
    cannot change any weights from there.

    The cross-entropy gradient takes one backward pass, from the loss down to the lowest tap. It
    computes no gradients of weights and retains the graph for the training step.

    Args:
        sources: the teachers.
        on_ratios: called with the ratios.
    """

    def __init__(self, sources: Sources, on_ratios: Callable[[Table], None]) -> None:
        self._sources, self._on_ratios = sources, on_ratios
        self._at: dict[tuple[Layer, int], Tensor] = {}
        self._maps: dict[Layer, Tensor] = {}

    def tap(
        self, layer: Layer, maps: Tensor, members: Sequence[int], means: Tensor, loss_of: LossOf
    ) -> None:
        """See `Probe`."""
        del means
        if not maps.requires_grad:
            return
        self._maps[layer] = maps
        leaf = maps.detach().requires_grad_()
        for number, teacher in enumerate(members):
            weights = [float(number == other) for other in range(len(members))]
            with torch.enable_grad():
                loss = loss_of(leaf, weights)
            self._at[layer, teacher] = _norm(torch.autograd.grad(loss, leaf)[0])

    def end(self, ce: Tensor, segments: int) -> None:
        """Compute the norm of the AT gradient over the norm of the cross-entropy's, at each tap.

        Args:
            ce: mean cross entropy of the batch.
            segments: not used, see `Probe.end`.
        """
        del segments
        layers = list(self._maps)
        slopes = torch.autograd.grad(ce, list(self._maps.values()), retain_graph=True)
        norms = {layer: _norm(slope).item() for layer, slope in zip(layers, slopes, strict=True)}
        self._maps = {}
        ratios: dict[tuple[Layer, int], float | None] = dict.fromkeys(_pairs(self._sources), 0.0)
        for (layer, teacher), at in self._at.items():
            ratios[layer, teacher] = at.item() / norms[layer] if norms[layer] else None
        self._on_ratios(_table(self._sources, ratios))


def _norm(slope: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(slope, dtype=torch.float64)
    return norm


class Effect:
    """The effect of AT over a run: similarities over validation, and ratios of gradients.

    Args:
        sources: the teachers; None without AT, when there is nothing to measure.
        device: device of the student.
        known: result of `to_plain`, if the run is resumed; else empty.
        leads: whether gradients are measured on this rank.
    """

    def __init__(
        self,
        sources: Sources | None,
        device: torch.device,
        known: Mapping[str, Any],
        *,
        leads: bool = True,
    ) -> None:
        self._sources, self._device, self._leads = sources, device, leads
        unknown: Table | None = None if sources else {}
        self.at_initial: Table | None = known.get("at_initial", unknown)
        self.at_best: Table | None = known.get("at_best", unknown)
        self.gradient_ratio: Table | None = known.get("gradient_ratio", unknown)
        self._first: Table = known.get("first", {})
        self._last: Table = known.get("last", {})

    def to_plain(self) -> dict[str, Any]:
        """Return the state to store in last.pt, at any step."""
        return {**self.to_json(), "first": self._first, "last": self._last}

    def to_json(self) -> dict[str, Any]:
        """Return fields of result.json; None if the run began in a version that did not measure."""
        return {
            "at_initial": self.at_initial,
            "at_best": self.at_best,
            "gradient_ratio": self.gradient_ratio,
        }

    def similarities(self) -> Similarities | None:
        """Return a probe for a pass over validation; None without AT."""
        return Similarities(self._sources, self._device) if self._sources else None

    def gradients(self, *, first: bool, last: bool) -> Gradients | None:
        """Return a probe for the first or last step of an epoch; None for other steps.

        Args:
            first: whether the step is the first of its epoch.
            last: whether the step is the last of its epoch.
        """

        def on_ratios(ratios: Table) -> None:
            if first:
                self._first = ratios
            self._last = ratios

        if self._sources is None or not self._leads or not (first or last):
            return None
        return Gradients(self._sources, on_ratios)

    def begin(self, similarity: Table) -> None:
        """Record the similarities over validation before the first step."""
        self.at_initial = similarity

    def end_epoch(self, similarity: Table, *, best: bool) -> dict[str, Table]:
        """Record the similarities over an epoch's validation.

        Args:
            similarity: mean similarities, by layer and teacher.
            best: whether this is the best epoch so far.

        Returns:
            Fields of the epoch's entry in metrics.jsonl.
        """
        if self._sources is None:
            return {}
        ratio = {
            layer: {name: [value, self._last[layer][name]] for name, value in row.items()}
            for layer, row in self._first.items()
        }
        if best:
            self.at_best, self.gradient_ratio = similarity, ratio
        return {"similarity": similarity, "gradient_ratio": ratio}


def effect_note(ratios: Table | None, weights: Mapping[str, float]) -> str | None:
    """Return a line that says that AT had next to no effect; None if that is wrong or unknown.

    Args:
        ratios: ratios of gradients in the best epoch's first and last step, before beta, by layer
            and teacher.
        weights: factor of each teacher's AT loss.
    """
    known = [
        (abs(weights[name]) * value, layer)
        for layer, row in (ratios or {}).items()
        for name, pair in row.items()
        for value in pair
        if value is not None
    ]
    unknown = any(None in pair for row in (ratios or {}).values() for pair in row.values())
    if not known or unknown or max(known)[0] >= _LITTLE:
        return None
    share, layer = max(known)
    return (
        f"AT did next to nothing: beta times its gradient was at most {share:.2g} of the "
        f"cross-entropy's (at layer {layer}, best epoch). Raise `beta`, or compare at another "
        "layer."
    )
