"""Synthesise the demo's corpus with espeak-ng: spoken digits, babble and stationary noise.

espeak-ng is GPL-3 and comes with the optional package ``espeakng-loader``. It is loaded in a
separate process for each voice, ``python -m antigram.pipeline.corpora.synth VOICE FOLDER``. Within
a process, the same text gives other samples at each call; a new process that makes the same calls
in the same order gives the same bytes. The corpus is therefore the same on every run.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.publish import discard, work_folder
from antigram.pipeline.workspace import locked

__all__ = ["synthesise"]

WORDS = "zero one two three four five six seven eight nine".split()
# Voices of espeak-ng: a variety of English + a variant of the speaker.
VOICES = (
    "en-us+m1 en-us+f1 en-us+m3 en-us+f3 en-us+m7 en-us+f5 en-us+klatt2 en-us+m4 "
    "en-gb-x-rp+m2 en-gb-x-rp+f2 en-gb-x-rp+m5 en-gb-x-rp+f4 en-gb-x-rp+m8 en-gb-x-rp+f1 "
    "en-gb-scotland+m4 en-gb-scotland+f3 en-gb-scotland+m6 en-029+m8 en-029+f2 en-029+m1"
).split()
# Prosodies used as emotions: words per minute, pitch, pitch range (0-99), volume.
PROSODIES = {
    "neutral": (170, 50, 45, 95),
    "happy": (195, 72, 85, 110),
    "sad": (135, 32, 15, 70),
    "angry": (210, 58, 65, 150),
}
TAKES = 1
# Constants of espeak-ng's speak_lib.h.
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_SYNCHRONOUS = 2
_NOISE_SECONDS, _NOISE_FILES = 20, 4


def synthesise(
    home: Path, *, workers: int = 1, on_progress: Callable[[str, int, int], None] | None = None
) -> None:
    """Synthesise the demo corpus in ``home``, atomically; an existing corpus is left alone.

    Args:
        home: folder to make.
        workers: number of processes.
        on_progress: called with a stage, the voices done and the voices in total.

    Raises:
        InputError: espeakng-loader is not installed, or espeak-ng failed.
    """
    if importlib.util.find_spec("espeakng_loader") is None:
        raise InputError(
            "demo: its speech is synthesised with espeak-ng, which is not installed. "
            'Run `pip install -c constraints.txt "espeakng-loader"`.'
        )
    with locked(home, "synthesising"):
        if not home.is_dir():  # otherwise another process has just made it
            _synthesise(home, workers, on_progress)


def _synthesise(
    home: Path, workers: int, on_progress: Callable[[str, int, int], None] | None
) -> None:
    partial = work_folder(home)
    discard(partial)
    (partial / "speech").mkdir(parents=True)

    speech = (partial / "speech").resolve()

    def synthesise_voice(voice: str) -> None:
        command = [sys.executable, "-m", "antigram.pipeline.corpora.synth", voice, str(speech)]
        here = Path(__file__).resolve().parents[1]
        result = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
        if result.returncode:
            tail = result.stderr.strip().splitlines()[-1:] or [f"exit {result.returncode}"]
            raise InputError(f"demo: espeak-ng failed for the voice {voice}: {tail[0]}")

    with ThreadPoolExecutor(workers) as pool:
        for done, _ in enumerate(pool.map(synthesise_voice, VOICES), 1):
            if on_progress is not None:
                on_progress("speech synthesis", done, len(VOICES))
    _make_noise(partial)
    partial.rename(home)


def _make_noise(home: Path) -> None:
    """Write babble of eight voices, and stationary noise with the spectrum of speech."""
    paths = sorted((home / "speech").glob("*.wav"))
    rate = soundfile.info(paths[0]).samplerate
    (home / "noise_train").mkdir()
    for number in range(1, _NOISE_FILES + 1):
        rng = np.random.default_rng(number)
        babble = np.zeros(_NOISE_SECONDS * rate)
        for _ in range(8):
            talk: list[NDArray[np.float64]] = []
            while sum(y.size for y in talk) < babble.size:
                talk.append(soundfile.read(paths[rng.integers(len(paths))])[0])
            babble += np.concatenate(talk)[: babble.size]
        magnitude = np.abs(np.fft.rfft(babble))
        # Smoothed over 50 Hz, so that no single voice can be heard.
        width = 50 * _NOISE_SECONDS
        smooth = np.convolve(magnitude, np.ones(width) / width, mode="same")
        phase = np.exp(2j * np.pi * rng.random(smooth.size))
        stationary = np.fft.irfft(smooth * phase, babble.size)
        for name, y in (("Babble", babble), ("Stationary", stationary)):
            level = y * (0.1 / np.sqrt(np.mean(y**2)))
            target = home / "noise_train" / f"{name}_{number}.wav"
            soundfile.write(target, np.clip(level, -1, 1), rate, subtype="PCM_16")


def _speak(voice: str, folder: Path) -> None:
    """Synthesise all words in all prosodies with one voice; runs in a separate process."""
    import espeakng_loader

    lib = ctypes.CDLL(espeakng_loader.get_library_path())
    callback_type = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )
    lib.espeak_SetSynthCallback.argtypes = [callback_type]
    lib.espeak_Synth.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.POINTER(ctypes.c_uint),
        ctypes.c_void_p,
    ]
    lib.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    rate = lib.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(espeakng_loader.get_data_path()), 0)
    if rate <= 0:
        raise OSError("espeak-ng could not be initialised")
    lib.espeak_ng_SetRandSeed(7)
    blocks: list[NDArray[np.int16]] = []

    def collect(wav: ctypes._Pointer[ctypes.c_short], count: int, _events: int) -> int:
        if wav and count > 0:
            blocks.append(np.ctypeslib.as_array(wav, shape=(count,)).copy())
        return 0

    callback = callback_type(collect)  # a variable, as the library holds no reference
    lib.espeak_SetSynthCallback(callback)
    if lib.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError(f"espeak-ng has no voice {voice}")
    for prosody, (wpm, pitch, spread, volume) in PROSODIES.items():
        for take in range(TAKES):
            for key, value in (
                (_RATE, wpm + 12 * take),
                (_PITCH, pitch + 5 * take),
                (_RANGE, spread),
                (_VOLUME, volume),
            ):
                lib.espeak_SetParameter(key, value, 0)
            for word in WORDS:
                blocks.clear()
                text = word.encode() + b"\0"
                lib.espeak_Synth(text, len(text), 0, 1, 0, 1, None, None)
                lib.espeak_Synchronize()
                target = folder / f"{word}_{voice}_{prosody}_{take}.wav"
                soundfile.write(target, np.concatenate(blocks), rate, subtype="PCM_16")


if __name__ == "__main__":
    _speak(sys.argv[1], Path(sys.argv[2]))
