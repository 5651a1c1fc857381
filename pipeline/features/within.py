"""Corpora narrowed to the training recordings of another store.

A teacher of anti-transfer may not have heard what the student is tested on: it is trained on the
target's own training recordings, divided anew into a training and a validation split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from antigram.pipeline.corpus import Clip, Corpus, CorpusError, Skipped
from antigram.pipeline.features.store import FeatureStore

__all__ = ["Training", "training_of"]


@dataclass(frozen=True, slots=True)
class Training:
    """The training recordings of a store: all that a teacher of its task may have heard.

    Attributes:
        store: name, for messages.
        fingerprint: of the store; goes into the recipe as ``within``.
        ids: of the recordings.
    """

    store: str
    fingerprint: str
    ids: frozenset[str]

    def of(self, corpus: Corpus, home: Path, clips: Sequence[Clip]) -> tuple[list[Clip], Skipped]:
        """Those of a corpus's recordings that are among them, and how many are not.

        Raises:
            CorpusError: some are not in the corpus, so that it is another one.
        """
        taken = [clip for clip in clips if clip.id in self.ids]
        if missing := sorted(self.ids - {clip.id for clip in taken}):
            raise CorpusError(
                f"{corpus.name}: {home}: {len(missing)} training recordings of the store "
                f"{self.store} are not there, {missing[0]} among them. "
                "Prepare both stores from the same source."
            )
        reason = f"not among the training recordings of {self.store}"
        return taken, Skipped(reason, len(clips) - len(taken))


def training_of(store: FeatureStore) -> Training:
    """The recordings of a store's training split."""
    ids = frozenset(store.recordings[row] for row in store.rows("train"))
    return Training(store.name, store.fingerprint, ids)
