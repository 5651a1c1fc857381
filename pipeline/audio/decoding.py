"""Read audio files: check the header, decode a part, mix to mono, resample. Nothing is guessed.

soundfile decodes; it reads a truncated file silently short and passes NaN samples through:
`pipeline.audio.containers` checks the one, this module the other. soxr resamples (HQ: aliases
-144 dB).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from antigram.pipeline.audio.containers import AudioError, examine
from antigram.pipeline.storage.regular import regular

__all__ = ["SUFFIXES", "AudioError", "AudioInfo", "probe", "read"]

# Names of audio files, in lower case, where a folder is searched.
SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"})

# Longer than any recording of the field, and far below what would exhaust memory or an int32.
_MAX_FRAMES = 2**31 - 1
_RATES = (1_000, 768_000)  # Hz
_MAX_CHANNELS = 64
_MAX_LEVEL = 2.0**31  # full scale is 1; more than unscaled 32-bit integers is no recording
# Frames decoded on both sides of a part that is resampled: the HQ filter is a few hundred taps
# long, so that with this margin a part equals the same part of the whole file, resampled.
_MARGIN = 4_096
_HEAD = 4_096  # bytes read at once: the header, and most of what writers put beside it
_SMALL = 65_536  # bytes read at once where samples are wanted: a short clip as a whole
# No codec packs more than this into a byte: FLAC's silence has 65,535 frames in about 11.
_MOST_FRAMES_A_BYTE = 8_192


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a header says."""

    frames: int
    sample_rate: int  # Hz
    channels: int
    bytes: int = field(default=0, compare=False)  # of the file

    def samples_at(self, sample_rate: int) -> int:
        """Length after resampling."""
        return round(self.frames * sample_rate / self.sample_rate)


def probe(path: Path | str) -> AudioInfo:
    """Check a file's header without decoding.

    Raises:
        AudioError: not there, empty, no audio by its first bytes, no frames, truncated, or with
            a rate, a number of channels or a length that no recording has.
    """
    try:
        handle, status = regular(path)
        try:
            if status.st_size == 0:
                raise AudioError("empty file")
            head = os.read(handle, _HEAD)
            wav = examine(handle, head, status.st_size)
        finally:
            os.close(handle)
        if wav is not None:
            info = AudioInfo(wav.frames, wav.sample_rate, wav.channels, status.st_size)
        else:
            found = soundfile.info(path)
            info = AudioInfo(found.frames, found.samplerate, found.channels, status.st_size)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"unreadable: {error.error_string}") from error
    except OSError as error:
        raise AudioError(f"cannot be opened: {error.strerror}") from error
    if info.frames <= 0:
        raise AudioError("no audio frames in it")
    if info.frames > min(_MAX_FRAMES, _MOST_FRAMES_A_BYTE * info.bytes):
        raise AudioError(f"absurd length: {info.frames} frames in {info.bytes} bytes")
    if not _RATES[0] <= info.sample_rate <= _RATES[1]:
        raise AudioError(f"sample rate is {info.sample_rate} Hz, wanted {_RATES[0]} to {_RATES[1]}")
    if not 1 <= info.channels <= _MAX_CHANNELS:
        raise AudioError(f"{info.channels} channels, wanted 1 to {_MAX_CHANNELS}")
    return info


# Called with an open file, its status and its first bytes.
Look = Callable[[int, os.stat_result, bytes], None]


def read(
    path: Path | str, *, start: int, count: int, sample_rate: int, look: Look | None = None
) -> NDArray[np.float32]:
    """Decode a part of a file as mono at the rate asked for.

    Args:
        path: a file that `probe` accepts.
        start: first sample, counted at ``sample_rate``.
        count: samples wanted.
        sample_rate: Hz.
        look: called with the file, before anything is decoded.

    Returns:
        ``(sample,)`` float32, full scale 1; shorter than ``count`` where the file ends, channels
        averaged. A part of a resampled file equals that part of the whole file, resampled.

    Raises:
        AudioError: unreadable, shorter than its header says, or with NaN or infinite samples.
    """
    data, rate, first = _decode(path, start, count, sample_rate, look)
    mono = data[:, 0] if data.shape[1] == 1 else data.mean(axis=1)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate, quality="HQ")
    skip = start - first * sample_rate // rate
    return np.ascontiguousarray(mono[skip : skip + count], np.float32)


def _decode(
    path: Path | str, start: int, count: int, sample_rate: int, look: Look | None
) -> tuple[NDArray[np.float32], int, int]:
    """Frames around a part, (frame, channel); their rate; and the number of the first."""
    try:
        handle, status = regular(path)
        try:
            head = os.read(handle, _SMALL)
            if look is not None:
                look(handle, status, head)
            wav = examine(handle, head, status.st_size)
            if wav is not None and wav.is_pcm16:
                # By far the most common kind. A library's open and read cost as much as the
                # transform; for this one kind its numbers are these (tests/pipeline/test_audio).
                first, wanted = _around(start, count, sample_rate, wav.sample_rate, wav.frames)
                place = wav.place + first * 2 * wav.channels
                size = wanted * 2 * wav.channels
                raw = head[place : place + size]
                if len(raw) < size:
                    raw = os.pread(handle, size, place)
                data = np.frombuffer(raw[: len(raw) // 2 * 2], "<i2") * np.float32(1 / 32768)
                data = data[: data.size // wav.channels * wav.channels].reshape(-1, wav.channels)
                rate = wav.sample_rate
            else:
                with soundfile.SoundFile(os.fspath(path)) as file:
                    if wav is not None and wav.frames != file.frames:
                        raise AudioError(
                            f"damaged header: {wav.frames} frames by its chunks, {file.frames} "
                            "by its decoder"
                        )
                    rate = file.samplerate
                    first, wanted = _around(start, count, sample_rate, rate, file.frames)
                    if wanted * file.channels > _MAX_FRAMES:
                        raise AudioError(
                            f"absurd length: {wanted} frames, {file.channels} channels"
                        )
                    file.seek(first)
                    data = file.read(wanted, dtype="float32", always_2d=True)
                _check_level(data)  # of integers it needs no check
        finally:
            os.close(handle)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"unreadable: {error.error_string}") from error
    except OSError as error:
        raise AudioError(f"cannot be opened: {error.strerror or error}") from error
    if len(data) != wanted:
        raise AudioError(f"truncated: {len(data)} of {wanted} frames could be decoded")
    return data, rate, first


def _check_level(data: NDArray[np.float32]) -> None:
    loudest = max(float(data.max(initial=0)), -float(data.min(initial=0)))
    if not loudest <= _MAX_LEVEL:  # NaN is not either
        finite = np.isfinite(data).all()
        raise AudioError(
            f"samples up to {loudest:.3g}, where full scale is 1"
            if finite
            else "NaN or infinite samples"
        )


def _around(start: int, count: int, sample_rate: int, rate: int, frames: int) -> tuple[int, int]:
    """First frame and number of frames to decode for a part, with a margin if it is resampled.

    One output sample is ``step / fine`` frames; parts begin where both meet.
    """
    common = math.gcd(rate, sample_rate)
    step, fine = rate // common, sample_rate // common
    margin = 0 if step == fine else _MARGIN
    first = min(max(0, start * step // fine - margin) // step * step, frames)
    last = min(frames, -(-(start + count) * step // fine) + margin)
    return first, max(0, last - first)
