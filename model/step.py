"""One step of a training: forward pass, task loss, AT loss of any number of frozen nets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.at_loss import Own, at_loss, released_loss
from model.batches import Batch
from model.config import TrainConfig
from model.sources import LiveGrams, Sources
from model.team import Team
from model.vgg import Vgg
from pipeline.errors import InputError

__all__ = ["Step", "Sums"]


@dataclass(slots=True)
class Sums:
    """Sums over clips of one pass, kept on the device so that no step waits for them.

    Attributes:
        sources: names of the frozen nets.
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

    def add(self, ce: Tensor, right: Tensor, at: Mapping[str, Tensor], clips: int) -> None:
        """Add the means of a batch."""
        each = [ce.detach() * clips, right, *(at[name].detach() * clips for name in self.sources)]
        self.values += torch.stack([value.double() for value in each])
        self.clips += clips

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint: `restore` takes it."""
        return {"values": self.values.tolist(), "clips": self.clips}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Go on from `to_plain`."""
        self.values.copy_(torch.tensor(plain["values"], dtype=torch.float64))
        self.clips = plain["clips"]

    def means(
        self, weights: Mapping[str, float], team: Team
    ) -> dict[str, float | dict[str, float]]:
        """Means over clips: loss, ce, at (before beta), accuracy; AT by source if several."""
        clips = torch.tensor([float(self.clips)], dtype=torch.float64, device=self.device)
        whole = team.sum(torch.cat([self.values, clips]))
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
        sources: the frozen nets' side; None without AT.
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
        self.weights = {name: config.at_weight(name) for name in sources.names} if sources else {}
        self.layers = sources.layers if sources else ()

    def __call__(self, batch: Batch, sums: Sums) -> Tensor:
        """Return the batch's mean loss, and add its clips' losses to the sums."""
        config, sources = self.config, self.sources
        at = {name: torch.zeros((), device=self.device) for name in self.weights}
        frozen = self._released_maps(batch) if config.loss == "released" else {}
        rows = sources.rows(batch.read, batch.x) if sources is not None and not frozen else {}

        def on_tap(layer: int, maps: Tensor) -> None:
            if frozen:
                (name,) = at
                at[name] = at[name] + released_loss(maps, frozen[layer])
                return
            # Made once for all sources, and now: later its gradient would live through the peak.
            own = Own(maps, config.aggregation)
            for name, of_layer in rows.items():
                if layer in of_layer:
                    value = at_loss(own, of_layer[layer], config.aggregation, config.similarity)
                    at[name] = at[name] + value.mean()

        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"
        ):
            forward = self.forward if self.net.training else self.net
            logits = forward(batch.x, self.layers, config.tap, on_tap)
        ce = functional.cross_entropy(logits.float(), batch.y)
        right = (logits.argmax(1) == batch.y).sum()
        if batch.weight:
            sums.add(ce, right, at, len(batch.y))
        loss = ce
        for name, weight in self.weights.items():
            loss = loss + weight * at[name]
        return loss if batch.weight == 1 else loss * batch.weight

    def _released_maps(self, batch: Batch) -> dict[int, Tensor]:
        only = list(self.sources.members.values()) if self.sources is not None else []
        if len(only) != 1 or not isinstance(only[0], LiveGrams):
            raise InputError("--loss released needs one frozen net itself: --mode online")
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            only[0].net.run_features(
                batch.x, self.layers, self.config.tap, found.__setitem__, stop=True
            )
        return found
