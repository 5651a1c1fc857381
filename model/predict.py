"""Classes of audio files: the checkpoint carries the whole preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.checkpoint import Checkpoint
from model.pace import set_precision
from model.vgg import Vgg
from pipeline.audio import AudioError, probe, read
from pipeline.errors import InputError
from pipeline.rows import window_starts
from pipeline.stft import stft

__all__ = ["Prediction", "predict"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the net says of one window of a file."""

    file: str
    start_s: float
    label: str
    probabilities: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Fields of ``predict --json``."""
        return {
            "file": self.file,
            "start_s": self.start_s,
            "label": self.label,
            "probabilities": self.probabilities,
        }


@torch.no_grad()
def predict(
    checkpoint: Checkpoint, files: Sequence[Path], *, device: torch.device
) -> Iterator[Prediction]:
    """Decide each file, window by window, in the windows the net was trained with.

    No noise is added. A file that the corpus's recipe would cut gives one prediction.

    Raises:
        InputError: a file cannot be read; the message says which and why.
    """
    set_precision("32")
    net = checkpoint.net().to(device)
    for file in files:
        yield from _predict_file(checkpoint, net, file, device)


def _predict_file(
    checkpoint: Checkpoint, net: Vgg, file: Path, device: torch.device
) -> Iterator[Prediction]:
    recipe = checkpoint.recipe
    try:
        total = probe(file).samples_at(recipe.sample_rate)
        starts = [0]
        if recipe.longer == "segment":
            starts, _ = window_starts(total, recipe.samples, recipe.window_hop)
        for start in starts:
            y = np.zeros(recipe.samples, np.float32)
            heard = read(file, start=start, count=y.size, sample_rate=recipe.sample_rate)
            y[: heard.size] = heard
            x = stft(y, n_fft=recipe.n_fft, hop=recipe.hop, window=recipe.window)
            x = (x - np.float32(checkpoint.mean)) * np.float32(1 / checkpoint.std)
            logits = net(torch.from_numpy(x)[None, None].to(device))
            shares = logits.softmax(1)[0].cpu().tolist()
            best = checkpoint.classes[int(logits.argmax())]
            probabilities = dict(zip(checkpoint.classes, shares, strict=True))
            yield Prediction(str(file), start / recipe.sample_rate, best, probabilities)
    except AudioError as error:
        raise InputError(f"{file}: {error}") from None
