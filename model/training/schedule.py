"""The learning rate of each step: warmup, then constant, a half cosine, or halved on a plateau.

A rate depends on the number of the step and, with ``plateau``, on the validation losses of earlier
epochs; so a resumed training has the rates of an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from antigram.model.training.config import TrainConfig
from antigram.pipeline.errors import InputError

__all__ = ["FACTOR", "STUCK_EPOCHS", "Schedule"]

# Half of the default `patience`, so that early stopping leaves time for a lower rate to act.
STUCK_EPOCHS = 2
FACTOR = 0.5


class Schedule:
    """Sets the learning rate of an optimiser before each step.

    With ``warmup``, the rate rises linearly from ``lr / W`` at the first step to ``lr`` at step W,
    the number of steps in these epochs. After that it is

    * ``constant``: ``lr``;
    * ``cosine``: ``lr (1 + cos(pi t / T)) / 2`` at the t-th of the T remaining steps (from 0), T
      being counted up to ``epochs``, or to ``max_steps`` if that comes first;
    * ``plateau``: ``lr``, multiplied by `FACTOR` whenever `STUCK_EPOCHS` epochs in a row have not
      had a lower validation loss than the least so far. Epochs of the warmup do not count.

    Args:
        config: settings of the training.
        steps_in_epoch: number of steps in an epoch.
        optimiser: its learning rate is set, in all parameter groups.

    Raises:
        InputError: the warmup lasts as long as the training.

    References:
        Cosine: Loshchilov and Hutter (2017), SGDR, arXiv:1608.03983, equation 5, without restarts.
    """

    def __init__(
        self,
        config: TrainConfig,
        steps_in_epoch: int,
        optimiser: torch.optim.Optimizer,
    ) -> None:
        if config.warmup and config.warmup >= config.epochs:
            raise InputError(
                f"`warmup` {config.warmup:g}: wanted fewer epochs than the training has, "
                f"`epochs={config.epochs}`"
            )
        self._config, self._optimiser = config, optimiser
        self._used = config.schedule != "constant" or config.warmup > 0
        self._warmup = round(config.warmup * steps_in_epoch)
        total = config.epochs * steps_in_epoch
        if config.max_steps:
            total = min(total, config.max_steps)
        self._decay = max(1, total - self._warmup)
        self._factor, self._least, self._stuck = 1.0, math.inf, 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: number of the step in the training, from 0.
        """
        lr = self._config.lr
        if step < self._warmup:
            return lr * (step + 1) / self._warmup
        if self._config.schedule == "cosine":
            done = min(1.0, (step - self._warmup) / self._decay)
            return lr * (1 + math.cos(math.pi * done)) / 2
        return lr * self._factor

    def begin_step(self, step: int) -> None:
        """Set the learning rate of a step; does nothing if the rate never changes."""
        if self._used:
            for group in self._optimiser.param_groups:
                group["lr"] = self.rate(step)

    def end_epoch(self, steps: int, loss: float) -> dict[str, float]:
        """Take the validation loss of an epoch into account.

        Args:
            steps: steps taken in all epochs, at least one.
            loss: validation loss of the epoch that has ended.

        Returns:
            ``lr``: the rate of the epoch's last step, for metrics.jsonl; empty if no schedule is
            used.
        """
        if not self._used:
            return {}
        rate = self.rate(steps - 1)
        if self._config.schedule == "plateau" and steps > self._warmup:
            if loss < self._least:
                self._least, self._stuck = loss, 0
            else:
                self._stuck += 1
            if self._stuck >= STUCK_EPOCHS:
                self._factor *= FACTOR
                self._stuck = 0
        return {"lr": rate}

    def to_plain(self) -> dict[str, Any]:
        """Return what later rates depend on, for last.pt; empty unless it is ``plateau``."""
        if self._config.schedule != "plateau":
            return {}
        return {"factor": self._factor, "least": self._least, "stuck": self._stuck}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Continue from a result of `to_plain`; an empty one stands for a training that begins."""
        if plain:
            self._factor, self._least = float(plain["factor"]), float(plain["least"])
            self._stuck = int(plain["stuck"])
