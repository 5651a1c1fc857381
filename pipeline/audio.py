"""Read audio files: check the header, decode a part, mix to mono, resample. Nothing is guessed.

soundfile decodes; it reads a truncated WAV silently short and passes NaN samples through, so both
are checked here. soxr resamples (HQ: aliases at -144 dB).
"""

from __future__ import annotations

import math
import os
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.errors import InputError

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
_UNKNOWN_SIZE = 0xFFFFFFFF  # what writers to a pipe put, who cannot seek back
_MAGIC = {b"RIFF": "wav", b"RF64": "wav", b"fLaC": "flac", b"OggS": "ogg", b"FORM": "aiff"}


class AudioError(InputError):
    """A file cannot be used as audio; the message is the reason, without the path."""


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
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a fifo must not block
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise AudioError("not a regular file")
            if status.st_size == 0:
                raise AudioError("empty file")
            head = os.read(handle, _HEAD)
            kind = _MAGIC.get(head[:4])
            if kind is None and (head[:3] == b"ID3" or head[:1] == b"\xff"):
                kind = "mp3"
            if kind is None:
                raise AudioError(
                    f"not audio: begins with {head[:4]!r}, wanted WAV, FLAC, Ogg or MP3"
                )
            wav = _probe_wav(handle, head, status.st_size) if kind == "wav" else None
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
    if info.frames > _MAX_FRAMES:
        raise AudioError(f"absurd length: {info.frames} frames")
    if not _RATES[0] <= info.sample_rate <= _RATES[1]:
        raise AudioError(f"sample rate is {info.sample_rate} Hz, wanted {_RATES[0]} to {_RATES[1]}")
    if not 1 <= info.channels <= _MAX_CHANNELS:
        raise AudioError(f"{info.channels} channels, wanted 1 to {_MAX_CHANNELS}")
    return info


class _Wav(NamedTuple):
    """What the chunks of a WAV file say; ``place`` is where its samples begin."""

    frames: int
    sample_rate: int
    channels: int
    is_pcm16: bool
    place: int


def _probe_wav(handle: int, head: bytes, size: int) -> _Wav | None:
    """Walk the chunks of a WAV file; None if its frames are not of one size (ADPCM, say)."""
    if len(head) < 12 or head[8:12] != b"WAVE":
        raise AudioError("truncated or not WAVE: the RIFF header is not complete")

    def at(place: int, count: int) -> bytes:
        inside = place + count <= len(head)
        return head[place : place + count] if inside else os.pread(handle, count, place)

    layout: tuple[int, int, int, int, int] | None = None  # the last two: bytes a frame, bits
    place = 12
    while place + 8 <= size:
        header = at(place, 8)
        name, length = header[:4], struct.unpack("<I", header[4:])[0]
        if name == b"fmt ":
            body = at(place + 8, 16)
            if length < 16 or len(body) < 16:
                raise AudioError("truncated: the fmt chunk is not complete")
            tag, channels, rate, _, frame_bytes, bits = struct.unpack("<HHIIHH", body)
            layout = tag, channels, rate, frame_bytes, bits
        elif name == b"data":
            if layout is None:
                raise AudioError("damaged header: data before fmt")
            tag, channels, rate, frame_bytes, bits = layout
            here = size - place - 8
            if length == _UNKNOWN_SIZE:
                length = here
            if length > here:
                raise AudioError(f"truncated: its header promises {length} bytes, {here} are there")
            if tag not in (1, 3, 0xFFFE):
                return None
            if frame_bytes == 0 or channels == 0:
                found = f"{channels} channels, {frame_bytes} bytes a frame"
                raise AudioError(f"damaged header: {found}")
            frames = length // frame_bytes
            return _Wav(frames, rate, channels, tag == 1 and bits == 16, place + 8)
        place += 8 + length + (length & 1)  # chunks are padded to an even length
    raise AudioError("truncated: no data chunk")


def read(path: Path | str, *, start: int, count: int, sample_rate: int) -> NDArray[np.float32]:
    """Decode a part of a file as mono at the rate asked for.

    Args:
        path: a file that `probe` accepts.
        start: first sample, counted at ``sample_rate``.
        count: samples wanted.
        sample_rate: Hz.

    Returns:
        ``(sample,)`` float32, full scale 1; shorter than ``count`` where the file ends, channels
        averaged. A part of a resampled file equals that part of the whole file, resampled.

    Raises:
        AudioError: unreadable, shorter than its header says, or with NaN or infinite samples.
    """
    data, rate, first = _decode(path, start, count, sample_rate)
    mono = data[:, 0] if data.shape[1] == 1 else data.mean(axis=1)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate, quality="HQ")
    skip = start - first * sample_rate // rate
    return np.ascontiguousarray(mono[skip : skip + count], np.float32)


def _decode(
    path: Path | str, start: int, count: int, sample_rate: int
) -> tuple[NDArray[np.float32], int, int]:
    """Frames around a part, (frame, channel); their rate; and the number of the first."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            head = os.read(handle, _SMALL)
            is_wav = _MAGIC.get(head[:4]) == "wav"
            wav = _probe_wav(handle, head, os.fstat(handle).st_size) if is_wav else None
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
