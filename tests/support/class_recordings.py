"""Write recordings, one folder per class, that a network can tell apart: tones and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
CLASSES = ("high", "low", "noise")


def sound(kind, rng, *, seconds=1.0, gain=0.1):
    t = np.arange(round(seconds * RATE)) / RATE
    pitch = {"high": 3000, "low": 400}.get(kind, 0) * rng.uniform(0.9, 1.1)
    y = np.sin(2 * np.pi * pitch * t) if pitch else rng.standard_normal(t.size)
    return (gain * y + 0.01 * rng.standard_normal(t.size)).astype(np.float32)


def write_corpus(home: Path, *, clips=14, seconds=1.0, seed=7):
    """Write ``home/CLASS/NN.wav``; the first file of ``low`` is digital silence."""
    rng = np.random.default_rng(seed)
    for kind in CLASSES:
        (home / kind).mkdir(parents=True)
        for number in range(clips):
            y = sound(kind, rng, seconds=seconds)
            if (kind, number) == ("low", 0):
                y[:] = 0
            soundfile.write(home / kind / f"{number:02d}.wav", y, RATE, subtype="FLOAT")
    return home


def write_tones(home: Path) -> Path:
    """Write thirty one-second recordings of three classes that differ in pitch."""
    rng = np.random.default_rng(3)
    t = np.arange(RATE) / RATE
    for pitch, name in ((300, "low"), (1000, "middle"), (3000, "high")):
        for take in range(10):
            path = home / name / f"{take}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            y = 0.3 * np.sin(2 * np.pi * pitch * t) + 0.02 * rng.standard_normal(t.size)
            soundfile.write(path, y, RATE)
    return home
