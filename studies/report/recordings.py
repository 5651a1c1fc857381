"""Find the recordings that a store was made from, and decode what is heard in a segment."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from antigram.pipeline.audio.decoding import AudioError, read
from antigram.pipeline.corpora import find_corpus
from antigram.pipeline.corpus import locate
from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.features.source_record import path_of, read_home, read_sources
from antigram.pipeline.features.sources import compare
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace

__all__ = ["Recordings", "wav_bytes"]


class Recordings:
    """The recordings of a store, where they are still found and unchanged.

    Args:
        store: a store, or a fold of one.
        workspace: corpora are looked up in it if the store's record does not name the folder.

    Attributes:
        home: the corpus's folder; None if it is not found.
    """

    def __init__(self, store: FeatureStore, workspace: Workspace) -> None:
        self._store = store
        base = store if store.base is None else store.base
        self._record, self._fingerprint = path_of(base.path), base.fingerprint
        self.home = self._find(workspace)

    def _find(self, workspace: Workspace) -> Path | None:
        with suppress(DamagedError, OSError):
            home = read_home(self._record, self._fingerprint)
            if home is not None and home.is_dir():
                return home
        with suppress(InputError, OSError):
            corpus = find_corpus(self._store.recipe.corpus)
            home = locate(corpus, workspace.corpus_candidates(corpus.name, None))
            return home if corpus.list_mixtures is None else home / "clean_train"
        return None

    def samples(self, row: int) -> NDArray[np.float32] | None:
        """Decode a segment as it was recorded, without noise that `prepare` mixed in.

        Zeros at the end of a segment are left out; so a word that was cut out of a longer recording
        ends where it ends in the store.

        Args:
            row: index of the segment.

        Returns:
            ``(sample,)`` float32 at the recipe's rate, full scale 1; None if the recording is not
            found, cannot be decoded or was edited since the store was made.
        """
        path, _, start_s = self._store.sources[row].rpartition("#")
        if self.home is None or self._is_changed(path):
            return None
        recipe = self._store.recipe
        with suppress(AudioError, OSError):
            samples = read(
                f"{self.home}/{path}",
                start=round(float(start_s) * recipe.sample_rate),
                count=min(recipe.samples, self._used_samples(row)),
                sample_rate=recipe.sample_rate,
            )
            return samples if samples.size else None
        return None

    def _used_samples(self, row: int) -> int:
        """Return how many samples of a segment precede the zeros at its end."""
        x = self._store.features.take([row])[0]
        used = np.flatnonzero((x != x[-1, -1]).any(1))
        last = int(used[-1]) if len(used) else len(x)
        return last * self._store.recipe.hop + self._store.recipe.n_fft // 2

    def _is_changed(self, path: str) -> bool:
        """Whether a recording is known to be another than the one that the store was made from."""
        with suppress(DamagedError, OSError):
            noted = read_sources(self._record, self._fingerprint) or []
            of_path = [source for source in noted if source.path == path]
            return bool(self.home and compare(self.home, of_path).changed)
        return False


def wav_bytes(samples: NDArray[np.float32], sample_rate: int) -> bytes:
    """Return samples as a WAV file of 16 bits; those beyond full scale are clipped."""
    file = io.BytesIO()
    soundfile.write(file, samples.clip(-1, 1), sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
