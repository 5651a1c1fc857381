"""The corpora that antigram knows: one file each, and the table of them."""

from __future__ import annotations

from typing import Any

from pipeline.corpora.asc import ASC
from pipeline.corpora.demo import DEMO
from pipeline.corpora.folder import FOLDER
from pipeline.corpora.fsdd import FSDD
from pipeline.corpora.good_sounds import GOOD_SOUNDS
from pipeline.corpora.gsc import GSC
from pipeline.corpora.iemocap import IEMOCAP
from pipeline.corpora.librispeech import LIBRISPEECH
from pipeline.corpora.ms_snsd import MS_SNSD
from pipeline.corpora.nsynth import NSYNTH
from pipeline.corpus import Corpus, CorpusError, locate
from pipeline.presets import PRESETS
from pipeline.workspace import Workspace

__all__ = ["CORPORA", "describe_corpora", "find_corpus"]

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
        FOLDER,
        DEMO,
    )
}


def find_corpus(name: str) -> Corpus:
    """Return the corpus of a name.

    Raises:
        CorpusError: no adapter has that name; the message lists those there are.
    """
    if name not in CORPORA:
        raise CorpusError(
            f"no corpus is called {name!r}; antigram knows {', '.join(CORPORA)}. "
            "For your own recordings: `antigram prepare folder --source DIR`."
        )
    return CORPORA[name]


def describe_corpora(workspace: Workspace) -> list[dict[str, Any]]:
    """Fields of ``corpora --json``: what each corpus is, and whether it is there."""
    found = []
    for corpus in CORPORA.values():
        candidates = workspace.corpus_candidates(corpus.name, None)
        try:
            path: str | None = str(locate(corpus, candidates))
        except CorpusError:
            path = None
        found.append(
            {
                "name": corpus.name,
                "labels": list(corpus.labels),
                "seconds": corpus.seconds,
                "longer": corpus.longer,
                "overlap": corpus.overlap,
                "official_split": corpus.official,
                "noise": corpus.noise,
                "options": dict(corpus.options),
                "licence": corpus.licence,
                "how_to_get": corpus.how_to_get,
                "presets": {k: dict(v) for k, v in PRESETS.get(corpus.name, {}).items()},
                "looked_in": [str(candidate) for candidate in candidates],
                "path": path,
            }
        )
    return found
