"""Parts of a run's report that look at single segments: errors to hear, spectrograms, embeddings.

They need the run's store, its best weights and, to listen to errors, the recordings. Whatever of
these is not there any more is left out, and the report says so: no training fails because of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from antigram.model.nets.networks import deepest_layer
from antigram.model.training.batches import Batches
from antigram.model.training.checkpoint import load_checkpoint
from antigram.model.training.decide import log_probabilities, segments_at_once
from antigram.model.training.precision import set_precision
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.spectra import amplitudes, spectra
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace
from antigram.studies.figures.embeddings import draw_embeddings
from antigram.studies.figures.spectrograms import Spectrogram, decibels, draw_preparation
from antigram.studies.report.page import Figure, Part, Sound, Sounds
from antigram.studies.report.recordings import Recordings, wav_bytes

__all__ = [
    "Predicted",
    "class_names",
    "predict_segments",
    "recordings_text",
    "segment_parts",
    "source_text",
    "wav_of",
]

_LOOKED_AT = 256  # segments
_HEARD = 5  # errors
_LONGEST_S = 6.0  # of an error that is embedded
_ERRORS = "Errors to listen to"


class Predicted(NamedTuple):
    """Predictions for some segments.

    Attributes:
        split: the split that they are from.
        rows: ``(segment,)`` indices of the store.
        true: ``(segment,)`` classes.
        shares: ``(segment, class)`` probabilities.
        embeddings: ``(segment, channel)`` maps of the deepest layer, averaged over positions.
    """

    split: str
    rows: NDArray[np.int64]
    true: NDArray[np.int32]
    shares: NDArray[np.float64]
    embeddings: NDArray[np.float32]

    @property
    def is_drawable(self) -> bool:
        """Whether principal components can be drawn: of three segments, without overflow."""
        return len(self.rows) > 2 and bool(np.isfinite(self.embeddings).all())


def segment_parts(
    run: Path,
    store: FeatureStore,
    task: str,
    workspace: Workspace,
    *,
    against: str | None = None,
    device: torch.device,
) -> list[Part]:
    """Predict up to 256 segments of the test split with a run's best weights, and show them.

    Args:
        run: folder of a run that has ended.
        store: the store that it was trained on.
        task: label that it learned.
        workspace: corpora are looked up in it.
        against: a label that it should not know; default: the first other label of the store.
        device: device that the network runs on.

    Returns:
        Errors to listen to, with the recordings embedded; the spectrogram of one segment before and
        after preparation; and the principal components of the deepest layer, marked by ``task`` and
        by ``against``.
    """
    try:
        predicted = predict_segments(run / "best.pt", store, task, device)
        if not len(predicted.rows):
            return []
        recordings = Recordings(store, workspace)
        errors = _errors(predicted)
        parts: list[Part] = [_sounds(store, task, predicted, errors, recordings)]
        row = int(predicted.rows[errors[0] if errors else 0])
        parts.append(_preparation(store, row, recordings.samples(row)))
        parts += _components(store, predicted, _labels(store, task, against))
    except (InputError, StoredDataError, OSError, torch.OutOfMemoryError) as error:
        return [Sounds(caption=_ERRORS, text=f"Segments cannot be shown: {error}")]
    return parts


@torch.no_grad()
def predict_segments(
    ckpt: Path, store: FeatureStore, task: str, device: torch.device, most: int = _LOOKED_AT
) -> Predicted:
    """Predict segments of the test split, or of validation if the store has no test split.

    Args:
        ckpt: checkpoint of the network.
        store: the store.
        task: label that the network learned.
        device: device that the network runs on.
        most: number of segments; if there are more, they are taken at equal distances.

    Raises:
        InputError, StoredDataError: the checkpoint is missing, damaged or no checkpoint.
    """
    split = "test" if len(store.rows("test", task)) else "validation"
    rows = store.rows(split, task)
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]
    set_precision("32")
    net = load_checkpoint(ckpt).net().to(device)
    shares: list[NDArray[np.float64]] = []
    embeddings: list[NDArray[np.float32]] = []
    deepest = deepest_layer(net.arch, store.shape)
    batches = Batches(store, task, None, segments_at_once(store.shape[0]), device)
    for batch in batches.passes(rows):
        logits = net(
            batch.x,
            [deepest],
            "relu",
            lambda _layer, maps: embeddings.append(maps.mean((2, 3)).cpu().numpy()),
        )
        shares.append(np.exp(log_probabilities(logits)))
    return Predicted(
        split,
        rows,
        store.labels(task)[rows],
        np.concatenate(shares) if shares else np.empty((0, len(store.classes[task]))),
        np.concatenate(embeddings) if embeddings else np.empty((0, 1), np.float32),
    )


def _errors(predicted: Predicted) -> list[int]:
    """Return the positions of wrong predictions, those of which the network is surest first."""
    wrong = np.flatnonzero(predicted.shares.argmax(1) != predicted.true)
    surest = np.argsort(-predicted.shares[wrong].max(1), kind="stable")
    return [int(position) for position in wrong[surest]]


def _sounds(
    store: FeatureStore,
    task: str,
    predicted: Predicted,
    errors: Sequence[int],
    recordings: Recordings,
) -> Sounds:
    """Return the errors of which the network is surest, with their recordings if found."""
    looked_at = f"{len(predicted.rows)} segments of the {predicted.split} split"
    if not errors:
        return Sounds(caption=_ERRORS, text=f"None of {looked_at} is predicted wrongly.")
    sounds, names = [], store.classes[task]
    for position in errors[:_HEARD]:
        row, shares = int(predicted.rows[position]), predicted.shares[position]
        text = (
            f"{task} {names[predicted.true[position]]}, predicted as {names[int(shares.argmax())]} "
            f"({shares.max():.1%}): {source_text(store, row)}"
        )
        sounds.append(Sound(text=text, wav=wav_of(store, row, recordings, _LONGEST_S)))
    texts = [
        f"{len(errors)} of {looked_at} are predicted wrongly; of these, the network is surest of "
        f"the {len(sounds)} below."
        if len(errors) > 1
        else f"1 of {looked_at} is predicted wrongly."
    ]
    texts += recordings_text(store, recordings, sounds)
    return Sounds(caption=_ERRORS, text=" ".join(texts), sounds=sounds)


def source_text(store: FeatureStore, row: int) -> str:
    """Return the recording of a segment, and where the segment begins in it."""
    path, _, start_s = store.sources[row].rpartition("#")
    return f"{path} from {start_s} s"


def wav_of(store: FeatureStore, row: int, recordings: Recordings, longest_s: float) -> bytes:
    """Return the first seconds of a segment as a WAV file; empty if they cannot be heard."""
    rate, samples = store.recipe.sample_rate, recordings.samples(row)
    return b"" if samples is None else wav_bytes(samples[: round(longest_s * rate)], rate)


def recordings_text(
    store: FeatureStore, recordings: Recordings, sounds: Sequence[Sound]
) -> list[str]:
    """Return sentences about recordings that are not heard, or not heard as they are stored."""
    heard, texts = sum(bool(sound.wav) for sound in sounds), []
    if recordings.home is None:
        texts.append("Their recordings are no longer where the store was made from.")
    elif heard < len(sounds):
        texts.append("Recordings that are missing or were edited since cannot be played.")
    if heard and store.recipe.noise != "none":
        texts.append("They are heard as recorded, without the noise that the store has.")
    return texts


def _preparation(store: FeatureStore, row: int, samples: NDArray[np.float32] | None) -> Figure:
    """Return the spectrogram of a segment before and after preparation."""
    recipe = store.recipe
    scale: dict[str, Any] = {
        "frame_s": recipe.hop / recipe.sample_rate,
        "bin_hz": None if recipe.is_mel else recipe.sample_rate / recipe.n_fft,
    }
    stored = store.features.take([row])[0].astype(np.float32)
    most = float(np.percentile(stored, 98))  # else a few loud bins leave the others white
    noise = "" if store.snr_db is None else f", noise at {store.snr_db[row]:g} dB SNR"
    if store.snr_db is not None and np.isnan(store.snr_db[row]):
        noise = ", silent and without noise"
    after = Spectrogram(values=stored, unit="standard deviations from the mean", **scale, most=most)
    steps = [(f"as stored: normalised{noise}", after)]
    if samples is not None:
        magnitudes = amplitudes(spectra(_padded(samples, recipe), recipe), recipe)
        before = Spectrogram(values=decibels(magnitudes), unit="dB below the maximum", **scale)
        steps.insert(
            0, (f"as recorded: {'mel bands' if recipe.is_mel else 'STFT magnitude'}", before)
        )
    return Figure(
        caption=f"A segment before and after preparation: {store.clip_ids[row]}."
        if samples is not None
        else f"A segment after preparation: {store.clip_ids[row]}. Its recording is not found.",
        rows=draw_preparation(steps).rows,
    )


def _padded(samples: NDArray[np.float32], recipe: Recipe) -> NDArray[np.float32]:
    y = np.zeros(recipe.samples, np.float32)
    y[: samples.size] = samples[: recipe.samples]
    return y


def _labels(store: FeatureStore, task: str, against: str | None) -> list[str]:
    others = [label for label in store.classes if label != task]
    return [task, *([against] if against in others else others[:1])]


def _components(store: FeatureStore, predicted: Predicted, labels: Sequence[str]) -> list[Part]:
    """Return the principal components of the deepest layer; nothing for under three segments."""
    if not predicted.is_drawable:
        return []
    marked = class_names(store, predicted.rows, labels)
    caption = (
        f"Maps of the deepest layer, averaged over positions, of {len(predicted.rows)} segments of "
        f"the {predicted.split} split: first two principal components."
    )
    return [Figure(caption=caption, rows=draw_embeddings(predicted.embeddings, marked).rows)]


def class_names(
    store: FeatureStore, rows: NDArray[np.int64], labels: Sequence[str]
) -> dict[str, list[str]]:
    """Return for each label the class of each segment; an empty name where it is not known."""
    names = {label: [*store.classes[label], ""] for label in labels}  # -1 is the last
    return {label: [names[label][i] for i in store.labels(label)[rows]] for label in labels}
