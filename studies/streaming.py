"""Predict long recordings window by window, and write the rows of a table as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from antigram.pipeline.audio.find import audio_files
from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import InputError
from antigram.pipeline.table import check_target, csv_rows

if TYPE_CHECKING:
    from antigram.model.training.predict import Prediction

__all__ = ["stream_files"]


def stream_files(
    ckpt: Path,
    audio: Iterable[Path],
    *,
    hop_seconds: float | None = None,
    table: Path | None = None,
    skip_unreadable: bool = False,
    device: str = "auto",
    arch: str | None = None,
    on_message: OnMessage = lambda _: None,
) -> Iterator[Prediction]:
    """Predict recordings of any length, window by window, in constant memory.

    Args:
        ckpt: the checkpoint, which also holds the preprocessing.
        audio: files, folders (with all audio files below them) or patterns such as ``rec/*.wav``.
        hop_seconds: seconds from the start of a window to the next; default: as in the recipe.
        table: CSV file that gets a row for each window as soon as it is predicted; an existing file
            is replaced, and rows stay if the work is interrupted. Default: none.
        skip_unreadable: go on after a file that cannot be used.
        device: device of the network, such as ``cpu`` or ``auto``.
        arch: ``FILE.py:function`` of a network of the user's own.
        on_message: called with lines of text: the checkpoint, and each skipped file.

    Yields:
        A prediction for each window, and after those of a file one for the recording, whose
        ``start_s`` is None.

    Raises:
        InputError: a file cannot be used and ``skip_unreadable`` is False, or another argument is
            wrong.
        StoredDataError: the checkpoint is damaged.
    """
    if table is not None:
        check_target(table, "`table`")
    files = audio_files(audio)

    from antigram.model.nets.own import import_own
    from antigram.model.training.checkpoint import load_checkpoint
    from antigram.model.training.device import named_device
    from antigram.model.training.predict import Unreadable, about_text, columns, unusable
    from antigram.model.training.stream import stream

    import_own(arch)
    checkpoint = load_checkpoint(ckpt)
    on_message(f"{ckpt}: {about_text(checkpoint)}")
    used, first = 0, None
    with ExitStack() as held:
        add = None if table is None else held.enter_context(csv_rows(table, columns(checkpoint)))
        device_ = named_device(device)
        for result in stream(checkpoint, files, device=device_, hop_seconds=hop_seconds):
            if isinstance(result, Unreadable):
                if not skip_unreadable:
                    raise unusable(result)
                on_message(f"left out from here on: {result.file}: {result.reason}")
                first = first or result
                continue
            used += 1
            if add is not None and result.start_s is not None:
                add(result.cells())
            yield result
    if first is not None and not used:
        raise InputError(f"none of {len(files)} files can be used. {unusable(first)}")
