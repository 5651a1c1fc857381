"""Noise recordings in the layout of MS-SNSD, and mixing them with speech at a given SNR.

The paper's protocol: one noise file a clip, SNR drawn from five levels, speech and noise both
scaled to -25 dBFS RMS first. Here the excerpt is drawn from (seed, clip_id), and a class is drawn
before one of its files, so that classes are balanced whatever the number of their files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.audio.decoding import AudioError, probe, read
from antigram.pipeline.choices import Noise, SnrMode
from antigram.pipeline.corpus import CorpusError, wav_files
from antigram.pipeline.draw import draw
from antigram.pipeline.storage.regular import open_regular

__all__ = ["SNR_LEVELS", "Mixed", "NoiseBank", "mix", "mix_noise", "noise_class", "noise_files"]

SNR_LEVELS = {"low": (20.0, 25.0, 30.0, 35.0, 40.0), "high": (0.0, 2.5, 5.0, 7.5, 10.0)}  # dB
_LEVEL = 10 ** (-25 / 20)  # RMS that speech and noise are scaled to: -25 dBFS

# Of MS-SNSD's noise the classes of one file (they come from DEMAND) are left out, as in the paper.
_ONE_FILE = frozenset(
    "Bus CafeTeria Cafe Car Field Hallway Kitchen LivingRoom Metro Office Park Restaurant Square "
    "Station Traffic Washing".split()
)
# Upstream spells one class in two ways, in noise_train and in noise_test.
_SPELLING = {"AirportAnnouncement": "AirportAnnouncements", "Neighbor": "NeighborSpeaking"}


def noise_class(stem: str) -> str | None:
    """Class of a noise file by its name (``Babble_12``); None for those that are left out."""
    name = stem.rpartition("_")[0] or stem
    return None if name in _ONE_FILE else _SPELLING.get(name, name)


def noise_files(candidates: Sequence[Path]) -> tuple[Path, dict[str, list[Path]]]:
    """Find the noise recordings: ``noise_train`` in one of the folders, or the folder itself.

    Returns:
        The folder, and class -> its files, both sorted.

    Raises:
        CorpusError: no folder holds noise recordings.
    """
    for place in candidates:
        for folder in (place / "noise_train", place):
            classes: dict[str, list[Path]] = {}
            for path in wav_files(folder):
                if (label := noise_class(path.stem)) is not None:
                    classes.setdefault(label, []).append(path)
            if classes:
                return folder, dict(sorted(classes.items()))
    raise CorpusError(
        f"noise: no noise recordings (CLASS_N.wav) in {', '.join(str(p) for p in candidates)}. "
        "Name their folder with --noise-source; the paper's are noise_train of "
        "https://github.com/microsoft/MS-SNSD, or use --noise none."
    )


@dataclass(frozen=True, slots=True)
class NoiseBank:
    """All noise recordings, decoded once into one raw file that every worker maps.

    Attributes:
        path: float32 samples of all recordings, one behind the other.
        classes: sorted class names.
        spans: for each class its recordings, as (first sample, samples).
    """

    path: Path
    classes: tuple[str, ...]
    spans: tuple[tuple[tuple[int, int], ...], ...]

    @staticmethod
    def digest_of(classes: dict[str, list[Path]]) -> str:
        """Identity of the recordings: SHA-256 over classes, names and file bytes, in order.

        Raises:
            CorpusError: a recording cannot be read.
        """
        total = hashlib.sha256()
        for label, paths in classes.items():
            for path in paths:
                try:
                    with open_regular(path) as file:
                        inner = hashlib.file_digest(file, "sha256").hexdigest()
                except OSError as error:
                    reason = f"cannot be read: {error.strerror}. Repair or remove it."
                    raise CorpusError(f"noise: {path}: {reason}") from None
                total.update(f"{label}\0{path.name}\0{inner}\n".encode())
        return total.hexdigest()

    @classmethod
    def build(cls, classes: dict[str, list[Path]], sample_rate: int, target: Path) -> NoiseBank:
        """Decode the recordings into ``target``.

        Raises:
            CorpusError: a recording cannot be read or is silent from end to end.
        """
        spans: list[tuple[tuple[int, int], ...]] = []
        place = 0
        with target.open("wb") as file:
            for paths in classes.values():
                inner = []
                for path in paths:
                    try:
                        samples = probe(path).samples_at(sample_rate)
                        y = read(path, start=0, count=samples + 1, sample_rate=sample_rate)
                    except AudioError as error:
                        raise CorpusError(f"noise: {path}: {error}. Repair or remove it.") from None
                    if not y.any():
                        raise CorpusError(f"noise: {path}: silent from end to end. Remove it.")
                    file.write(y.tobytes())
                    inner.append((place, y.size))
                    place += y.size
                spans.append(tuple(inner))
        return cls(target, tuple(classes), tuple(spans))

    def samples(self) -> NDArray[np.float32]:
        """Map the raw file; read only."""
        # As a plain array: each slice of a memmap object costs as much as reading its samples.
        return np.asarray(np.memmap(self.path, np.float32, mode="r"))

    def excerpt(
        self, samples: NDArray[np.float32], seed: int, clip_id: str, count: int
    ) -> tuple[int, NDArray[np.float32], float]:
        """Draw a class, one of its files and an excerpt of ``count`` samples.

        A file shorter than that is looped. An excerpt of digital silence is drawn anew, as it
        cannot be scaled to any SNR.

        Returns:
            Index of the class, ``(count,)`` samples that are not all zero, and their RMS.
        """
        for attempt in range(1000):
            one, two, three = draw(seed, f"noise/{attempt}", clip_id, 3)
            label = one % len(self.classes)
            spans = self.spans[label]
            recording = two % len(spans)
            y = self._cut(samples, spans[recording], three, count)
            if (level := rms(y)) > 0:
                return label, y, level
        raise CorpusError(f"noise: 1000 excerpts drawn for {clip_id} were silent; see its files")

    def take(
        self, samples: NDArray[np.float32], label: str, recording: int, drawn: int, count: int
    ) -> NDArray[np.float32]:
        """``count`` samples of a recording, from a drawn place; not all zero.

        From a place where it is silent for so long, the recording is taken from its first sound.
        """
        span = self.spans[self.classes.index(label)][recording]
        y = self._cut(samples, span, drawn, count)
        if not y.any():
            whole = np.asarray(samples[span[0] : span[0] + span[1]])
            y = np.resize(np.roll(whole, -int(np.flatnonzero(whole)[0])), count)
        return y

    @staticmethod
    def _cut(
        samples: NDArray[np.float32], span: tuple[int, int], drawn: int, count: int
    ) -> NDArray[np.float32]:
        first, length = span
        if length >= count:
            offset = first + drawn % (length - count + 1)
            return samples[offset : offset + count]
        whole = samples[first : first + length]
        return np.resize(np.roll(whole, -(drawn % length)), count)


@dataclass(frozen=True, slots=True)
class Mixed:
    """A clip with noise in it: what was mixed in is known."""

    y: NDArray[np.float32]
    noise: int  # index of the class, -1 for none
    snr_db: float  # nominal; NaN for none


def mix(
    speech: NDArray[np.float32],
    noise: NDArray[np.float32],
    snr_db: float,
    *,
    released: bool,
    speech_rms: float | None = None,
    noise_rms: float | None = None,
) -> NDArray[np.float32]:
    """Scale both to -25 dBFS RMS and add the noise ``snr_db`` below the speech.

    Args:
        speech: ``(sample,)``, not silent.
        noise: ``(sample,)``, not silent.
        snr_db: nominal SNR over the whole length.
        released: take the square root of the noise's factor, as the paper's released mixer does:
            the effective SNR is then half of ``snr_db``.
        speech_rms: that of ``speech``, where it is known already.
        noise_rms: that of ``noise``.

    Returns:
        ``(sample,)`` float32; may exceed full scale, as it is never quantised.

    References:
        METHOD: Guizzo, Weyde, Tarroni (2021), section on noise; the square root is that of
        microsoft/MS-SNSD issue 18.
    """
    gain = 10 ** (-snr_db / 20)
    if released:
        gain **= 0.5
    y = speech * np.float32(_LEVEL / (speech_rms or rms(speech)))
    y += noise * np.float32(_LEVEL * gain / (noise_rms or rms(noise)))
    return y


def mix_noise(
    speech: NDArray[np.float32],
    bank: NoiseBank,
    samples: NDArray[np.float32],
    *,
    level: Noise,
    snr_mode: SnrMode,
    seed: int,
    clip_id: str,
) -> Mixed:
    """Add a drawn excerpt at a drawn SNR; silent speech stays clean, as it has no SNR."""
    speech_rms = rms(speech)
    if speech_rms == 0:
        return Mixed(speech, -1, float("nan"))
    levels = SNR_LEVELS[level]
    snr_db = levels[draw(seed, "snr", clip_id)[0] % len(levels)]
    label, noise, noise_rms = bank.excerpt(samples, seed, clip_id, speech.size)
    y = mix(
        speech,
        noise,
        snr_db,
        released=snr_mode == "released",
        speech_rms=speech_rms,
        noise_rms=noise_rms,
    )
    return Mixed(y, label, snr_db)


def rms(y: NDArray[np.float32]) -> float:
    """Root of the mean square, in float64."""
    wide = y.astype(np.float64)
    return math.sqrt(np.dot(wide, wide) / y.size)
