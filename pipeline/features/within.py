"""Restrict a corpus to the training recordings of another store.

A teacher must not be trained on recordings that the student is tested on. It is therefore trained
on the training recordings of the student's store, with a new training and validation split.
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
    """The training recordings of a store, to which a teacher's corpus is restricted.

    Attributes:
        store: name of the store, for messages.
        fingerprint: fingerprint of the store; the recipe's field ``within``.
        ids: ids of the recordings.
    """

    store: str
    fingerprint: str
    ids: frozenset[str]

    def select(
        self, corpus: Corpus, home: Path, clips: Sequence[Clip]
    ) -> tuple[list[Clip], Skipped]:
        """Return the recordings of a corpus that are training recordings, and the number of others.

        Raises:
            CorpusError: the corpus lacks some of the recordings.
        """
        selected = [clip for clip in clips if clip.id in self.ids]
        if missing := sorted(self.ids - {clip.id for clip in selected}):
            raise CorpusError(
                f"{corpus.name}: {home}: {len(missing)} training recordings of the store "
                f"{self.store} are not there, {missing[0]} among them. "
                "Prepare both stores from the same source."
            )
        reason = f"not among the training recordings of {self.store}"
        return selected, Skipped(reason, len(clips) - len(selected))


def training_of(store: FeatureStore) -> Training:
    """Return the recordings in the training split of a store."""
    ids = frozenset(store.recordings[row] for row in store.rows("train"))
    return Training(store.name, store.fingerprint, ids)
