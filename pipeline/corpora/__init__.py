"""The corpora that antigram knows: a module for each corpus, and the mapping `CORPORA`."""

from __future__ import annotations

from antigram.pipeline.corpora.asc import ASC
from antigram.pipeline.corpora.audiomnist import AUDIOMNIST
from antigram.pipeline.corpora.crema_d import CREMA_D
from antigram.pipeline.corpora.demo import DEMO
from antigram.pipeline.corpora.emodb import EMODB
from antigram.pipeline.corpora.esc50 import ESC50
from antigram.pipeline.corpora.folder import FOLDER
from antigram.pipeline.corpora.fsdd import FSDD
from antigram.pipeline.corpora.good_sounds import GOOD_SOUNDS
from antigram.pipeline.corpora.gsc import GSC
from antigram.pipeline.corpora.iemocap import IEMOCAP
from antigram.pipeline.corpora.librispeech import LIBRISPEECH
from antigram.pipeline.corpora.manifest import MANIFEST
from antigram.pipeline.corpora.ms_snsd import MS_SNSD
from antigram.pipeline.corpora.nsynth import NSYNTH
from antigram.pipeline.corpora.ravdess import RAVDESS
from antigram.pipeline.corpora.tess import TESS
from antigram.pipeline.corpus import Corpus, CorpusError

__all__ = ["CORPORA", "find_corpus"]

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        GSC,
        IEMOCAP,
        MS_SNSD,
        LIBRISPEECH,
        NSYNTH,
        GOOD_SOUNDS,
        FSDD,
        ASC,
        EMODB,
        RAVDESS,
        CREMA_D,
        ESC50,
        AUDIOMNIST,
        TESS,
        FOLDER,
        MANIFEST,
        DEMO,
    )
}


def find_corpus(name: str) -> Corpus:
    """Return the corpus with a given name.

    Raises:
        CorpusError: no adapter has that name; the message lists the known names.
    """
    if name not in CORPORA:
        raise CorpusError(
            f"no corpus is called {name!r}; antigram knows {', '.join(CORPORA)}. "
            "For your own recordings: `antigram prepare folder` with `source=DIR`."
        )
    return CORPORA[name]
