"""The corpora that antigram knows: one file each, and the table of them."""

from __future__ import annotations

from pipeline.corpora.demo import DEMO
from pipeline.corpora.folder import FOLDER
from pipeline.corpora.fsdd import FSDD
from pipeline.corpora.gsc import GSC
from pipeline.corpora.iemocap import IEMOCAP
from pipeline.corpus import Corpus, CorpusError

__all__ = ["CORPORA", "find_corpus"]

CORPORA: dict[str, Corpus] = {c.name: c for c in (GSC, IEMOCAP, FSDD, FOLDER, DEMO)}


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
