"""Template: 40 words x 30 speakers x 10 takes, one second, 16 kHz mono WAV. Copy this file.

Source: Somebody (2024), doi:10.0000/0000; CC BY 4.0.
Layout: ``train``, ``valid`` and ``test``, each with ``<word>_<speaker>_<take>.wav``.
Labels: ``word`` (40), ``speaker`` (30).
Split: the three folders; no speaker is in two of them. (Say here what two splits may share.)

docs/add-a-corpus.md says what to do with this file. Other adapters show further features:
``gsc`` (an option, lists of files), ``asc`` (lists with a header), ``nsynth`` (JSON), ``iemocap``
(label files), ``good_sounds`` (SQLite, groups), ``librispeech`` (subsets, parts of a recording).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from antigram.pipeline.corpus import Archive, Clip, Corpus, CorpusError, Entry, Skipped, Split

__all__ = ["TEMPLATE"]

_NAME = re.compile(r"(?P<word>[a-z]+)_(?P<speaker>[a-z]+)_(?P<take>\d+)\.wav")
_FOLDERS: dict[str, Split] = {"train": "train", "valid": "validation", "test": "test"}


def _is_home(folder: Path) -> bool:
    """Whether a folder is the corpus's own folder: a quick check that no other corpus passes."""
    return any((folder / "train").glob("*_*_*.wav"))


def _clips(home: Path, _options: Mapping[str, str]) -> Iterator[Entry]:
    """Yield the recordings; their audio is not opened here.

    Read a corpus's text files with `corpora.text.read_text` and its tables with
    `corpora.strict_csv.read_table`: they refuse damaged files and name file, line and column.
    """
    hidden = 0
    for folder, split in _FOLDERS.items():
        for path in sorted((home / folder).iterdir()):  # sorted: the same order on every machine
            if path.name.startswith("."):  # macOS leaves ._name.wav behind
                hidden += 1
                continue
            if (name := _NAME.fullmatch(path.name)) is None:
                # An unexpected file stops the listing: if it were left out, the corpus would
                # shrink and nobody would notice.
                raise CorpusError(f"template: {path} is not named <word>_<speaker>_<take>.wav")
            yield Clip(
                id=path.stem,  # unique in the corpus; does not depend on where the corpus is stored
                path=f"{folder}/{path.name}",  # relative to the corpus's folder, with /
                labels={"word": name["word"], "speaker": name["speaker"]},  # known labels only
                split=split,  # the publisher's; leave it out if there is none
                # group: clips with the same group stay in one split (takes of one sound).
                # start_s, end_s: start and end of the clip, if it is a part of its file.
            )
    if hidden:
        yield Skipped("hidden file", hidden)  # normal in this corpus, but no recording: counted


TEMPLATE = Corpus(
    name="template",
    labels=("word", "speaker"),  # the main one first
    seconds=1.0,  # length of a segment
    longer="cut",  # keep the start of a longer recording; "segment": divide it
    official=True,  # every clip has the publisher's split
    licence="CC-BY-4.0",
    citation="Somebody, S. (2024). A Corpus of Words. Journal of Examples 1, 1-10. "
    "doi:10.0000/0000.",
    how_to_get="Template: example.org/template (0.3 GB).",
    homepage="https://example.org/template",
    archives=(  # leave it out if the corpus cannot be downloaded freely
        # SHA-256: published at example.org/template/SHA256SUMS.
        Archive(
            url="https://example.org/template/template-1.0.tar.gz",
            name="template-1.0.tar.gz",
            size=300_000_000,
            known_hash=f"sha256:{'0' * 64}",
        ),
    ),
    presets={"paper": {"limit_per_class": 1000}},  # published settings
    is_home=_is_home,
    list_clips=_clips,
)
