"""Read the headers of audio containers: where the samples are stored, and whether any are missing.

libsndfile reads a truncated WAV, RF64, AIFF or Ogg file without an error, so the sizes in these
files are checked here. FLAC and MP3 files state their length, so the decoder reports a truncated
file. (An MP3 file without a Xing or Info header does not state its length: if it is cut between two
frames, nothing shows that it is truncated.)
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from antigram.pipeline.errors import InputError

__all__ = ["AudioError", "Pcm", "examine"]

_KINDS = {b"RIFF": "wav", b"RF64": "wav", b"fLaC": "flac", b"OggS": "ogg", b"FORM": "aiff"}
_UNKNOWN_SIZE = 0xFFFFFFFF  # put by writers to a pipe, which cannot seek back; RF64: see ds64
_LONGEST_OGG_PAGE = 27 + 255 + 255 * 255  # bytes: header, table of 255 segments, the segments
# RIFF header, a format chunk of 16 bytes and the head of the data chunk: most WAV files begin so.
_PLAIN_WAV = struct.Struct("<4x4x4s4sIHHI4xHH4sI")
_OGG_HEADER = struct.Struct("<4sBBqIIIB")
_LAST_PAGE = 0x04
# AIFF-C compression with frames of equal size -> bytes a sample; None: see the COMM chunk.
_AIFC_BYTES = {b"NONE": None, b"twos": None, b"sowt": None, b"raw ": None, b"in24": 3, b"in32": 4}
_AIFC_BYTES |= {b"fl32": 4, b"FL32": 4, b"fl64": 8, b"FL64": 8}
_AIFC_BYTES |= {b"ulaw": 1, b"ULAW": 1, b"alaw": 1, b"ALAW": 1}


class AudioError(InputError):
    """A file cannot be used as audio; the message is the reason, without the path."""


class Pcm(NamedTuple):
    """Format of a WAV file with frames of equal size; the samples begin at ``offset``."""

    frames: int
    sample_rate: int
    channels: int
    is_pcm16: bool
    offset: int


class _File(NamedTuple):
    """An open file and its first bytes."""

    handle: int
    head: bytes
    size: int

    def at(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes from an offset; fewer at the end of the file."""
        if offset + count <= len(self.head):
            return self.head[offset : offset + count]
        return os.pread(self.handle, count, offset)

    def chunks(self, layout: str) -> Iterator[tuple[bytes, int, int]]:
        """Yield name, offset and length of each chunk of a RIFF (``<I``) or IFF (``>I``) file."""
        offset = 12
        while offset + 8 <= self.size:
            header = self.at(offset, 8)
            length = struct.unpack(layout, header[4:])[0]
            yield header[:4], offset + 8, length
            offset += 8 + length + (length & 1)  # chunks are padded to an even length


def examine(handle: int, head: bytes, size: int) -> Pcm | None:
    """Check that an open file is audio and complete, as far as its container shows it.

    Args:
        handle: file descriptor, open for reading; its position is neither used nor changed.
        head: the first bytes of the file.
        size: size of the file in bytes.

    Returns:
        Format and offset of the samples of a WAV or RF64 file with frames of equal size; else None.

    Raises:
        AudioError: the file does not begin like audio, is truncated, or has contradicting sizes.
    """
    kind = _KINDS.get(head[:4])
    file = _File(handle, head, size)
    if kind == "wav":
        return _examine_wav(file)
    if kind == "aiff":
        _examine_aiff(file)
    elif kind == "ogg":
        _examine_ogg(file)
    elif kind is None and head[:3] != b"ID3" and head[:1] != b"\xff":
        raise AudioError(f"not audio: begins with {head[:4]!r}, wanted WAV, FLAC, Ogg, AIFF or MP3")
    return None


def _check_size(promised: int, available: int) -> None:
    if promised > available:
        raise AudioError(f"truncated: its header promises {promised} bytes, {available} are there")


def _examine_wav(file: _File) -> Pcm | None:
    """Check the chunks of a WAV file; return None if frame sizes differ, as in ADPCM."""
    if len(file.head) < 12 or file.head[8:12] != b"WAVE":
        raise AudioError("truncated or not WAVE: the RIFF header is not complete")
    if (plain := _examine_plain_wav(file)) is not None:
        return plain
    layout: tuple[int, int, int, int, int] | None = None  # tag, channels, rate, bytes a frame, bits
    promised: tuple[int, int] | None = None  # bytes and frames, in RF64 only
    for name, offset, length in file.chunks("<I"):
        if name == b"ds64" and file.head[:4] == b"RF64":
            body = file.at(offset, 24)
            if length < 24 or len(body) < 24:
                raise AudioError("truncated: the ds64 chunk is not complete")
            promised = struct.unpack("<8xQQ", body)
        elif name == b"fmt ":
            body = file.at(offset, 16)
            if length < 16 or len(body) < 16:
                raise AudioError("truncated: the fmt chunk is not complete")
            tag, channels, rate, _, frame_bytes, bits = struct.unpack("<HHIIHH", body)
            layout = tag, channels, rate, frame_bytes, bits
        elif name == b"data":
            if layout is None:
                raise AudioError("damaged header: data before fmt")
            tag, channels, rate, frame_bytes, bits = layout
            available = file.size - offset
            unknown = length == _UNKNOWN_SIZE
            size = length if not unknown else promised[0] if promised else available
            _check_size(size, available)
            if tag not in (1, 3, 0xFFFE):
                return None
            if frame_bytes == 0 or channels == 0:
                raise AudioError(
                    f"damaged header: {channels} channels, {frame_bytes} bytes a frame"
                )
            frames = size // frame_bytes
            if promised and frames < promised[1] < 2**64 - 1:
                raise AudioError(f"damaged header: {promised[1]} frames promised, {frames} there")
            return Pcm(frames, rate, channels, tag == 1 and bits == 16, offset)
    raise AudioError("truncated: no data chunk")


def _examine_plain_wav(file: _File) -> Pcm | None:
    """Check a WAV file with nothing between its format and its data; None for any other file."""
    if len(file.head) < _PLAIN_WAV.size or file.head[:4] != b"RIFF":
        return None
    wave, fmt, length, tag, channels, rate, frame_bytes, bits, data, size = _PLAIN_WAV.unpack_from(
        file.head
    )
    is_plain = (wave, fmt, length, data) == (b"WAVE", b"fmt ", 16, b"data") and tag in (1, 3)
    if not is_plain or size == _UNKNOWN_SIZE or 0 in (frame_bytes, channels):
        return None
    _check_size(size, file.size - _PLAIN_WAV.size)
    return Pcm(size // frame_bytes, rate, channels, tag == 1 and bits == 16, _PLAIN_WAV.size)


def _examine_aiff(file: _File) -> None:
    """Check the sizes in an AIFF or AIFF-C file against each other and against the file."""
    form = file.head[8:12]
    if form not in (b"AIFF", b"AIFC"):
        raise AudioError("truncated or not AIFF: the FORM header is not complete")
    frames = frame_bytes = 0  # frame_bytes 0: frame sizes differ
    for name, offset, length in file.chunks(">I"):
        if name == b"COMM":
            body = file.at(offset, 22)
            if length < 18 or len(body) < (22 if form == b"AIFC" else 18):
                raise AudioError("truncated: the COMM chunk is not complete")
            channels, frames, bits = struct.unpack(">hIh", body[:8])
            width = _AIFC_BYTES.get(body[18:22], 0) if form == b"AIFC" else None
            frame_bytes = channels * (-(-bits // 8) if width is None else width)
        elif name == b"SSND":
            _check_size(length, file.size - offset)
            padding = int.from_bytes(file.at(offset, 4), "big")
            available = length - 8 - padding
            if available < 0 or frames * frame_bytes > available:
                raise AudioError(f"damaged header: {frames} frames promised in {available} bytes")
            return
    raise AudioError("truncated: no SSND chunk")


def _examine_ogg(file: _File) -> None:
    """Check that the last page is complete and marks the end of the stream."""
    offset = max(0, file.size - _LONGEST_OGG_PAGE)
    tail = os.pread(file.handle, file.size - offset, offset)
    last = tail.rfind(b"OggS")
    header = tail[last : last + _OGG_HEADER.size] if last >= 0 else b""
    if len(header) < _OGG_HEADER.size:
        raise AudioError("truncated: no complete Ogg page at its end")
    *_, segments = _OGG_HEADER.unpack(header)
    table = tail[last + _OGG_HEADER.size :][:segments]
    end = last + _OGG_HEADER.size + segments + sum(table)
    if len(table) < segments or end > len(tail):
        raise AudioError("truncated: its last Ogg page is not complete")
    if not header[5] & _LAST_PAGE:
        raise AudioError("truncated: its last Ogg page is not the end of the stream")
