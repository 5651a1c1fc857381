"""Template: 40 words x 30 speakers x 10 takes, one second, 16 kHz mono WAV. Copy this file.

Source: Somebody (2024), doi:10.0000/0000; CC BY 4.0.
Layout: ``train``, ``valid`` and ``test``, each with ``<word>_<speaker>_<take>.wav``.
Labels: ``word`` (40), ``speaker`` (30).
Split: the three folders; no speaker is in two of them. (Say here what a split does not keep apart.)

docs/add-a-corpus.md says what to do with this file. The adapters beside it show what else there is:
``gsc`` (an option, lists of files), ``asc`` (lists with a header), ``nsynth`` (JSON), ``iemocap``
(label files), ``good_sounds`` (SQLite, groups), ``librispeech`` (subsets, parts of a recording).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from antigram.pipeline.corpus import Archive, Clip, Corpus, CorpusError, Found, Skipped, Split

__all__ = ["TEMPLATE"]

_NAME = re.compile(r"(?P<word>[a-z]+)_(?P<speaker>[a-z]+)_(?P<take>\d+)\.wav")
_FOLDERS: dict[str, Split] = {"train": "train", "valid": "validation", "test": "test"}


def _is_home(folder: Path) -> bool:
    """Whether a folder is the corpus's own: something quick to see that no other corpus has."""
    return any((folder / "train").glob("*_*_*.wav"))


def _clips(home: Path, _options: Mapping[str, str]) -> Iterator[Found]:
    """List the recordings; their audio is not opened here.

    Text that comes with a corpus is read with `corpora.text.read_text`, a table with
    `corpora.strict_csv.read_table`: they refuse what is damaged, and name file, line and column.
    """
    hidden = 0
    for folder, split in _FOLDERS.items():
        for path in sorted((home / folder).iterdir()):  # sorted: the same order on every machine
            if path.name.startswith("."):  # macOS leaves ._name.wav behind
                hidden += 1
                continue
            if (name := _NAME.fullmatch(path.name)) is None:
                # A file that is not understood stops the listing: to leave it out would make the
                # corpus smaller than it is, and nobody would see it.
                raise CorpusError(f"template: {path} is not named <word>_<speaker>_<take>.wav")
            yield Clip(
                id=path.stem,  # unique in the corpus; holds nothing of where the corpus lies
                path=f"{folder}/{path.name}",  # relative to home, with /
                labels={"word": name["word"], "speaker": name["speaker"]},  # those that are known
                split=split,  # of the publisher; leave it out if there is none
                # group: clips with the same text stay in one split (takes of one sound).
                # start_s, end_s: where the clip lies in its file, if it is a part of it.
            )
    if hidden:
        yield Skipped("hidden file", hidden)  # what is normal there and no recording: counted


TEMPLATE = Corpus(
    name="template",
    labels=("word", "speaker"),  # the main one first
    seconds=1.0,  # length of a segment
    longer="cut",  # of a longer recording the start is kept; "segment": it is divided
    official=True,  # every clip has the publisher's split
    licence="CC-BY-4.0",
    citation="Somebody, S. (2024). A Corpus of Words. Journal of Examples 1, 1-10. "
    "doi:10.0000/0000.",
    how_to_get="Template: example.org/template (0.3 GB).",
    homepage="https://example.org/template",
    archives=(  # leave it out if the corpus may not be had without asking
        # SHA-256: published at example.org/template/SHA256SUMS.
        Archive(
            url="https://example.org/template/template-1.0.tar.gz",
            name="template-1.0.tar.gz",
            size=300_000_000,
            known_hash=f"sha256:{'0' * 64}",
        ),
    ),
    presets={"paper": {"limit_per_class": 1000}},  # settings that somebody published
    is_home=_is_home,
    list_clips=_clips,
)
