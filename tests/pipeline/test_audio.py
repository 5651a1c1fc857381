from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from antigram.pipeline.audio.decoding import AudioError, AudioInfo, probe, read

RATE = 16_000


def raw_wav(
    frames: bytes = b"\1\0" * 1_000,
    *,
    tag: int = 1,
    channels: int = 1,
    rate: int = RATE,
    bits: int = 16,
    before: bytes = b"",
    after: bytes = b"",
    size: int | None = None,
    frame_bytes: int | None = None,
) -> bytes:
    """Write a WAV file byte by byte, so that its header can be wrong."""
    block = channels * bits // 8 if frame_bytes is None else frame_bytes
    fmt = struct.pack("<HHIIHH", tag, channels, rate, rate * block % 2**32, block, bits)
    data = b"data" + struct.pack("<I", len(frames) if size is None else size) + frames
    body = b"WAVE" + before + b"fmt " + struct.pack("<I", 16) + fmt + data + after
    return b"RIFF" + struct.pack("<I", len(body)) + body


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def put(tmp_path: Path, content: bytes, name: str = "a.wav") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def read_all(path: Path, rate: int = RATE) -> np.ndarray:
    return read(path, start=0, count=10_000_000, sample_rate=rate)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"I am no audio file at all", r"not audio: begins with b'I am'"),
        (b"PK\3\4" + b"\0" * 100, "not audio"),
        (b"RIFF", "truncated or not WAVE"),
        (b"RIFF\0\0\0\0AVI " + b"\0" * 50, "truncated or not WAVE"),
        (b"RIFF\x24\0\0\0WAVE", "truncated: no data chunk"),
        (raw_wav()[:30], "truncated: the fmt chunk is not complete"),
        (raw_wav()[:36], "truncated: no data chunk"),
        (raw_wav()[:-1], "truncated: its header promises 2000 bytes, 1999 are there"),
        (raw_wav()[:-1_500], "truncated: its header promises 2000 bytes, 500 are there"),
        (raw_wav(b""), "no audio frames"),
        (raw_wav(size=0), "no audio frames"),
        (raw_wav(rate=0), "sample rate is 0 Hz"),
        (raw_wav(rate=999), "sample rate is 999 Hz"),
        (raw_wav(rate=2**32 - 1), "sample rate is 4294967295 Hz"),
        (raw_wav(channels=0), "0 channels"),
        (raw_wav(channels=65), "65 channels, wanted 1 to 64"),
        (raw_wav(frame_bytes=0), "0 bytes a frame"),
        (b"RIFF\0\0\0\0WAVE" + chunk(b"data", b"\0" * 8), "data before fmt"),
        (b"fLaC" + b"\0" * 100, "unreadable"),
        (b"OggS" + b"\0" * 100, "truncated: its last Ogg page"),
        (b"\xff\xfb\x90\0", "unreadable"),
    ],
)
def test_a_bad_header_is_refused_with_its_reason(content, reason, tmp_path):
    with pytest.raises(AudioError, match=reason):
        probe(put(tmp_path, content))


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    with pytest.raises(AudioError, match="cannot be opened: No such file"):
        probe(tmp_path / "none.wav")
    with pytest.raises(AudioError, match="not a regular file"):
        probe(tmp_path)
    with pytest.raises(AudioError, match=r"cannot be opened|unreadable"):
        read_all(tmp_path / "none.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_no_number_is_refused(value, tmp_path, write_wav):
    y = np.zeros(1_000, np.float32)
    y[777] = value
    path = write_wav(tmp_path / "a.wav", y, subtype="FLOAT")
    assert probe(path) == AudioInfo(1_000, RATE, 1)
    with pytest.raises(AudioError, match="NaN or infinite samples"):
        read_all(path)


def test_a_bad_sample_outside_the_part_that_is_read_is_not_seen(tmp_path, write_wav):
    y = np.zeros(1_000, np.float32)
    y[777] = np.nan
    path = write_wav(tmp_path / "a.wav", y, subtype="FLOAT")
    assert read(path, start=0, count=777, sample_rate=RATE).size == 777


def test_a_flac_that_was_cut_off_is_refused(tmp_path, write_wav, rng):
    path = write_wav(tmp_path / "a.flac", rng.uniform(-0.5, 0.5, 40_000))
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(AudioError, match=r"truncated|unreadable"):
        read_all(path)


@pytest.mark.parametrize("junk", [b"", b"LIST", b"odd"], ids=len)
def test_chunks_before_and_after_the_data_are_no_audio(junk, tmp_path):
    samples = np.arange(-500, 500, dtype="<i2")
    content = raw_wav(
        samples.tobytes(), before=chunk(b"FLLR", junk * 201), after=chunk(b"id3 ", junk * 999)
    )
    path = put(tmp_path, content)
    assert probe(path) == AudioInfo(1_000, RATE, 1)
    np.testing.assert_array_equal(read_all(path), samples / np.float32(32_768))


def test_a_wav_written_to_a_pipe_ends_with_its_file(tmp_path):
    path = put(tmp_path, raw_wav(size=0xFFFFFFFF))
    assert probe(path).frames == 1_000
    assert read_all(path).size == 1_000


@pytest.mark.parametrize(
    ("suffix", "subtype", "step"),
    [
        ("wav", "PCM_U8", 2.0**-7),
        ("wav", "PCM_16", 2.0**-15),
        ("wav", "PCM_24", 2.0**-23),
        ("wav", "PCM_32", 2.0**-24),
        ("wav", "FLOAT", 2.0**-24),
        ("wav", "DOUBLE", 2.0**-24),
        ("flac", "PCM_16", 2.0**-15),
        ("flac", "PCM_24", 2.0**-23),
        ("aiff", "PCM_16", 2.0**-15),
    ],
)
def test_every_lossless_format_is_read_at_its_own_resolution(
    suffix, subtype, step, tmp_path, write_wav, rng
):
    y = rng.uniform(-0.99, 0.99, 5_000)
    path = write_wav(tmp_path / f"a.{suffix}", y, subtype=subtype)
    assert probe(path) == AudioInfo(5_000, RATE, 1)
    got = read_all(path)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, y, rtol=0, atol=step)
    np.testing.assert_array_equal(got, soundfile.read(path, dtype="float32")[0])


def test_compressed_wav_and_ogg_are_read_through_soundfile(tmp_path, write_wav, rng):
    y = 0.3 * np.sin(np.arange(8_000) / 20)
    for path in (
        write_wav(tmp_path / "a.wav", y, subtype="IMA_ADPCM"),
        write_wav(tmp_path / "a.ogg", y, subtype="VORBIS"),
    ):
        assert probe(path).frames >= 8_000
        # ADPCM needs some samples until its step fits.
        np.testing.assert_allclose(read_all(path)[100:8_000], y[100:], rtol=0, atol=0.03)


@pytest.mark.parametrize("channels", [2, 3])
def test_channels_are_averaged(channels, tmp_path, write_wav, rng):
    y = rng.uniform(-1, 1, (3_000, channels)).astype(np.float32)
    path = write_wav(tmp_path / "a.wav", y, subtype="FLOAT")
    assert probe(path).channels == channels
    want = y.astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(read_all(path), want, rtol=0, atol=2e-7)


@pytest.mark.parametrize(("start", "count"), [(0, 10), (990, 10), (995, 10), (1_000, 5), (0, 0)])
def test_a_part_is_that_part_and_ends_with_the_file(start, count, tmp_path, write_wav, rng):
    y = rng.uniform(-1, 1, 1_000).astype(np.float32)
    path = write_wav(tmp_path / "a.wav", y, subtype="FLOAT")
    got = read(path, start=start, count=count, sample_rate=RATE)
    np.testing.assert_array_equal(got, y[start : start + count])


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 15_999])
def test_a_part_of_a_resampled_file_equals_that_part_of_the_whole(rate, tmp_path, write_wav, rng):
    y = rng.uniform(-1, 1, 3 * rate).astype(np.float32)
    path = write_wav(tmp_path / "a.wav", y, rate=rate, subtype="FLOAT")
    whole = soxr.resample(y, rate, RATE, quality="HQ")
    assert abs(probe(path).samples_at(RATE) - whole.size) <= 1
    for start, count in ((0, 16_000), (1, 777), (16_000, 16_000), (31_999, 5_000), (47_000, 9_000)):
        got = read(path, start=start, count=count, sample_rate=RATE)
        want = whole[start : start + count]
        assert abs(got.size - want.size) <= 1  # at the end soxr rounds the length
        length = min(got.size, want.size)
        np.testing.assert_allclose(got[:length], want[:length], rtol=0, atol=2e-6)


def test_resampling_keeps_a_tone_and_its_level(tmp_path, write_wav):
    t = np.arange(44_100) / 44_100
    path = write_wav(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 1_000 * t), 44_100, "FLOAT")
    want = 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(16_000) / RATE)
    np.testing.assert_allclose(read_all(path)[500:-500], want[500:-500], rtol=0, atol=1e-4)


def test_a_tone_above_the_new_rates_reach_is_gone(tmp_path, write_wav):
    t = np.arange(48_000) / 48_000
    path = write_wav(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 11_000 * t), 48_000, "FLOAT")
    assert np.abs(read_all(path)[500:-500]).max() < 1e-5
