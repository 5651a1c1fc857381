"""Restrict a corpus to recordings of a store: those of its training split, or all.

A teacher must not be trained on recordings that the student is tested on. It is therefore trained
on the training recordings of the student's store, with a new training and validation split.
All recordings of a store are listed again to render its audio again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from antigram.pipeline.corpus import Clip, Corpus, CorpusError, Skipped
from antigram.pipeline.features.store import FeatureStore

__all__ = ["Training", "all_of", "training_of"]


@dataclass(frozen=True, slots=True)
class Training:
    """Recordings of a store, to which a corpus is restricted: those of its training split, or all.

    Attributes:
        store: name of the store, for messages.
        fingerprint: fingerprint of the store; the recipe's field ``within``.
        ids: ids of the recordings.
        which: what the recordings are, for messages.
        advice: what to do if some of them are missing, for messages.
    """

    store: str
    fingerprint: str
    ids: frozenset[str]
    which: str = "training recordings"
    advice: str = "Prepare both stores from the same source."

    def select(
        self, corpus: Corpus, home: Path, clips: Sequence[Clip]
    ) -> tuple[list[Clip], Skipped]:
        """Return the recordings of a corpus that are among these, and the number of others.

        Raises:
            CorpusError: the corpus lacks some of the recordings.
        """
        selected = [clip for clip in clips if clip.id in self.ids]
        if missing := sorted(self.ids - {clip.id for clip in selected}):
            raise CorpusError(
                f"{corpus.name}: {home}: {len(missing)} {self.which} of the store "
                f"{self.store} are not there, {missing[0]} among them. {self.advice}"
            )
        reason = f"not among the {self.which} of {self.store}"
        return selected, Skipped(reason, len(clips) - len(selected))


def training_of(store: FeatureStore) -> Training:
    """Return the recordings in the training split of a store."""
    ids = frozenset(store.recordings[row] for row in store.rows("train"))
    return Training(store.name, store.fingerprint, ids)


def all_of(store: FeatureStore) -> Training:
    """Return all recordings of a store."""
    advice = "Name the folder that the store was prepared from with `source`."
    ids = frozenset(store.recordings)
    return Training(store.name, store.fingerprint, ids, "recordings", advice)
