"""LibriSpeech: 1,000 hours of read English, 2,484 speakers, 16 kHz FLAC.

Source: Panayotov et al. (2015), openslr.org/12; CC BY 4.0.
Layout: ``<subset>/<speaker>/<chapter>/<utterance>.flac``, also below ``split/`` as in SpeechVGG.
Word labels need alignments; the first kind that exists is used:

* ``<speaker>-<chapter>.alignment.txt`` beside the audio (by CorentinJ; words and END times),
* ``<utterance>.TextGrid`` (Montreal Forced Aligner; tier ``words``),
* ``word_labels/<subset>-selected-*.txt`` (SpeechVGG; start and duration).

Labels: with ``--unit word``, ``word`` (the ``--words N`` most frequent, default 1000) and
``speaker``; each word is a segment. With ``--unit utterance``, ``speaker``; utterances are
segmented.
Split: the subsets (train-*, dev-*, test-*), whose speakers are disjoint.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from antigram.pipeline.corpora.text import check_file, read_text
from antigram.pipeline.corpus import Archive, Clip, Corpus, CorpusError, Skipped, Split

__all__ = ["LIBRISPEECH"]

_SUBSETS: dict[str, Split] = {
    "train-clean-100": "train",
    "train-clean-360": "train",
    "train-other-500": "train",
    "dev-clean": "validation",
    "dev-other": "validation",
    "test-clean": "test",
    "test-other": "test",
}
# Size, SHA-256: tensorflow/datasets, tensorflow_datasets/url_checksums/librispeech.txt; the same
# hashes in pytorch/audio, torchaudio/datasets/librispeech.py. `download` fetches the first one
# if no subset is named.
_PUBLISHED = {
    "train-clean-100": (
        6387309499,
        "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    ),
    "dev-clean": (337926286, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": (314305928, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": (346663984, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": (328757843, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
    "train-clean-360": (
        23049477885,
        "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    ),
    "train-other-500": (
        30593501606,
        "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    ),
}
_UTTERANCE = re.compile(r"(?P<speaker>\d+)-(?P<chapter>\d+)-\d{4}")
_ALIGNED = re.compile(r'(?P<utterance>\S+) "(?P<words>[^"]*)" "(?P<ends>[^"]*)"')
_NO_WORD = frozenset({"", "<unk>", "sil", "sp", "spn"})


class _Word(NamedTuple):
    utterance: str
    word: str
    start_s: float
    end_s: float


def _audio(home: Path, only: str) -> dict[str, tuple[str, Split]]:
    """Return a mapping from utterance to (relative path, split), for one subset or for all."""
    utterances: dict[str, tuple[str, Split]] = {}
    for top in (home, home / "split"):
        for subset, split in _SUBSETS.items():
            if only not in ("all", subset):
                continue
            for path in sorted((top / subset).glob("*/*/*.flac")):
                if path.name.startswith("."):
                    continue
                if _UTTERANCE.fullmatch(path.stem) is None:
                    raise CorpusError(
                        f"librispeech: {path} is not named <speaker>-<chapter>-<4 digits>.flac"
                    )
                utterances.setdefault(path.stem, (path.relative_to(home).as_posix(), split))
    return utterances


def _from_ends(path: Path) -> Iterator[_Word]:
    """Read words from CorentinJ's format, which has end times only; empty words are silences."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        match = _ALIGNED.fullmatch(line.strip())
        try:
            if match is None:
                raise ValueError("wanted: utterance, words and times in double quotes")
            words = match["words"].split(",")
            ends = [0.0, *map(float, match["ends"].split(","))]
            if len(words) != len(ends) - 1:
                raise ValueError(f"{len(words)} words, {len(ends) - 1} times")
        except ValueError as error:
            raise CorpusError(f"librispeech: {path}:{number}: {error}") from None
        for word, (start, end) in zip(words, pairwise(ends), strict=True):
            yield _Word(match["utterance"], word.lower(), start, end)


def _from_textgrid(path: Path) -> Iterator[_Word]:
    from praatio import textgrid
    from praatio.utilities.errors import PraatioException

    check_file(path)
    try:
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False)
        entries = grid.getTier("words").entries
    except (PraatioException, OSError, ValueError, KeyError, IndexError) as error:
        raise CorpusError(
            f"librispeech: {path}: not a TextGrid with a tier words: {error}"
        ) from None
    for entry in entries:
        yield _Word(path.stem, entry.label.lower(), float(entry.start), float(entry.end))


def _from_selected(path: Path) -> Iterator[_Word]:
    """Read SpeechVGG's format: ``<utterance> <channel> <start> <duration> <WORD> <confidence>``."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        fields = line.split()
        try:
            if len(fields) != 6:
                raise ValueError(f"{len(fields)} fields, wanted 6")
            start, length = float(fields[2]), float(fields[3])
        except ValueError as error:
            raise CorpusError(f"librispeech: {path}:{number}: {error}") from None
        yield _Word(fields[0], fields[4].lower(), start, start + length)


def _alignments(home: Path) -> Iterable[_Word]:
    visible = {
        kind: [p for p in sorted(home.rglob(kind)) if not p.name.startswith(".")]
        for kind in ("*.alignment.txt", "*.TextGrid")
    }
    if visible["*.alignment.txt"]:
        return (word for path in visible["*.alignment.txt"] for word in _from_ends(path))
    if visible["*.TextGrid"]:
        return (word for path in visible["*.TextGrid"] for word in _from_textgrid(path))
    selected = sorted((home / "word_labels").glob("[!.]*-selected-*.txt"))
    if selected:
        return (word for path in selected for word in _from_selected(path))
    raise CorpusError(
        f"librispeech: {home}: no word alignments (*.alignment.txt, *.TextGrid, or word_labels/). "
        "Put one beside the audio, or use `unit=utterance` for the speaker task."
    )


def _words(
    home: Path, audio: Mapping[str, tuple[str, Split]], most: int
) -> Iterator[Clip | Skipped]:
    spoken: list[_Word] = []
    no_audio = no_length = 0
    for word in _alignments(home):
        if word.word in _NO_WORD:
            continue
        if word.utterance not in audio:
            no_audio += 1
        elif not 0 <= word.start_s < word.end_s:
            no_length += 1
        else:
            spoken.append(word)
    counts = Counter(word.word for word in spoken)
    # Words of equal frequency are taken in alphabetical order, so that the choice is fixed.
    chosen = set(sorted(counts, key=lambda word: (-counts[word], word))[:most])
    rare = sum(n for word, n in counts.items() if word not in chosen)
    for reason, count in (
        ("word of an utterance that is not there", no_audio),
        ("word of no length", no_length),
        (f"word not among the {most} most frequent", rare),
    ):
        if count:
            yield Skipped(reason, count)
    for word in spoken:
        if word.word in chosen:
            path, split = audio[word.utterance]
            yield Clip(
                id=f"{word.utterance}@{word.start_s:08.3f}",
                path=path,
                labels={"word": word.word, "speaker": word.utterance.partition("-")[0]},
                group=word.utterance,
                split=split,
                start_s=word.start_s,
                end_s=word.end_s,
            )


def _clips(home: Path, options: Mapping[str, str]) -> Iterator[Clip | Skipped]:
    audio = _audio(home, options["subset"])
    if options["unit"] == "word":
        yield from _words(home, audio, int(options["words"]))
        return
    for utterance, (path, split) in sorted(audio.items()):
        labels = {"speaker": utterance.partition("-")[0]}
        yield Clip(id=utterance, path=path, labels=labels, split=split)


def _resolve(option: str, value: str) -> str:
    if option == "words" and not (value.isdecimal() and int(value) > 0):
        raise CorpusError(f"`words` {value!r}: librispeech wants how many of the most frequent")
    if option == "unit" and value not in ("word", "utterance"):
        raise CorpusError(f"`unit` {value!r}: wanted word or utterance")
    if option == "subset" and value not in ("all", *_SUBSETS):
        raise CorpusError(f"`subset` {value!r}: wanted all, {', '.join(_SUBSETS)}")
    return str(int(value)) if option == "words" else value


def _adapt(corpus: Corpus, options: Mapping[str, str]) -> Corpus:
    """Return the corpus; with ``unit=utterance``, label speakers only and segment recordings."""
    if options["unit"] == "word":
        return corpus
    return replace(corpus, labels=("speaker",), longer="segment")


LIBRISPEECH = Corpus(
    name="librispeech",
    labels=("word", "speaker"),
    seconds=4.0,
    longer="cut",
    official=True,
    licence="CC-BY-4.0",
    citation="Panayotov, V., Chen, G., Povey, D., Khudanpur, S. (2015). Librispeech: an ASR corpus "
    "based on public domain audio books. ICASSP, 5206-5210. doi:10.1109/ICASSP.2015.7178964.",
    how_to_get="LibriSpeech: openslr.org/12; words: github.com/CorentinJ/librispeech-alignments.",
    homepage="https://www.openslr.org/12",
    archives=tuple(
        Archive(
            url=f"https://www.openslr.org/resources/12/{subset}.tar.gz",
            name=f"librispeech-{subset}.tar.gz",
            size=size,
            known_hash=f"sha256:{digest}",
            subset=subset,
        )
        for subset, (size, digest) in _PUBLISHED.items()
    ),
    presets={"paper": {"unit": "word", "words": "1000", "subset": "train-clean-100"}},
    is_home=lambda folder: any(
        (top / subset).is_dir() for top in (folder, folder / "split") for subset in _SUBSETS
    ),
    list_clips=_clips,
    options={"unit": "word", "words": "1000", "subset": "all"},
    resolve=_resolve,
    adapt=_adapt,
)
