"""Read audio files: check the header, decode a part, average the channels, resample.

soundfile decodes. It reports neither truncated files nor NaN samples: `pipeline.audio.containers`
detects truncated files, and this module NaN samples. soxr resamples (HQ: aliases at -144 dB).
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
from antigram.pipeline.storage.members import is_member, open_recording

__all__ = ["SUFFIXES", "AudioError", "AudioInfo", "probe", "read"]

# Suffixes by which a search of a folder recognises audio files; lower case.
SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"})

# Longer than any recording of the field, and far below what would exhaust memory or an int32.
_MAX_FRAMES = 2**31 - 1
_RATES = (1_000, 768_000)  # Hz
_MAX_CHANNELS = 64
_MAX_LEVEL = 2.0**31  # full scale is 1; no recording exceeds unscaled 32-bit integers
# Frames decoded on both sides of a part that is resampled. The HQ filter has a few hundred taps, so
# with this margin a part equals the same part of the complete file, resampled.
_MARGIN = 4_096
_HEAD = 4_096  # bytes read at first: the header, and most of the metadata that writers add
_SMALL = 65_536  # bytes read at first if samples are wanted: all of a short recording
# No codec packs more frames into a byte: FLAC stores 65,535 frames of silence in about 11 bytes.
_MOST_FRAMES_A_BYTE = 8_192


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """Format and length of an audio file, from its header."""

    frames: int
    sample_rate: int  # Hz
    channels: int
    bytes: int = field(default=0, compare=False)  # size of the file

    def samples_at(self, sample_rate: int) -> int:
        """Return the length in samples after resampling."""
        return round(self.frames * sample_rate / self.sample_rate)


def probe(path: Path | str) -> AudioInfo:
    """Return format and length of an audio file, from its header, without decoding.

    Raises:
        AudioError: the file is missing, empty, not audio by its first bytes or truncated, or its
            rate, number of channels or length is zero or implausible.
    """
    try:
        handle, status = open_recording(path)
        try:
            if status.st_size == 0:
                raise AudioError("empty file")
            head = os.read(handle, _HEAD)
            wav = examine(handle, head, status.st_size)
            if wav is not None:
                info = AudioInfo(wav.frames, wav.sample_rate, wav.channels, status.st_size)
            else:
                with _decoder(path, handle) as file:
                    info = AudioInfo(file.frames, file.samplerate, file.channels, status.st_size)
        finally:
            os.close(handle)
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


# Called with a file descriptor, the file's status and its first bytes.
Look = Callable[[int, os.stat_result, bytes], None]


def read(
    path: Path | str, *, start: int, count: int, sample_rate: int, look: Look | None = None
) -> NDArray[np.float32]:
    """Decode a part of a file, as mono, at a given sample rate.

    Args:
        path: a file that `probe` accepts.
        start: first sample, counted at ``sample_rate``.
        count: number of samples.
        sample_rate: rate of the result, in Hz.
        look: called with the open file before it is decoded; see `Look`.

    Returns:
        ``(sample,)`` float32, full scale 1, channels averaged; shorter than ``count`` if the file
        ends earlier. The part equals the same part of the complete file, resampled.

    Raises:
        AudioError: the file is unreadable, shorter than its header says, or has NaN or infinite
            samples.
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
    """Return the frames around a part (frame, channel), their rate, and the first frame's index."""
    try:
        handle, status = open_recording(path)
        try:
            head = os.read(handle, min(_SMALL, status.st_size))
            if look is not None:
                look(handle, status, head)
            wav = examine(handle, head, status.st_size)
            if wav is not None and wav.is_pcm16:
                # 16-bit PCM is by far the most common format, and opening and reading it with
                # soundfile costs as much as the STFT. tests/pipeline/test_audio.py compares both.
                first, wanted = _around(start, count, sample_rate, wav.sample_rate, wav.frames)
                offset = wav.offset + first * 2 * wav.channels
                size = wanted * 2 * wav.channels
                raw = head[offset : offset + size]
                if len(raw) < size:
                    raw = os.pread(handle, size, offset)
                data = np.frombuffer(raw[: len(raw) // 2 * 2], "<i2") * np.float32(1 / 32768)
                data = data[: data.size // wav.channels * wav.channels].reshape(-1, wav.channels)
                rate = wav.sample_rate
            else:
                with _decoder(path, handle) as file:
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
                _check_level(data)  # integers need no check
        finally:
            os.close(handle)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"unreadable: {error.error_string}") from error
    except OSError as error:
        raise AudioError(f"cannot be opened: {error.strerror or error}") from error
    if len(data) != wanted:
        raise AudioError(f"truncated: {len(data)} of {wanted} frames could be decoded")
    return data, rate, first


def _decoder(path: Path | str, handle: int) -> soundfile.SoundFile:
    """Open a file with soundfile; a part of a file has no name, so by its descriptor."""
    if not is_member(path):
        return soundfile.SoundFile(os.fspath(path))
    os.lseek(handle, 0, os.SEEK_SET)
    return soundfile.SoundFile(handle, closefd=False)


def _check_level(data: NDArray[np.float32]) -> None:
    loudest = max(float(data.max(initial=0)), -float(data.min(initial=0)))
    if not loudest <= _MAX_LEVEL:  # this refuses NaN, too
        finite = np.isfinite(data).all()
        raise AudioError(
            f"samples up to {loudest:.3g}, where full scale is 1"
            if finite
            else "NaN or infinite samples"
        )


def _around(start: int, count: int, sample_rate: int, rate: int, frames: int) -> tuple[int, int]:
    """Return the first frame and the number of frames to decode for a part.

    A part that is resampled gets a margin on both sides. Decoding begins at an instant that is a
    sample at both rates, so that the resampled part is aligned with the resampled complete file.
    """
    common = math.gcd(rate, sample_rate)
    step, fine = rate // common, sample_rate // common
    margin = 0 if step == fine else _MARGIN
    first = min(max(0, start * step // fine - margin) // step * step, frames)
    last = min(frames, -(-(start + count) * step // fine) + margin)
    return first, max(0, last - first)
