"""Predict the classes of recordings and segments, with the preprocessing of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from antigram.model.nets.backbone import Backbone
from antigram.model.training.chance import chance
from antigram.model.training.checkpoint import SHUFFLED, Checkpoint
from antigram.model.training.decide import average, finite_rows, log_probabilities, segments_at_once
from antigram.model.training.precision import set_precision
from antigram.model.training.worth import CONTROL, accuracies_text
from antigram.pipeline.audio.decoding import AudioError, probe, read
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.listing import segments_of
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.spectra import spectra
from antigram.pipeline.table import plain_text

__all__ = [
    "Prediction",
    "Recording",
    "Unreadable",
    "about",
    "about_text",
    "columns",
    "network_input",
    "predict",
]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Class probabilities of a recording, or of one of its segments.

    Attributes:
        file: path of the recording, as the user gave it.
        classes: names of the network's outputs.
        shares: ``(class,)`` float64 probabilities, which sum to 1.
        start_s: start of the segment, in seconds; None for a recording.
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
        """Return fields of ``predict --json``; a recording has no ``start_s``."""
        start = {} if self.start_s is None else {"start_s": self.start_s}
        return {
            "file": self.file,
            **start,
            "label": self.label,
            "probabilities": self.probabilities,
        }

    def cells(self) -> list[str | float]:
        """Return the row of a table whose header is `columns`."""
        return [self.file, self.start_s or 0.0, self.label, *self.shares.tolist()]

    def line(self) -> str:
        """Return a line with file, start, class and its probability."""
        start = "" if self.start_s is None else f" {self.start_s:g} s"
        return f"{self.file}{start}: {self.label} ({self.shares.max():.3f})"


@dataclass(frozen=True, slots=True)
class Recording:
    """Predictions for the segments of a recording.

    Attributes:
        file: path of the recording, as the user gave it.
        classes: names of the network's outputs.
        starts_s: start of each segment, in seconds.
        log_probabilities: ``(segment, class)`` float64.
    """

    file: str
    classes: Sequence[str]
    starts_s: Sequence[float]
    log_probabilities: NDArray[np.float64]

    @property
    def segments(self) -> list[Prediction]:
        """Predictions for the segments."""
        pairs = zip(self.starts_s, np.exp(self.log_probabilities), strict=True)
        return [Prediction(self.file, self.classes, shares, start) for start, shares in pairs]

    @property
    def prediction(self) -> Prediction:
        """Prediction for the recording: the softmax of its segments' mean log-probabilities."""
        return Prediction(self.file, self.classes, average(self.log_probabilities))

    def lines(self) -> list[str]:
        """Return a line for the recording, and one for each segment if there are several."""
        segments = self.segments if len(self.starts_s) > 1 else []
        return [self.prediction.line(), *(f"  {segment.line()}" for segment in segments)]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that cannot be used.

    Attributes:
        file: path of the recording, as the user gave it.
        reason: why it cannot be used.
    """

    file: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """Return fields of ``predict --json``."""
        return {"file": self.file, "reason": self.reason}


def about(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return task, classes, chance and scores: field ``checkpoint`` of ``predict --json``."""
    return {
        "task": checkpoint.task,
        "classes": list(checkpoint.classes),
        "chance": chance(checkpoint.classes),
        "scores": checkpoint.scores,
    }


def about_text(checkpoint: Checkpoint) -> str:
    """Return `about` as a line, such as ``word: 10 classes, chance 0.100; ...``."""
    known = {split: score.get("accuracy") for split, score in checkpoint.scores.items()}
    accuracies = accuracies_text({"accuracy": known, "scores": checkpoint.scores})
    control = CONTROL if checkpoint.provenance.get("labels") == SHUFFLED else ""
    return (
        f"{checkpoint.task}: {len(checkpoint.classes)} classes, chance "
        f"{chance(checkpoint.classes):.3f}; the checkpoint's own accuracy: "
        f"{control}{accuracies or 'not known'}"
    )


def columns(checkpoint: Checkpoint) -> list[str]:
    """Return the header of a table of segments, whose rows are `Prediction.cells`."""
    return ["file", "start_s", "label", *(f"probability_{name}" for name in checkpoint.classes)]


class Segment(NamedTuple):
    """Features ``(frame, freq)`` of a segment; ``last`` marks the last segment of its file."""

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
    """Predict recordings, in segments and with the preprocessing that the network was trained on.

    No noise is added. A recording that the recipe cuts, instead of segmenting it, is one segment.
    All headers are read first. Then segments go through the network in batches, which may span
    files, so that memory does not grow with the length or number of files.

    Args:
        checkpoint: the network, with its classes and preprocessing.
        files: audio files.
        device: device that the network runs on.
        skip_unreadable: whether to yield an `Unreadable` for a file that cannot be used and to go
            on, instead of raising.
        on_progress: called with the name of a stage, the files that are done and their total.

    Yields:
        One result for each file, in the order of ``files``.

    Raises:
        InputError: a file cannot be used and is not to be skipped, or no file can be used; or the
            network's outputs are not finite: the message then names file and segment.
    """
    lengths: list[int | Unreadable] = []
    for path in files:
        lengths.append(recording_length(path, checkpoint.recipe))
        if isinstance(lengths[-1], Unreadable) and not skip_unreadable:
            raise unusable(lengths[-1])
        on_progress("headers", len(lengths), len(files))
    set_precision("32")
    net = checkpoint.net().to(device)
    readable, skipped = 0, []
    for result in _predict(checkpoint, net, _segments(checkpoint, files, lengths), device):
        if isinstance(result, Recording):
            readable += 1
        elif skip_unreadable:
            skipped.append(result)
        else:
            raise unusable(result)
        yield result
        on_progress("recordings", readable + len(skipped), len(files))
    if skipped and not readable:
        raise unusable(skipped[0], f"none of {len(files)} files can be used. ")


def network_input(
    checkpoint: Checkpoint, path: Path, *, max_s: float
) -> tuple[list[float], NDArray[np.float32]]:
    """Return all segments of one recording as the network gets them, see `predict`.

    Args:
        checkpoint: the network, with its preprocessing.
        path: audio file.
        max_s: largest length in seconds.

    Returns:
        Start of each segment, in seconds; and features ``(segment, frame, freq)``, normalised.

    Raises:
        InputError: the file cannot be used, or its segments last longer than ``max_s``.
    """
    recipe = checkpoint.recipe
    length = recording_length(path, recipe)
    if isinstance(length, Unreadable):
        raise unusable(length, skippable=False)
    start, samples = segments_of(length, recipe)[0][-1]
    if (seconds := (start + samples) / recipe.sample_rate) > max_s:
        raise InputError(
            f"{plain_text(path)}: lasts {seconds:.0f} s; wanted at most {max_s:g} s. Cut out the "
            "part that matters, with sox or an audio editor."
        )
    segments: list[Segment] = []
    for item in _segments(checkpoint, [path], [length]):
        if isinstance(item, Unreadable):
            raise unusable(item, skippable=False)
        segments.append(item)
    return [segment.start_s for segment in segments], np.stack([s.x for s in segments])


def recording_length(path: Path, recipe: Recipe) -> int | Unreadable:
    """Return the length of a file in samples at the recipe's rate, from its header."""
    try:
        return probe(path).samples_at(recipe.sample_rate)
    except AudioError as error:
        return Unreadable(plain_text(path), str(error))


def unusable(unreadable: Unreadable, before: str = "", *, skippable: bool = True) -> InputError:
    others = (
        " or leave it out; if others can be used, `skip_unreadable` leaves out all such files"
        if skippable
        else ", or name another file"
    )
    return InputError(f"{before}{unreadable.file}: {unreadable.reason}. Repair it{others}.")


def _predict(
    checkpoint: Checkpoint,
    net: Backbone,
    items: Iterable[Segment | Unreadable],
    device: torch.device,
) -> Iterator[Recording | Unreadable]:
    """Predict segments in batches, and collect the predictions of each file."""
    starts: list[float] = []
    rows: list[NDArray[np.float64]] = []
    for group in grouped(items, segments_at_once(checkpoint.recipe.shape[0])):
        predicted = iter(predict_batch(net, [s for s in group if isinstance(s, Segment)], device))
        for item in group:
            if isinstance(item, Unreadable):
                starts, rows = [], []  # drop the file's segments before the damage
                yield item
                continue
            starts.append(item.start_s)
            rows.append(next(predicted))
            if item.last:
                yield Recording(item.file, checkpoint.classes, starts, np.stack(rows))
                starts, rows = [], []


def grouped(
    items: Iterable[Segment | Unreadable], most: int
) -> Iterator[list[Segment | Unreadable]]:
    """Group items, in their order, into lists with at most ``most`` segments each."""
    group: list[Segment | Unreadable] = []
    segments = 0
    for item in items:
        group.append(item)
        segments += isinstance(item, Segment)
        if segments == most:
            yield group
            group, segments = [], 0
    if group:
        yield group


@torch.no_grad()
def predict_batch(
    net: Backbone, segments: Sequence[Segment], device: torch.device
) -> NDArray[np.float64]:
    """Return log-probabilities ``(segment, class)``."""
    if not segments:
        return np.empty((0, 0))
    x = torch.from_numpy(np.stack([segment.x for segment in segments]))[:, None].to(device)
    logits = net(x)
    finite = finite_rows(x, logits)
    if not finite.all():
        bad = segments[int(finite.argmin())]
        raise InputError(
            f"{bad.file}: the network's outputs for the segment at {bad.start_s:g} s are not "
            "finite: no class can be predicted. Train the network again, with a lower `lr`."
        )
    return log_probabilities(logits)


def _segments(
    checkpoint: Checkpoint, files: Sequence[Path], lengths: Sequence[int | Unreadable]
) -> Iterator[Segment | Unreadable]:
    """Yield the network's input for each segment of each file."""
    recipe = checkpoint.recipe
    for path, length in zip(files, lengths, strict=True):
        if isinstance(length, Unreadable):
            yield length
            continue
        name = plain_text(path)
        parts, _ = segments_of(length, recipe)
        try:
            for index, (start, samples) in enumerate(parts):
                x = segment_features(path, start, samples, recipe)
                x -= np.float32(checkpoint.mean)
                x *= np.float32(1 / checkpoint.std)
                yield Segment(name, start / recipe.sample_rate, x, index == len(parts) - 1)
        except AudioError as error:
            yield Unreadable(name, str(error))


def segment_features(path: Path, start: int, samples: int, recipe: Recipe) -> NDArray[np.float32]:
    """Return features ``(frame, freq)`` of a segment, as `prepare` computes them without noise.

    Raises:
        AudioError: the segment cannot be decoded, or its spectrum is not finite.
    """
    y = np.zeros(recipe.samples, np.float32)
    audio = read(path, start=start, count=samples, sample_rate=recipe.sample_rate)
    if not audio.size:
        raise AudioError(f"no audio at {start / recipe.sample_rate:g} s")
    y[: audio.size] = audio
    x = spectra(y, recipe)
    if not np.isfinite(x).all():
        raise AudioError("samples so large that its spectrum is not finite")
    return x
