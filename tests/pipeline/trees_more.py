"""Trees of the corpora of words, notes and mixtures; see `trees` for those of speech commands."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import soundfile

from tests.pipeline import trees
from tests.pipeline.trees import MAC_RUBBISH, RATE, sound, wav


def ms_snsd(home: Path) -> Path:
    """Two speakers of VCTK, and clean_test's kind of name, which tells no speaker."""
    trees.noise(home)
    for n, name in enumerate(("p234_001", "p234_002", "p225_001", "clnsp7")):
        wav(home / "clean_train" / f"{name}.wav", sound(n, 3 * RATE))
    (home / "clean_train" / "._p234_001.wav").write_bytes(MAC_RUBBISH)
    return home


def librispeech(home: Path) -> Path:
    """One chapter in each of three subsets, with condensed alignments beside the audio."""
    for speaker, subset in ((19, "train-clean-100"), (84, "dev-clean"), (61, "test-clean")):
        folder = home / subset / str(speaker) / "198"
        lines = []
        for n in range(2):
            utterance = f"{speaker}-198-{n:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / f"{utterance}.flac", sound(speaker + n, 2 * RATE), RATE)
            lines.append(f'{utterance} ",NORTHANGER,,ABBEY," "0.530,1.270,1.300,1.780,2.0"\n')
        (folder / f"{speaker}-198.alignment.txt").write_text("".join(lines))
        (folder / f"{speaker}-198.trans.txt").write_text(f"{speaker}-198-0000 NORTHANGER ABBEY")
        (folder / f"._{speaker}-198-0000.flac").write_bytes(MAC_RUBBISH)
    return home


def nsynth(home: Path) -> Path:
    for place, folder in enumerate(("nsynth-train", "nsynth-valid", "nsynth-test")):
        notes = {}
        for n, family in enumerate(("bass", "synth_lead"), 2 * place):
            name = f"{family}_synthetic_{n:03d}-060-075"
            wav(home / folder / "audio" / f"{name}.wav", sound(n, 4 * RATE))
            notes[name] = {
                "instrument_family_str": family,
                "instrument_str": name.partition("-")[0],
                "instrument_source_str": "synthetic",
                "pitch": 60,
                "velocity": 75,
            }
        (home / folder / "examples.json").write_text(json.dumps(notes, indent=4))
    return home


def good_sounds(home: Path) -> Path:
    """Sounds with one, two and three microphones, scales, NULLs and a take whose file is absent."""
    home.mkdir(parents=True, exist_ok=True)
    link = sqlite3.connect(home / "database.sqlite")
    link.executescript(
        """CREATE TABLE sounds (id INTEGER, instrument TEXT, player TEXT, klass TEXT,
                                pack_id INTEGER);
           CREATE TABLE takes (id INTEGER, microphone TEXT, filename TEXT, sound_id INTEGER);
           CREATE TABLE packs (id INTEGER, name TEXT, description TEXT);"""
    )
    klasses = ("good-sound", "bad-pitch-stability-vibrato", "bad-richness-pato", "bad-attack-gallo",
               "bad-dynamics-stability", "scale-good", None, "good-sound")  # fmt: skip
    takes = 0
    for n, klass in enumerate(klasses, 1):
        link.execute("INSERT INTO sounds VALUES (?,?,?,?,?)", (n, "flute", "irene", klass, 1))
        for microphone in ("iphone", "akg", "neumann")[: 1 + n % 3]:
            takes += 1
            name = f"sound_files/flute_irene/{microphone}/{n:04d}.wav"
            link.execute("INSERT INTO takes VALUES (?,?,?,?)", (takes, microphone, name, n))
            if n < len(klasses):
                wav(home / name, sound(n, RATE), rate=48_000)
    link.execute("INSERT INTO takes VALUES (99, 'akg', 'sound_files/x.wav', NULL)")
    link.commit()
    link.close()
    return home
