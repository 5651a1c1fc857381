"""Good-Sounds: single notes and scales of 12 instruments, played well and badly on purpose.

Source: Romani Picas et al. (2015), zenodo.org/records/820937; CC BY-NC 4.0 by Zenodo.
Layout: ``database.sqlite`` (tables sounds, takes, packs) and ``sound_files/<pack>/<microphone>/``.
A sound has one take for each microphone; of the takes whose file exists, one is used: neumann, else
akg, else iphone. Sample rates differ and are read from the files.
Labels: ``goodness`` (5, the paper's rules below), ``instrument`` (12), ``player``.
Split: none by the publisher. Five instruments have a single player, so ``by:player`` separates
instruments too.

The paper's classes follow from ``klass``: good-sound; bad-pitch (any value that contains it);
bad-dynamics; bad-timbre, which includes bad-richness; bad-attack. Left out are scales, and values
other than bad-pitch that contain a blank or two ``bad``s.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from antigram.pipeline.corpora.text import check_file
from antigram.pipeline.corpus import Archive, Clip, Corpus, CorpusError, Skipped
from antigram.pipeline.storage.regular import is_named

__all__ = ["GOOD_SOUNDS", "goodness"]

_MICROPHONES = ("neumann", "akg", "iphone")
_PREFIXES = {
    "bad-dynamics": "bad-dynamics",
    "bad-timbre": "bad-timbre",
    "bad-richness": "bad-timbre",
    "bad-attack": "bad-attack",
}
_QUERY = """
SELECT sounds.id, sounds.klass, sounds.instrument, sounds.player, takes.microphone, takes.filename
FROM takes LEFT JOIN sounds ON takes.sound_id = sounds.id ORDER BY sounds.id, takes.id
"""


def goodness(klass: str | None) -> str | None:
    """Return the paper's class of a ``klass`` in the database; None if the paper leaves it out."""
    if klass is None or "scale" in klass:
        return None
    if "bad-pitch" in klass:
        return "bad-pitch"
    if " " in klass.strip() or klass.count("bad") > 1:
        return None
    if klass == "good-sound":
        return klass
    return next((to for start, to in _PREFIXES.items() if klass.startswith(start)), None)


def _reason(klass: str | None) -> str:
    if klass is None:
        return "sound without klass"
    return "scale" if "scale" in klass else f"klass {klass}"


def _takes(home: Path) -> list[tuple[int | None, str | None, str, str, str, str]]:
    database = home / "database.sqlite"
    check_file(database)
    try:
        # Immutable: opened read only, and SQLite leaves no journal beside the corpus.
        connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            return connection.execute(_QUERY).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise CorpusError(f"good-sounds: {database}: not Good-Sounds' database: {error}") from None


def _clips(home: Path, _options: Mapping[str, str]) -> Iterator[Clip | Skipped]:
    sounds: dict[int, list[tuple[str, str]]] = {}
    facts: dict[int, tuple[str, str, str]] = {}
    for number, klass, instrument, player, microphone, filename in _takes(home):
        if number is None:
            yield Skipped("take without a sound")
        elif (label := goodness(klass)) is None:
            yield Skipped(f"{_reason(klass)}")
        elif not filename or filename[0] == "/" or ".." in filename.split("/"):
            yield Skipped("take without a usable file name")
        elif not (home / filename).is_file():
            yield Skipped("take whose file is absent")
        elif microphone not in _MICROPHONES:
            yield Skipped(f"microphone {microphone}")
        else:
            sounds.setdefault(number, []).append((microphone, filename))
            facts[number] = label, instrument or "", player or ""
    for number, takes in sorted(sounds.items()):
        # One take of each sound, so that the same note is not in two splits.
        microphone, filename = min(takes, key=lambda take: _MICROPHONES.index(take[0]))
        if len(takes) > 1:
            yield Skipped("take of another microphone", len(takes) - 1)
        labels = dict(zip(GOOD_SOUNDS.labels, facts[number], strict=True))
        yield Clip(
            id=f"{number:06d}",
            path=filename,
            labels={k: v for k, v in labels.items() if v},
            group=f"sound {number}",
        )


GOOD_SOUNDS = Corpus(
    name="good-sounds",
    labels=("goodness", "instrument", "player"),
    seconds=6.0,
    longer="cut",
    licence="CC-BY-NC-4.0 (stated differently by different sources)",
    citation="Romani Picas, O., Parra Rodriguez, H., Dabiri, D., Tokuda, H., Hariya, W., Oishi, "
    "K., Serra, X. (2015). A Real-Time System for Measuring Sound Goodness in Instrumental Sounds. "
    "138th Convention of the Audio Engineering Society.",
    how_to_get="Good-Sounds: zenodo.org/records/820937.",
    homepage="https://zenodo.org/records/820937",
    archives=(
        # MD5: mirdata, mirdata/datasets/good_sounds.py; Zenodo publishes MD5s.
        Archive(
            url="https://zenodo.org/records/820937/files/good-sounds.zip?download=1",
            name="good-sounds.zip",
            known_hash="md5:2137bbb2d32c1d60aa51e1301225f541",
        ),
    ),
    presets={"paper": {"balance": True}},
    is_home=lambda folder: is_named(folder / "database.sqlite"),
    list_clips=_clips,
)
