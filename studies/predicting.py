"""Predict the classes of audio files with a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antigram.pipeline.audio.find import audio_files
from antigram.pipeline.callbacks import OnMessage, OnProgress
from antigram.pipeline.table import check_target, csv_table

if TYPE_CHECKING:
    from antigram.model.training.checkpoint import Checkpoint
    from antigram.model.training.predict import Recording, Unreadable

__all__ = ["Predictions", "predict_files"]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions of a checkpoint for audio files.

    Attributes:
        checkpoint: the network that made the predictions.
        recordings: one result for each file that could be used, in the order of the files.
        unreadable: files that could not be used, with reasons.
    """

    checkpoint: Checkpoint
    recordings: Sequence[Recording]
    unreadable: Sequence[Unreadable]

    def to_json(self) -> dict[str, Any]:
        """Return the fields of ``predict --json``."""
        from antigram.model.training.predict import about

        return {
            "predictions": [s.to_json() for r in self.recordings for s in r.segments],
            "recordings": [r.prediction.to_json() for r in self.recordings],
            "unreadable": [file.to_json() for file in self.unreadable],
            "checkpoint": about(self.checkpoint),
        }

    def lines(self) -> list[str]:
        """Return the recordings as text, with their segments where there are several."""
        return [line for recording in self.recordings for line in recording.lines()]


def predict_files(
    ckpt: Path,
    audio: Iterable[Path],
    *,
    table: Path | None = None,
    skip_unreadable: bool = False,
    device: str = "auto",
    arch: str | None = None,
    on_progress: OnProgress = lambda *_: None,
    on_message: OnMessage = lambda _: None,
) -> Predictions:
    """Predict the classes of recordings and their segments.

    Args:
        ckpt: the checkpoint, which also holds the preprocessing.
        audio: files, folders (with all audio files below them) or patterns such as ``rec/*.wav``.
        table: CSV file to write the segments to; default: none.
        skip_unreadable: skip files that cannot be used, and list them.
        device: device of the network, such as ``cpu`` or ``auto``.
        arch: ``FILE.py:function`` of a network of the user's own.
        on_progress: called with the name of a stage, files done, and number of files.
        on_message: called with lines of text: the checkpoint, and each skipped file.

    Raises:
        InputError: a file cannot be used and ``skip_unreadable`` is False, or no file can be used.
        StoredDataError: the checkpoint is damaged.
    """
    if table is not None:
        check_target(table, "`table`")
    files = audio_files(audio)

    # Imported only now, so that a wrong name is refused at once.
    from antigram.model.nets.own import import_own
    from antigram.model.training.checkpoint import load_checkpoint
    from antigram.model.training.device import named_device
    from antigram.model.training.predict import Unreadable, about_text, columns, predict

    import_own(arch)
    checkpoint = load_checkpoint(ckpt)
    on_message(f"{ckpt}: {about_text(checkpoint)}")
    recordings: list[Recording] = []
    unreadable: list[Unreadable] = []
    torch_device = named_device(device)
    with ExitStack() as held:
        add = None if table is None else held.enter_context(csv_table(table, columns(checkpoint)))
        for result in predict(
            checkpoint,
            files,
            device=torch_device,
            skip_unreadable=skip_unreadable,
            on_progress=on_progress,
        ):
            if isinstance(result, Unreadable):
                on_message(f"left out: {result.file}: {result.reason}")
                unreadable.append(result)
                continue
            recordings.append(result)
            if add is not None:
                for segment in result.segments:
                    add(segment.cells())
    return Predictions(checkpoint, recordings, unreadable)
