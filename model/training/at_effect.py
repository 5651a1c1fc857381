"""Does AT act? Similarity by layer and teacher, and AT's gradient beside the cross-entropy's.

Nothing here changes a training: no random number is drawn, no gradient reaches a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from antigram.model.loss.sources import Sources
from antigram.model.training.distributed import DistributedContext

__all__ = ["Effect", "Gradients", "Probe", "Similarities", "Table", "effect_note"]

# Layer -> teacher -> value; layers are text, as JSON has it.
Table = dict[str, dict[str, Any]]
# Loss of a layer from its maps and a weight for each of some teachers.
LossOf = Callable[[Tensor, Tensor], Tensor]

_LITTLE = 0.01


class Probe(Protocol):
    """Looks at a step's forward pass."""

    def tap(
        self, layer: int, maps: Tensor, members: Sequence[int], means: Tensor, loss_of: LossOf
    ) -> None:
        """Called at a layer for some of its teachers.

        Args:
            layer: counted from 1.
            maps: ``(batch, channel, frame, freq)`` of the student, as the next layer takes them.
            members: which teachers, as numbers of `Sources.names`.
            means: ``(teacher,)`` similarities, averaged over the batch.
            loss_of: the AT loss from such maps and a weight for each of these teachers.
        """

    def end(self, ce: Tensor, segments: int) -> None:
        """Called behind the forward pass.

        Args:
            ce: mean cross-entropy of the batch.
            segments: that count; 0 if the batch stands for no share of the ranks' batch.
        """


def _pairs(sources: Sources) -> list[tuple[int, int]]:
    """Each layer with each teacher that is compared there."""
    specs = [source.spec for source in sources.members.values()]
    return [(n, i) for n in sources.layers for i, spec in enumerate(specs) if n in spec.layers]


def _table(sources: Sources, values: Mapping[tuple[int, int], Any]) -> Table:
    found: Table = {}
    for (layer, place), value in values.items():
        found.setdefault(str(layer), {})[sources.names[place]] = value
    return found


class Similarities:
    """Mean similarity over the segments of a pass, by layer and teacher: a `Probe`.

    Args:
        sources: the teachers.
        device: of the student.
    """

    def __init__(self, sources: Sources, device: torch.device) -> None:
        self._sources = sources
        self._pairs = _pairs(sources)
        self._sums = torch.zeros(len(self._pairs) + 1, dtype=torch.float64, device=device)
        self._seen: dict[tuple[int, int], Tensor] = {}

    def tap(
        self, layer: int, maps: Tensor, members: Sequence[int], means: Tensor, loss_of: LossOf
    ) -> None:
        """See `Probe`."""
        del maps, loss_of
        for place, mean in zip(members, means.reshape(-1), strict=True):
            self._seen[layer, place] = mean.double()

    def end(self, ce: Tensor, segments: int) -> None:
        """See `Probe`."""
        del ce
        values = [self._seen.pop(pair) for pair in self._pairs]
        if segments:
            one = torch.ones((), dtype=torch.float64, device=self._sums.device)
            self._sums += torch.stack([*values, one]) * segments

    def means(self, distributed: DistributedContext) -> Table:
        """Means over the segments of all ranks."""
        sums = distributed.sum(self._sums.clone())
        means = (sums[:-1] / sums[-1].clamp_min(1)).tolist()
        return _table(self._sources, dict(zip(self._pairs, means, strict=True)))


class Gradients:
    """Norm of AT's gradient over that of the cross-entropy, at the tapped maps: a `Probe`.

    For one training batch: it takes a backward pass down to the lowest tap, without the weights'
    gradients, and keeps the graph. AT's gradient is that of a teacher's similarity at its own
    layer, before beta. The ratio is None where the cross-entropy has no gradient, and 0 where
    what is compared is the input, of which no weight is a part.

    Args:
        sources: the teachers.
        keep: called with the ratios.
    """

    def __init__(self, sources: Sources, keep: Callable[[Table], None]) -> None:
        self._sources, self._keep = sources, keep
        self._at: dict[tuple[int, int], Tensor] = {}
        self._maps: dict[int, Tensor] = {}

    def tap(
        self, layer: int, maps: Tensor, members: Sequence[int], means: Tensor, loss_of: LossOf
    ) -> None:
        """See `Probe`."""
        del means
        if not maps.requires_grad:
            return
        self._maps[layer] = maps
        leaf = maps.detach().requires_grad_()
        for number, place in enumerate(members):
            chosen = torch.zeros(len(members), device=maps.device)
            chosen[number] = 1
            with torch.enable_grad():
                loss = loss_of(leaf, chosen)
            self._at[layer, place] = _norm(torch.autograd.grad(loss, leaf)[0])

    def end(self, ce: Tensor, segments: int) -> None:
        """See `Probe`."""
        del segments
        layers = list(self._maps)
        slopes = torch.autograd.grad(ce, list(self._maps.values()), retain_graph=True)
        norms = {layer: _norm(slope).item() for layer, slope in zip(layers, slopes, strict=True)}
        self._maps = {}
        ratios: dict[tuple[int, int], float | None] = dict.fromkeys(_pairs(self._sources), 0.0)
        for (layer, place), at in self._at.items():
            ratios[layer, place] = at.item() / norms[layer] if norms[layer] else None
        self._keep(_table(self._sources, ratios))


def _norm(slope: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(slope, dtype=torch.float64)
    return norm


class Effect:
    """What a run learns of AT's effect: similarities over validation, and ratios of gradients.

    Args:
        sources: the teachers; None without AT: then there is nothing to learn.
        device: of the student.
        known: from `to_plain`, of a run that goes on.
        leads: whether this rank's batches are measured.
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
        none: Table | None = None if sources else {}
        self.at_initial: Table | None = known.get("at_initial", none)
        self.at_best: Table | None = known.get("at_best", none)
        self.gradient_ratio: Table | None = known.get("gradient_ratio", none)
        self._first: Table = known.get("first", {})
        self._last: Table = known.get("last", {})

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint, at any step."""
        return {**self.to_json(), "first": self._first, "last": self._last}

    def to_json(self) -> dict[str, Any]:
        """Fields of result.json: None for what was not measured, as an older antigram began."""
        return {
            "at_initial": self.at_initial,
            "at_best": self.at_best,
            "gradient_ratio": self.gradient_ratio,
        }

    def similarities(self) -> Similarities | None:
        """Probe of a pass over validation."""
        return Similarities(self._sources, self._device) if self._sources else None

    def gradients(self, *, first: bool, last: bool) -> Gradients | None:
        """Probe of a training step: none but at the first and the last step of an epoch."""

        def keep(ratios: Table) -> None:
            if first:
                self._first = ratios
            self._last = ratios

        if self._sources is None or not self._leads or not (first or last):
            return None
        return Gradients(self._sources, keep)

    def begin(self, similarity: Table) -> None:
        """Take the similarities that validation has before the first step."""
        self.at_initial = similarity

    def end_epoch(self, similarity: Table, *, best: bool) -> dict[str, Table]:
        """Take the similarities of an epoch's validation; fields of its entry in metrics.jsonl."""
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
    """A line that says AT did next to nothing, if that is so.

    Args:
        ratios: layer -> teacher -> those of the best epoch's first and last step, before beta.
        weights: what each teacher's AT loss was multiplied by.
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
