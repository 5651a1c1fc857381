"""Classes of recordings and of their segments: the checkpoint carries all of the preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from antigram.model.nets.vgg import Vgg
from antigram.model.training.chance import chance
from antigram.model.training.checkpoint import Checkpoint
from antigram.model.training.decide import average, finite_rows, log_probabilities, segments_at_once
from antigram.model.training.precision import set_precision
from antigram.model.training.worth import accuracies_text
from antigram.pipeline.audio.decoding import AudioError, probe, read
from antigram.pipeline.audio.stft import stft
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.listing import segments_of
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.table import plain_text

__all__ = ["Prediction", "Recording", "Unreadable", "about", "about_text", "columns", "predict"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the net says of a recording, or of one segment of it.

    Attributes:
        file: as it was named.
        classes: names of the net's outputs.
        shares: ``(class,)`` float64 probabilities, which add up to 1.
        start_s: where the segment begins, in seconds; None of a recording.
    """

    file: str
    classes: Sequence[str]
    shares: NDArray[np.float64]
    start_s: float | None = None

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.classes[int(self.shares.argmax())]

    @property
    def probabilities(self) -> dict[str, float]:
        """Probability of each class."""
        return dict(zip(self.classes, self.shares.tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """Fields of ``predict --json``; a recording has no ``start_s``."""
        start = {} if self.start_s is None else {"start_s": self.start_s}
        return {
            "file": self.file,
            **start,
            "label": self.label,
            "probabilities": self.probabilities,
        }

    def cells(self) -> list[str | float]:
        """Row of a table with `columns`."""
        return [self.file, self.start_s or 0.0, self.label, *self.shares.tolist()]

    def line(self) -> str:
        """For people: where, the class, its probability."""
        where = "" if self.start_s is None else f" {self.start_s:g} s"
        return f"{self.file}{where}: {self.label} ({self.shares.max():.3f})"


@dataclass(frozen=True, slots=True)
class Recording:
    """A file's segments, decided.

    Attributes:
        file: as it was named.
        classes: names of the net's outputs.
        starts_s: where each segment begins, in seconds.
        log_probabilities: ``(segment, class)`` float64.
    """

    file: str
    classes: Sequence[str]
    starts_s: Sequence[float]
    log_probabilities: NDArray[np.float64]

    @property
    def segments(self) -> list[Prediction]:
        """Each segment by itself."""
        pairs = zip(self.starts_s, np.exp(self.log_probabilities), strict=True)
        return [Prediction(self.file, self.classes, shares, start) for start, shares in pairs]

    @property
    def prediction(self) -> Prediction:
        """The recording by all of its segments: softmax of their mean log-probabilities."""
        return Prediction(self.file, self.classes, average(self.log_probabilities))

    def lines(self) -> list[str]:
        """For people: the recording, and its segments if it has several."""
        segments = self.segments if len(self.starts_s) > 1 else []
        return [self.prediction.line(), *(f"  {segment.line()}" for segment in segments)]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that cannot be used, and why."""

    file: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """Fields of ``predict --json``."""
        return {"file": self.file, "reason": self.reason}


def about(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint's predictions are worth: field ``checkpoint`` of ``predict --json``."""
    return {
        "task": checkpoint.task,
        "classes": list(checkpoint.classes),
        "chance": chance(checkpoint.classes),
        "scores": checkpoint.scores,
    }


def about_text(checkpoint: Checkpoint) -> str:
    """The same for people: ``word: 10 classes, chance 0.100; accuracy in training: test 0.8``."""
    known = {split: found.get("accuracy") for split, found in checkpoint.scores.items()}
    own = accuracies_text({"accuracy": known, "scores": checkpoint.scores})
    return (
        f"{checkpoint.task}: {len(checkpoint.classes)} classes, chance "
        f"{chance(checkpoint.classes):.3f}; the checkpoint's own accuracy: {own or 'not known'}"
    )


def columns(checkpoint: Checkpoint) -> list[str]:
    """Header of a table of segments, whose rows are `Prediction.cells`."""
    return ["file", "start_s", "label", *(f"probability_{name}" for name in checkpoint.classes)]


class _Segment(NamedTuple):
    """One segment's input of the net, ``(frame, freq)``; ``last`` of its file."""

    file: str
    start_s: float
    x: NDArray[np.float32]
    last: bool


def predict(
    checkpoint: Checkpoint,
    files: Sequence[Path],
    *,
    device: torch.device,
    skip_unreadable: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Iterator[Recording | Unreadable]:
    """Predict recordings in the segments, and with the preprocessing, that the net was trained on.

    No noise is added. A file that the corpus's recipe would cut is one segment. All headers are
    read first; then segments of one file or of many go through the net together, so that memory
    does not grow with the length of a file or their number.

    Args:
        checkpoint: the net, with its classes and preprocessing.
        files: of audio.
        device: where the net runs.
        skip_unreadable: give an `Unreadable` for a file that cannot be used, and go on.
        on_progress: told of progress: a stage's name, files done, files in all.

    Yields:
        One result a file, in their order.

    Raises:
        InputError: a file cannot be used and is not to be skipped, or none can be; or the net's
            outputs are not finite, in which case the message names file and segment.
    """
    lengths: list[int | Unreadable] = []
    for path in files:
        lengths.append(_length(path, checkpoint.recipe))
        if isinstance(lengths[-1], Unreadable) and not skip_unreadable:
            raise _unusable(lengths[-1])
        on_progress("headers", len(lengths), len(files))
    set_precision("32")
    net = checkpoint.net().to(device)
    readable, left_out = 0, []
    for result in _predict(checkpoint, net, _segments(checkpoint, files, lengths), device):
        if isinstance(result, Recording):
            readable += 1
        elif skip_unreadable:
            left_out.append(result)
        else:
            raise _unusable(result)
        yield result
        on_progress("recordings", readable + len(left_out), len(files))
    if left_out and not readable:
        raise _unusable(left_out[0], f"none of {len(files)} files can be used. ")


def _length(path: Path, recipe: Recipe) -> int | Unreadable:
    """Samples of a file at the recipe's rate, by its header."""
    try:
        return probe(path).samples_at(recipe.sample_rate)
    except AudioError as error:
        return Unreadable(plain_text(path), str(error))


def _unusable(found: Unreadable, before: str = "") -> InputError:
    return InputError(
        f"{before}{found.file}: {found.reason}. Repair it or leave it out; where others can be "
        "used, `skip_unreadable` leaves out all such files."
    )


def _predict(
    checkpoint: Checkpoint,
    net: Vgg,
    items: Iterable[_Segment | Unreadable],
    device: torch.device,
) -> Iterator[Recording | Unreadable]:
    """Decide segments in batches, and gather those of each file."""
    starts: list[float] = []
    rows: list[NDArray[np.float64]] = []
    for group in _groups(items, segments_at_once(checkpoint.recipe.shape[0])):
        decided = iter(_decide(net, [s for s in group if isinstance(s, _Segment)], device))
        for item in group:
            if isinstance(item, Unreadable):
                starts, rows = [], []  # of segments that came before the damage
                yield item
                continue
            starts.append(item.start_s)
            rows.append(next(decided))
            if item.last:
                yield Recording(item.file, checkpoint.classes, starts, np.stack(rows))
                starts, rows = [], []


def _groups(
    items: Iterable[_Segment | Unreadable], most: int
) -> Iterator[list[_Segment | Unreadable]]:
    """Items in their order, as lists of at most so many segments."""
    group: list[_Segment | Unreadable] = []
    segments = 0
    for item in items:
        group.append(item)
        segments += isinstance(item, _Segment)
        if segments == most:
            yield group
            group, segments = [], 0
    if group:
        yield group


@torch.no_grad()
def _decide(net: Vgg, segments: Sequence[_Segment], device: torch.device) -> NDArray[np.float64]:
    """Log-probabilities ``(segment, class)``."""
    if not segments:
        return np.empty((0, 0))
    x = torch.from_numpy(np.stack([segment.x for segment in segments]))[:, None].to(device)
    logits = net(x)
    finite = finite_rows(x, logits)
    if not finite.all():
        bad = segments[int(finite.argmin())]
        raise InputError(
            f"{bad.file}: the net's outputs for the segment at {bad.start_s:g} s are not finite: "
            "no class can be decided. Train the net again, with a lower `lr`."
        )
    return log_probabilities(logits)


def _segments(
    checkpoint: Checkpoint, files: Sequence[Path], lengths: Sequence[int | Unreadable]
) -> Iterator[_Segment | Unreadable]:
    """Input of the net for each segment of each file."""
    recipe = checkpoint.recipe
    for path, length in zip(files, lengths, strict=True):
        if isinstance(length, Unreadable):
            yield length
            continue
        name = plain_text(path)
        parts, _ = segments_of(length, recipe)
        try:
            for place, (start, samples) in enumerate(parts):
                x = _features(path, start, samples, recipe)
                x -= np.float32(checkpoint.mean)
                x *= np.float32(1 / checkpoint.std)
                yield _Segment(name, start / recipe.sample_rate, x, place == len(parts) - 1)
        except AudioError as error:
            yield Unreadable(name, str(error))


def _features(path: Path, start: int, samples: int, recipe: Recipe) -> NDArray[np.float32]:
    """Magnitudes ``(frame, freq)`` of a segment, as `prepare` makes them without noise.

    Raises:
        AudioError: it cannot be decoded, or its spectrum is not finite.
    """
    y = np.zeros(recipe.samples, np.float32)
    heard = read(path, start=start, count=samples, sample_rate=recipe.sample_rate)
    if not heard.size:
        raise AudioError(f"no audio at {start / recipe.sample_rate:g} s")
    y[: heard.size] = heard
    x = stft(y, n_fft=recipe.n_fft, hop=recipe.hop, window=recipe.window)
    if not np.isfinite(x).all():
        raise AudioError("samples so large that its spectrum is not finite")
    return x
