"""What a checkpoint says of audio files."""

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
    """What a checkpoint says of files.

    Attributes:
        checkpoint: the net that was asked.
        recordings: a result for each file that could be used, in their order.
        unreadable: files that could not.
    """

    checkpoint: Checkpoint
    recordings: Sequence[Recording]
    unreadable: Sequence[Unreadable]

    def to_json(self) -> dict[str, Any]:
        """Fields of ``predict --json``."""
        from antigram.model.training.predict import about

        return {
            "predictions": [s.to_json() for found in self.recordings for s in found.segments],
            "recordings": [found.prediction.to_json() for found in self.recordings],
            "unreadable": [found.to_json() for found in self.unreadable],
            "checkpoint": about(self.checkpoint),
        }

    def lines(self) -> list[str]:
        """For people: each recording, and its segments if it has several."""
        return [line for found in self.recordings for line in found.lines()]


def predict_files(
    ckpt: Path,
    audio: Iterable[Path],
    *,
    table: Path | None = None,
    skip_unreadable: bool = False,
    device: str = "auto",
    on_progress: OnProgress = lambda *_: None,
    on_message: OnMessage = lambda _: None,
) -> Predictions:
    """Predict the classes of recordings and their segments.

    Args:
        ckpt: the checkpoint, which carries all of the preprocessing.
        audio: files, folders (with all audio files below them) or patterns such as ``rec/*.wav``.
        table: CSV file that the segments go to, too.
        skip_unreadable: leave out files that cannot be used, and list them.
        device: where the net runs.
        on_progress: told a stage's name, files done, and files in all.
        on_message: told what the checkpoint is and which files were left out.

    Raises:
        InputError: a file cannot be used and is not to be skipped, or none can be.
        StoredDataError: the checkpoint is damaged.
    """
    if table is not None:
        check_target(table, "`table`")
    files = audio_files(audio)

    # Only now: a wrong name is refused at once.
    from antigram.model.training.checkpoint import load_checkpoint
    from antigram.model.training.device import named_device
    from antigram.model.training.predict import Unreadable, about_text, columns, predict

    checkpoint = load_checkpoint(ckpt)
    on_message(f"{ckpt}: {about_text(checkpoint)}")
    recordings: list[Recording] = []
    unreadable: list[Unreadable] = []
    place = named_device(device)
    with ExitStack() as held:
        add = None if table is None else held.enter_context(csv_table(table, columns(checkpoint)))
        for found in predict(
            checkpoint,
            files,
            device=place,
            skip_unreadable=skip_unreadable,
            on_progress=on_progress,
        ):
            if isinstance(found, Unreadable):
                on_message(f"left out: {found.file}: {found.reason}")
                unreadable.append(found)
                continue
            recordings.append(found)
            if add is not None:
                for segment in found.segments:
                    add(segment.cells())
    return Predictions(checkpoint, recordings, unreadable)
