"""List a corpus for tests, by clip or by row."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from antigram.pipeline.audio.noise import noise_files
from antigram.pipeline.corpora import CORPORA
from antigram.pipeline.corpus import Clip, Corpus, Entry, Skipped, locate
from antigram.pipeline.features.listing import Listing, list_rows
from antigram.pipeline.features.naming import recipe_for


def entries_of(corpus: Corpus, home: Path, **options: str) -> list[Entry]:
    """Return the clips and skipped files of a corpus, as its adapter lists them."""
    assert corpus.list_clips is not None
    return list(corpus.list_clips(home, {**corpus.options, **options}))


def clips_of(corpus: Corpus, home: Path, **options: str) -> tuple[dict[str, Clip], Counter[str]]:
    """Return id -> clip, and reason -> number of skipped files."""
    found = entries_of(corpus, home, **options)
    skipped: Counter[str] = Counter()
    for each in found:
        if isinstance(each, Skipped):
            skipped[each.reason] += each.count
    return {clip.id: clip for clip in found if isinstance(clip, Clip)}, skipped


def rows_of(corpus: Corpus, home: Path, **asked: object) -> Listing:
    """Return the listing of a corpus with settings as on the command line."""
    corpus, recipe = recipe_for(corpus, asked)
    noise = noise_files([home])[1] if corpus.list_mixtures else None
    home = home / "clean_train" if corpus.list_mixtures else home
    return list_rows(corpus, home, recipe, noise)


def real_rows(corpora: Path, name: str, **asked: object) -> Listing:
    """Return the listing of a corpus with real recordings."""
    corpus = CORPORA[name]
    return rows_of(corpus, locate(corpus, [corpora / name]), **asked)


def labels_of(listing: Listing, label: str) -> Counter[str | None]:
    """Return class -> number of rows; None counts the rows without the label."""
    return Counter(dict(row.labels).get(label) for row in listing.rows)
