"""Open a teacher that antigram did not train, with the audio of a store if it takes audio."""

from __future__ import annotations

from pathlib import Path

from antigram.model.training.external_teacher import ExternalTeacher
from antigram.pipeline.callbacks import OnMessage, OnProgress
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.segment_audio import SegmentAudio
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace
from antigram.studies.audio import audio_of

__all__ = ["open_external"]


def open_external(
    text: str,
    store: FeatureStore,
    workspace: Workspace,
    *,
    source: Path | None = None,
    noise_source: Path | None = None,
    on_progress: OnProgress = lambda *_: None,
    on_message: OnMessage = lambda _: None,
) -> ExternalTeacher:
    """Build a teacher from a package or a user's file.

    Args:
        text: a name, or ``FILE.py:function``: see `external_net`.
        store: features that it is run on.
        workspace: corpora are looked up in it.
        source: folder of the store's recordings: see `audio_of`.
        noise_source: folder of the noise, if noise was mixed in: see `audio_of`.
        on_progress: called with the name of a stage, the amount done, and the total.
        on_message: called with a line of text for each folder that was chosen.

    Raises:
        InputError: there is no such teacher, its package is not installed, or the audio of the
            store cannot be rendered again.
        StoredDataError: the store is damaged.
    """

    def audio(rate: int) -> SegmentAudio:
        return audio_of(
            store,
            workspace,
            source=source,
            noise_source=noise_source,
            sample_rate=rate,
            on_progress=on_progress,
            on_message=on_message,
        )

    teacher = ExternalTeacher(text, audio)
    if teacher.audio is None and (source or noise_source):
        raise InputError(
            f"`source`: {text} takes the stored features, and no recordings; leave it out"
        )
    return teacher
