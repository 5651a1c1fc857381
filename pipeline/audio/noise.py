"""Noise recordings in the layout of MS-SNSD, and mixing them with speech at a given SNR.

The protocol follows the paper: one noise file for each segment, an SNR drawn from five levels,
and speech and noise both scaled to -25 dBFS RMS first. Here the draw depends on (seed, clip_id).
The class is drawn before the file, so that classes are balanced even if they differ in the number
of files.
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

# MS-SNSD's noise classes with a single file (from DEMAND) are left out, as in the paper.
_ONE_FILE = frozenset(
    "Bus CafeTeria Cafe Car Field Hallway Kitchen LivingRoom Metro Office Park Restaurant Square "
    "Station Traffic Washing".split()
)
# Spellings that differ between noise_train and noise_test of MS-SNSD.
_SPELLING = {"AirportAnnouncement": "AirportAnnouncements", "Neighbor": "NeighborSpeaking"}


def noise_class(stem: str) -> str | None:
    """Return the class of a noise file from its name (``Babble_12``); None if it is left out."""
    name = stem.rpartition("_")[0] or stem
    return None if name in _ONE_FILE else _SPELLING.get(name, name)


def noise_files(candidates: Sequence[Path]) -> tuple[Path, dict[str, list[Path]]]:
    """Find the noise recordings: in a candidate folder, or in its subfolder ``noise_train``.

    Returns:
        The folder, and class -> files; classes and files are sorted.

    Raises:
        CorpusError: no folder holds noise recordings.
    """
    for candidate in candidates:
        for folder in (candidate / "noise_train", candidate):
            classes: dict[str, list[Path]] = {}
            for path in wav_files(folder):
                if (label := noise_class(path.stem)) is not None:
                    classes.setdefault(label, []).append(path)
            if classes:
                return folder, dict(sorted(classes.items()))
    raise CorpusError(
        f"noise: no noise recordings (CLASS_N.wav) in {', '.join(str(p) for p in candidates)}. "
        "Name their folder with `noise_source`; the paper's are noise_train of "
        "https://github.com/microsoft/MS-SNSD, or use `noise=none`."
    )


@dataclass(frozen=True, slots=True)
class NoiseBank:
    """All noise recordings, decoded once into one raw file that every worker maps.

    Attributes:
        path: the raw file: float32 samples of all recordings, one after the other.
        classes: sorted class names.
        spans: for each class, its recordings as (first sample, number of samples).
    """

    path: Path
    classes: tuple[str, ...]
    spans: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def bytes(self) -> int:
        """Size of the raw file."""
        return 4 * sum(count for spans in self.spans for _, count in spans)

    @staticmethod
    def digest_of(classes: dict[str, list[Path]]) -> str:
        """Return the SHA-256 over classes, file names and file bytes of the recordings, in order.

        Raises:
            CorpusError: a recording cannot be read.
        """
        digest = hashlib.sha256()
        for label, paths in classes.items():
            for path in paths:
                try:
                    with open_regular(path) as file:
                        file_digest = hashlib.file_digest(file, "sha256").hexdigest()
                except OSError as error:
                    reason = f"cannot be read: {error.strerror}. Repair or remove it."
                    raise CorpusError(f"noise: {path}: {reason}") from None
                digest.update(f"{label}\0{path.name}\0{file_digest}\n".encode())
        return digest.hexdigest()

    @classmethod
    def build(cls, classes: dict[str, list[Path]], sample_rate: int, target: Path) -> NoiseBank:
        """Decode the recordings into one raw file and return their bank.

        Args:
            classes: class -> files, as `noise_files` returns them.
            sample_rate: rate of the raw file, in Hz.
            target: the raw file to write.

        Raises:
            CorpusError: a recording cannot be read or is silent from end to end.
        """
        spans: list[tuple[tuple[int, int], ...]] = []
        offset = 0
        with target.open("wb") as file:
            for paths in classes.values():
                class_spans = []
                for path in paths:
                    try:
                        samples = probe(path).samples_at(sample_rate)
                        y = read(path, start=0, count=samples + 1, sample_rate=sample_rate)
                    except AudioError as error:
                        raise CorpusError(f"noise: {path}: {error}. Repair or remove it.") from None
                    if not y.any():
                        raise CorpusError(f"noise: {path}: silent from end to end. Remove it.")
                    file.write(y.data)
                    class_spans.append((offset, y.size))
                    offset += y.size
                spans.append(tuple(class_spans))
        return cls(target, tuple(classes), tuple(spans))

    def samples(self) -> NDArray[np.float32]:
        """Map the raw file, read only: ``(sample,)`` float32."""
        # As a plain array: a slice of a memmap object costs as much as reading its samples.
        return np.asarray(np.memmap(self.path, np.float32, mode="r"))

    def excerpt(
        self, samples: NDArray[np.float32], seed: int, clip_id: str, count: int
    ) -> tuple[int, NDArray[np.float32], float]:
        """Draw a class, one of its recordings and an excerpt of ``count`` samples.

        A recording shorter than ``count`` is looped. If the excerpt is digital silence, which
        cannot be scaled to any SNR, another one is drawn.

        Args:
            samples: the mapped raw file, from `samples`.
            seed: seed of the draw.
            clip_id: id of the segment that the noise is for.
            count: length of the excerpt, in samples.

        Returns:
            Index of the class, ``(count,)`` float32 samples that are not all zero, and their RMS.

        Raises:
            CorpusError: 1000 excerpts in a row were silent.
        """
        for attempt in range(1000):
            class_draw, file_draw, offset_draw = draw(seed, f"noise/{attempt}", clip_id, 3)
            label = class_draw % len(self.classes)
            spans = self.spans[label]
            recording = file_draw % len(spans)
            y = self._cut(samples, spans[recording], offset_draw, count)
            if (level := rms(y)) > 0:
                return label, y, level
        raise CorpusError(
            f"noise: 1000 excerpts drawn for {clip_id} were silent; check the noise recordings"
        )

    def take(
        self, samples: NDArray[np.float32], label: str, recording: int, drawn: int, count: int
    ) -> NDArray[np.float32]:
        """Return an excerpt of a recording that is not all zero.

        Args:
            samples: the mapped raw file, from `samples`.
            label: class of the noise.
            recording: index of the recording within the class.
            drawn: random number that decides where the excerpt begins. If the excerpt there is
                silent, it begins at the first sample that is not zero.
            count: length of the excerpt, in samples.

        Returns:
            ``(count,)`` float32.
        """
        span = self.spans[self.classes.index(label)][recording]
        y = self._cut(samples, span, drawn, count)
        if not y.any():
            complete = np.asarray(samples[span[0] : span[0] + span[1]])
            y = np.resize(np.roll(complete, -int(np.flatnonzero(complete)[0])), count)
        return y

    @staticmethod
    def _cut(
        samples: NDArray[np.float32], span: tuple[int, int], drawn: int, count: int
    ) -> NDArray[np.float32]:
        first, length = span
        if length >= count:
            offset = first + drawn % (length - count + 1)
            return samples[offset : offset + count]
        complete = samples[first : first + length]
        return np.resize(np.roll(complete, -(drawn % length)), count)


@dataclass(frozen=True, slots=True)
class Mixed:
    """A segment after mixing, and the noise that was added."""

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
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Scale speech and noise to -25 dBFS RMS, and add the noise ``snr_db`` below the speech.

    Args:
        speech: ``(sample,)``, not silent.
        noise: ``(sample,)``, not silent.
        snr_db: nominal SNR over the complete length.
        released: take the square root of the noise's gain, as the paper's released mixer does; the
            effective SNR is then half of ``snr_db``.
        speech_rms: RMS of ``speech``; default: computed here.
        noise_rms: RMS of ``noise``; default: computed here.
        out: array for the result, which may be ``speech``; default: a new one.

    Returns:
        ``(sample,)`` float32; it may exceed full scale, as it is never quantised.

    References:
        Guizzo, Weyde, Tarroni (2021), section on noise; for the square root see issue 18 of
        microsoft/MS-SNSD.
    """
    gain = 10 ** (-snr_db / 20)
    if released:
        gain **= 0.5
    y = np.multiply(speech, np.float32(_LEVEL / (speech_rms or rms(speech))), out=out)
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
    out: NDArray[np.float32] | None = None,
) -> Mixed:
    """Add random noise at a random SNR; silent speech stays clean, as it has no SNR.

    ``out`` is an array for the mixture, which may be ``speech``; default: a new one.
    """
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
        out=out,
    )
    return Mixed(y, label, snr_db)


def rms(y: NDArray[np.float32]) -> float:
    """Return the root mean square, computed in float64."""
    wide = y.astype(np.float64)
    return math.sqrt(np.dot(wide, wide) / y.size)
