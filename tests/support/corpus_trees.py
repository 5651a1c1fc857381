"""Small corpora in the layouts of the real corpora, with their traps; all sounds are noise."""

from __future__ import annotations

import json
import sqlite3
from itertools import product
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
MAC_RUBBISH = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X"  # what a ._ file begins with
WORDS = ("zero", "one", "two")


def sound(seed: int, samples: int = RATE, level: float = 0.1) -> np.ndarray:
    """Return noise with a level and colour that depend on the seed, so that all clips differ."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal(samples + 8)
    smooth = np.convolve(white, np.ones(1 + seed % 8), "valid")[:samples]
    return (level * (1 + seed % 3) * smooth / np.abs(smooth).max()).astype(np.float32)


def wav(path: Path, y: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, y, rate, subtype=subtype)
    return path


def gsc(home: Path, per_word: int = 8) -> Path:
    """Make Speech Commands: short, long and silent clips, both lists, and background noise."""
    for w, word in enumerate(WORDS):
        for n in range(per_word):
            samples = {1: 11_147, 2: 20_001}.get(n, RATE)
            y = sound(100 * w + n, samples)
            if word == "one" and n == 3:
                y[:] = 0
            wav(home / word / f"{0xAB00 + n % 4:08x}_nohash_{n // 4}.wav", y)
    wav(home / "cat" / "0000ab01_nohash_0.wav", sound(7))
    wav(home / "_background_noise_" / "pink_noise.wav", sound(8, 3 * RATE))
    (home / "_background_noise_" / "README.md").write_text("noise\n")
    (home / "zero" / "._0000ab00_nohash_0.wav").write_bytes(MAC_RUBBISH)
    (home / "testing_list.txt").write_text("zero/0000ab03_nohash_0.wav\ntwo/0000ab03_nohash_1.wav")
    (home / "validation_list.txt").write_text("one/0000ab02_nohash_0.wav\n")
    return home


def fsdd(home: Path) -> Path:
    for digit in range(2):
        for speaker in ("jackson", "theo"):
            for take in (0, 4, 5, 9, 10, 49):
                y = sound(10 * digit + take, 4_000)
                wav(home / "recordings" / f"{digit}_{speaker}_{take}.wav", y, rate=8_000)
    return home


# One dialogue a session; the marker-wearer's letter is not the speaker's.
_EMOTIONS = ("neu", "hap", "sad", "ang", "exc", "fru", "xxx")


def iemocap(home: Path, sessions: int = 5) -> Path:
    for session in range(1, sessions + 1):
        dialog = f"Ses0{session}F_impro01"
        base = home / f"Session{session}"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"]
        for n, emotion in enumerate(_EMOTIONS):
            turn = f"{dialog}_{'FM'[n % 2]}{n:03d}"
            y = sound(10 * session + n, 2 * RATE + 4_000 * n)
            wav(base / "sentences" / "wav" / dialog / f"{turn}.wav", y)
            lines += [
                f"[{6 + n}.2901 - {8 + n}.2357]\t{turn}\t{emotion}\t[2.5000, 2.5000, 2.5000]\n",
                "C-E2:\tNeutral;\t()\n",
                "A-E3:\tval 3; act 2; dom  2;\t()\n\n",
            ]
        sentences = base / "sentences" / "wav" / dialog
        (sentences / f"._{dialog}_F000.wav").write_bytes(MAC_RUBBISH)
        wav(sentences / f"{dialog}_MXX0.wav", sound(session))  # speech outside the turns
        labels = base / "dialog" / "EmoEvaluation"
        (labels / "Categorical").mkdir(parents=True)
        (labels / f"{dialog}.txt").write_text("".join(lines))
        (labels / f"._{dialog}.txt").write_bytes(b"\x00\x05[rubbish")
        # Single raters: they also name a turn that no majority labelled (speech outside turns).
        (labels / "Categorical" / f"{dialog}_e2_cat.txt").write_text(
            f"{dialog}_F000 :Neutral state; ()\n[6.2901 - 8.2357]\t{dialog}_MXX0\tang\t[1]\n"
        )
        wav(
            base / "dialog" / "wav" / f"{dialog}.wav", sound(session, RATE).repeat(2).reshape(-1, 2)
        )
    return home


def folder(home: Path) -> Path:
    for label, seconds in (("cat", 0.5), ("dog", 1.0), ("owl", 2.6)):
        for n in range(3):
            wav(home / label / f"{label}_{n}.wav", sound(n, round(seconds * RATE)))
    wav(home / "cat" / "deeper" / "cat_3.flac", sound(3), subtype="PCM_16")
    (home / "dog" / "._dog_0.wav").write_bytes(MAC_RUBBISH)
    (home / "dog" / "notes.txt").write_text("woof\n")
    (home / ".cache").mkdir()
    return home


def noise(home: Path) -> Path:
    """Make MS-SNSD's noise: misspelt names, a class of one file, a file shorter than a clip."""
    for n, name in enumerate(
        ("Babble_1", "Babble_2", "Typing_1", "AirportAnnouncement_11", "Neighbor_6", "Bus_1")
    ):
        wav(home / "noise_train" / f"{name}.wav", sound(50 + n, 3 * RATE))
    wav(home / "noise_train" / "Munching_1.wav", sound(60, 5_000))
    return home


def ms_snsd(home: Path) -> Path:
    """Make MS-SNSD: two speakers of VCTK, and files whose names do not contain the speaker."""
    noise(home)
    for n, name in enumerate(("p234_001", "p234_002", "p225_001", "clnsp7")):
        wav(home / "clean_train" / f"{name}.wav", sound(n, 3 * RATE))
    (home / "clean_train" / "._p234_001.wav").write_bytes(MAC_RUBBISH)
    return home


def librispeech(home: Path) -> Path:
    """Make LibriSpeech: a chapter in each of three subsets, with alignments beside the audio."""
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
    """Make Good-Sounds: one to three microphones, scales, NULLs and a take whose file is absent."""
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


def demo(home: Path) -> Path:
    """As `antigram prepare demo` synthesises it: 2 words, 4 voices, 2 emotions, a take of each."""
    spoken = product(("one", "two"), ("f1", "f2", "m1", "m2"), ("angry", "sad"))
    for seed, (word, voice, emotion) in enumerate(spoken):
        wav(home / "speech" / f"{word}_{voice}_{emotion}_0.wav", sound(seed))
    wav(home / "noise_train" / "Babble_1.wav", sound(99))
    return home
