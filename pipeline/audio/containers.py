"""What a container of audio tells without decoding: where the samples lie, and if all are there.

libsndfile reads a truncated WAV, RF64, AIFF or Ogg file silently short, so that their sizes are
checked here. FLAC and MP3 files tell how long they are, and their decoder finds them short. (An MP3
file without a Xing or Info header tells nothing: one that is cut between two frames is complete for
all that anybody can know.)
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from antigram.pipeline.errors import InputError

__all__ = ["AudioError", "Pcm", "examine"]

_KINDS = {b"RIFF": "wav", b"RF64": "wav", b"fLaC": "flac", b"OggS": "ogg", b"FORM": "aiff"}
_UNKNOWN_SIZE = 0xFFFFFFFF  # what writers to a pipe put, who cannot seek back; RF64: see ds64
_LONGEST_OGG_PAGE = 27 + 255 + 255 * 255  # bytes: header, table of 255 segments, the segments
_OGG_HEADER = struct.Struct("<4sBBqIIIB")
_LAST_PAGE = 0x04
# Bytes a sample of the compressions of AIFF-C whose frames are all of one size; None: of COMM.
_AIFC_BYTES = {b"NONE": None, b"twos": None, b"sowt": None, b"raw ": None, b"in24": 3, b"in32": 4}
_AIFC_BYTES |= {b"fl32": 4, b"FL32": 4, b"fl64": 8, b"FL64": 8}
_AIFC_BYTES |= {b"ulaw": 1, b"ULAW": 1, b"alaw": 1, b"ALAW": 1}


class AudioError(InputError):
    """A file cannot be used as audio; the message is the reason, without the path."""


class Pcm(NamedTuple):
    """A WAV file whose frames are all of one size; ``place`` is where its samples begin."""

    frames: int
    sample_rate: int
    channels: int
    is_pcm16: bool
    place: int


@dataclass(frozen=True, slots=True)
class _File:
    """An open file, of which the first bytes have been read."""

    handle: int
    head: bytes
    size: int

    def at(self, place: int, count: int) -> bytes:
        """Bytes of the file, fewer where it ends."""
        if place + count <= len(self.head):
            return self.head[place : place + count]
        return os.pread(self.handle, count, place)

    def chunks(self, layout: str) -> Iterator[tuple[bytes, int, int]]:
        """Name, first byte and length of each chunk of a RIFF (``<I``) or IFF (``>I``) file."""
        place = 12
        while place + 8 <= self.size:
            header = self.at(place, 8)
            length = struct.unpack(layout, header[4:])[0]
            yield header[:4], place + 8, length
            place += 8 + length + (length & 1)  # chunks are padded to an even length


def examine(handle: int, head: bytes, size: int) -> Pcm | None:
    """Check that an open file is audio and complete, as far as its container tells.

    Args:
        handle: of the file, open for reading; its position is not used.
        head: its first bytes.
        size: bytes of the file.

    Returns:
        Where its frames lie, of a WAV or RF64 file whose frames are all of one size; else None.

    Raises:
        AudioError: no audio by its first bytes, truncated, or its sizes contradict each other.
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


def _check_there(promised: int, there: int) -> None:
    if promised > there:
        raise AudioError(f"truncated: its header promises {promised} bytes, {there} are there")


def _examine_wav(file: _File) -> Pcm | None:
    """Walk the chunks of a WAV file; None if its frames are not of one size (ADPCM, say)."""
    if len(file.head) < 12 or file.head[8:12] != b"WAVE":
        raise AudioError("truncated or not WAVE: the RIFF header is not complete")
    layout: tuple[int, int, int, int, int] | None = None  # the last two: bytes a frame, bits
    promised: tuple[int, int] | None = None  # bytes and frames, of RF64
    for name, place, length in file.chunks("<I"):
        if name == b"ds64" and file.head[:4] == b"RF64":
            body = file.at(place, 24)
            if length < 24 or len(body) < 24:
                raise AudioError("truncated: the ds64 chunk is not complete")
            promised = struct.unpack("<8xQQ", body)
        elif name == b"fmt ":
            body = file.at(place, 16)
            if length < 16 or len(body) < 16:
                raise AudioError("truncated: the fmt chunk is not complete")
            tag, channels, rate, _, frame_bytes, bits = struct.unpack("<HHIIHH", body)
            layout = tag, channels, rate, frame_bytes, bits
        elif name == b"data":
            if layout is None:
                raise AudioError("damaged header: data before fmt")
            tag, channels, rate, frame_bytes, bits = layout
            there = file.size - place
            unknown = length == _UNKNOWN_SIZE
            size = length if not unknown else promised[0] if promised else there
            _check_there(size, there)
            if tag not in (1, 3, 0xFFFE):
                return None
            if frame_bytes == 0 or channels == 0:
                found = f"{channels} channels, {frame_bytes} bytes a frame"
                raise AudioError(f"damaged header: {found}")
            frames = size // frame_bytes
            if promised and frames < promised[1] < 2**64 - 1:
                raise AudioError(f"damaged header: {promised[1]} frames promised, {frames} there")
            return Pcm(frames, rate, channels, tag == 1 and bits == 16, place)
    raise AudioError("truncated: no data chunk")


def _examine_aiff(file: _File) -> None:
    """Hold the sizes of an AIFF or AIFF-C file against each other and against the file."""
    form = file.head[8:12]
    if form not in (b"AIFF", b"AIFC"):
        raise AudioError("truncated or not AIFF: the FORM header is not complete")
    frames = frame_bytes = 0  # frame_bytes 0: they are not of one size
    for name, place, length in file.chunks(">I"):
        if name == b"COMM":
            body = file.at(place, 22)
            if length < 18 or len(body) < (22 if form == b"AIFC" else 18):
                raise AudioError("truncated: the COMM chunk is not complete")
            channels, frames, bits = struct.unpack(">hIh", body[:8])
            width = _AIFC_BYTES.get(body[18:22], 0) if form == b"AIFC" else None
            frame_bytes = channels * (-(-bits // 8) if width is None else width)
        elif name == b"SSND":
            _check_there(length, file.size - place)
            offset = int.from_bytes(file.at(place, 4), "big")
            there = length - 8 - offset
            if there < 0 or frames * frame_bytes > there:
                raise AudioError(f"damaged header: {frames} frames promised in {there} bytes")
            return
    raise AudioError("truncated: no SSND chunk")


def _examine_ogg(file: _File) -> None:
    """Look at the last page: a stream that was written to its end says so there."""
    place = max(0, file.size - _LONGEST_OGG_PAGE)
    tail = os.pread(file.handle, file.size - place, place)
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
