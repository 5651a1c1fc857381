"""IEMOCAP: 5 sessions of acted and improvised dialogue, 10 speakers, 10,039 turns, 16 kHz WAV.

Source: Busso et al. (2008), doi:10.1007/s10579-008-9076-6; licensed by agreement with USC.
Layout: ``Session<1-5>/sentences/wav/<dialog>/<turn>.wav`` and
``Session<1-5>/dialog/EmoEvaluation/<dialog>.txt``, whose lines in brackets give a turn's emotion.
Labels: ``emotion`` neu ang hap sad, as in the paper (exc, fru, xxx and rarer ones are skipped);
``speaker`` (10): the session and the letter in the LAST part of a turn's name (the letter after the
session says who wore the motion-capture markers); ``session`` (5).
Split: none by the publisher. ``by:session`` separates speakers too; ``random`` does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from antigram.pipeline.corpora.text import read_text
from antigram.pipeline.corpus import Clip, Corpus, CorpusError, Skipped, wav_names

__all__ = ["IEMOCAP"]

_EMOTIONS = frozenset({"neu", "ang", "hap", "sad"})
_TURN = re.compile(r"Ses0(?P<session>[1-5])[FM]_.+_(?P<speaker>[FM])(?:\d{3}|XX\d)")
# [6.2901 - 8.2357] <tab> Ses01F_impro01_F000 <tab> neu <tab> [2.5000, 2.5000, 2.5000]
_LINE = re.compile(r"\[[^\]]*\]\s+(?P<turn>\S+)\s+(?P<emotion>[a-z]{3})\s")


def _emotions(session: Path) -> Iterator[tuple[str, str]]:
    """Yield turn and emotion from EmoEvaluation, but not from its subfolders of single raters."""
    for path in sorted((session / "dialog" / "EmoEvaluation").glob("*.txt")):
        if path.name.startswith("."):
            continue
        for number, line in enumerate(read_text(path, errors="replace").splitlines(), 1):
            if line.startswith("["):
                if (match := _LINE.match(line)) is None:
                    raise CorpusError(f"iemocap: {path}:{number}: not a label line: {line[:60]!r}")
                yield match["turn"], match["emotion"]


def _clips(home: Path, _options: Mapping[str, str]) -> Iterator[Clip | Skipped]:
    for session in sorted(home.glob("Session[1-5]")):
        labels = dict(_emotions(session))
        folder = f"{session.name}/sentences/wav"
        for dialog in sorted(
            p for p in (home / folder).glob("*") if p.is_dir() and p.name[0] != "."
        ):
            if hidden := sum(1 for p in dialog.glob(".*.wav")):
                yield Skipped("hidden file (._*.wav)", hidden)
            for file in wav_names(dialog):
                turn = file.removesuffix(".wav")
                if (name := _TURN.fullmatch(turn)) is None:
                    raise CorpusError(
                        f"iemocap: {dialog / file} is not named <dialog>_<F or M><number>.wav"
                    )
                emotion = labels.pop(turn, None)
                if emotion not in _EMOTIONS:
                    yield Skipped(f"emotion {emotion}" if emotion else "turn without a label")
                    continue
                yield Clip(
                    id=turn,
                    path=f"{folder}/{dialog.name}/{file}",
                    labels={
                        "emotion": emotion,
                        "speaker": f"Ses0{name['session']}{name['speaker']}",
                        "session": name["session"],
                    },
                )
        for turn, emotion in labels.items():
            if emotion in _EMOTIONS and (match := _TURN.fullmatch(turn)):
                dialog_name = turn.rpartition("_")[0]
                yield Clip(  # a labelled turn without a file: the header check rejects it by name
                    id=turn,
                    path=f"{folder}/{dialog_name}/{turn}.wav",
                    labels={
                        "emotion": emotion,
                        "speaker": f"Ses0{match['session']}{match['speaker']}",
                        "session": match["session"],
                    },
                )


IEMOCAP = Corpus(
    name="iemocap",
    labels=("emotion", "speaker", "session"),
    seconds=4.0,
    overlap=0.5,
    longer="segment",
    licence="by agreement with USC; research only",
    citation="Busso, C., Bulut, M., Lee, C.-C., Kazemzadeh, A., Mower, E., Kim, S., Chang, J. N., "
    "Lee, S., Narayanan, S. S. (2008). IEMOCAP: Interactive emotional dyadic motion capture "
    "database. Language Resources and Evaluation 42, 335-359. doi:10.1007/s10579-008-9076-6.",
    how_to_get="IEMOCAP is given by agreement only: send USC the signed form of "
    "sail.usc.edu/iemocap/iemocap_release.htm, then `antigram prepare iemocap` with `source=DIR`.",
    homepage="https://sail.usc.edu/iemocap/",
    # Windows of 4 s for emotion; with --seconds 1, as for words, they do not overlap.
    presets={"paper": {"last_window": "end"}},
    is_home=lambda folder: any(folder.glob("Session[1-5]/sentences/wav")),
    list_clips=_clips,
)
