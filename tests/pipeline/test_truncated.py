"""Truncated files are rejected, unless all of their samples remain."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from antigram.pipeline.audio.decoding import AudioError, probe, read
from antigram.pipeline.corpora.folder import FOLDER
from antigram.pipeline.features.preparation import prepare
from antigram.pipeline.features.recipe import Recipe

RATE = 16_000
# Every container that soundfile writes and antigram reads, with each kind of compression.
KINDS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAV", "IMA_ADPCM"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("RF64", "FLOAT"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("AIFF", "PCM_16"),
    ("AIFF", "FLOAT"),
    ("AIFF", "ULAW"),
    ("AIFF", "IMA_ADPCM"),
    ("MP3", "MPEG_LAYER_III"),
    ("W64", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
]


def written(path: Path, fmt: str, subtype: str, seconds: float = 2.0) -> bytes:
    t = np.arange(round(seconds * RATE))
    noise = np.random.default_rng(1).standard_normal(t.size)
    soundfile.write(path, 0.3 * np.sin(t / 20) + 0.05 * noise, RATE, subtype=subtype, format=fmt)
    return path.read_bytes()


def used(path: Path) -> np.ndarray:
    """Return all samples of a file, read by `probe` and then `read`."""
    frames = probe(path).frames
    got = read(path, start=0, count=frames, sample_rate=RATE)
    assert got.size == frames
    return got


@pytest.mark.parametrize(("fmt", "subtype"), KINDS)
def test_a_file_cut_anywhere_is_rejected_or_gives_all_its_samples(fmt, subtype, tmp_path):
    path = tmp_path / "a"
    raw = written(path, fmt, subtype)
    try:
        want = used(path)
    except AudioError:
        assert fmt in ("W64", "AU", "CAF")  # not supported, truncated or not
        want = None
    inside = np.linspace(1, len(raw) - 1, 40).astype(int).tolist()
    for cut in sorted({*inside, 4, 8, 12, 20, 30, 44, 60, *range(len(raw) - 6, len(raw))}):
        path.write_bytes(raw[:cut])
        try:
            got = used(path)
        except AudioError as error:
            assert len(str(error)) > 8  # noqa: PT017 - either outcome is right
        else:
            np.testing.assert_array_equal(got, want, err_msg=f"cut at {cut} of {len(raw)}")


@pytest.mark.parametrize(
    ("fmt", "subtype", "says"),
    [
        ("OGG", "VORBIS", "truncated: its last Ogg page is not"),
        ("OGG", "OPUS", "truncated: its last Ogg page is not"),
        ("AIFF", "PCM_16", "truncated: its header promises 64008 bytes, 63"),
        ("RF64", "PCM_16", "truncated: its header promises 64000 bytes, 63"),
        ("RF64", "FLOAT", "truncated: its header promises 128000 bytes, 127"),
    ],
)
def test_a_listing_tells_a_truncated_file_by_its_container(fmt, subtype, says, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(written(path, fmt, subtype)[:-100])
    with pytest.raises(AudioError, match=says):
        probe(path)


def test_an_ogg_stream_that_was_cut_between_two_pages_is_truncated(tmp_path):
    path = tmp_path / "a.ogg"
    raw = written(path, "OGG", "VORBIS")
    path.write_bytes(raw[: raw.rindex(b"OggS")])
    with pytest.raises(AudioError, match="its last Ogg page is not the end of the stream"):
        probe(path)


def test_bytes_behind_the_end_of_a_stream_do_no_harm(tmp_path):
    path = tmp_path / "a.ogg"
    raw = written(path, "OGG", "VORBIS")
    want = used(path)
    path.write_bytes(raw + b"TAG" + bytes(125))
    np.testing.assert_array_equal(used(path), want)


def patched(raw: bytes, chunk: bytes, offset: int, layout: str, value: int) -> bytes:
    changed = bytearray(raw)
    struct.pack_into(layout, changed, raw.index(chunk) + 8 + offset, value)
    return bytes(changed)


@pytest.mark.parametrize("count", [10**7, 2**31, 2**62])
@pytest.mark.parametrize(
    ("fmt", "chunk", "offset", "layout"),
    [
        ("RF64", b"ds64", 8, "<Q"),  # bytes of samples
        ("RF64", b"ds64", 16, "<Q"),  # frames
        ("AIFF", b"COMM", 2, ">I"),  # frames
        ("AIFF", b"SSND", -4, ">I"),  # bytes of samples
    ],
)
def test_an_absurd_count_of_frames_is_refused(fmt, chunk, offset, layout, count, tmp_path):
    path = tmp_path / "a"
    count = min(count, 2**32 - 1) if layout == ">I" else count
    path.write_bytes(patched(written(path, fmt, "PCM_16"), chunk, offset, layout, count))
    with pytest.raises(AudioError, match=rf"{count}"):
        probe(path)


def test_a_flac_with_an_absurd_count_of_frames_is_refused(tmp_path):
    path = tmp_path / "a.flac"
    raw = bytearray(written(path, "FLAC", "PCM_16"))
    raw[22:26] = (2**31 - 2).to_bytes(4, "big")  # the low 32 bits of STREAMINFO's total samples
    path.write_bytes(raw)
    with pytest.raises(AudioError, match="absurd length: 2147483646 frames in"):
        probe(path)


def test_truncated_recordings_are_rejects_of_a_store(tmp_path):
    home = tmp_path / "mine"
    for label in "ab":
        (home / label).mkdir(parents=True)
        for n in range(3):
            written(home / label / f"{n}.wav", "WAV", "PCM_16")
    cut = {f"a/{fmt}-{sub}.bin.wav": (fmt, sub) for fmt, sub in KINDS[4:14]}
    for name, (fmt, sub) in cut.items():
        raw = written(home / name, fmt, sub)
        (home / name).write_bytes(raw[: len(raw) * 2 // 3])
    recipe = Recipe(corpus="folder", longer="segment")
    store = prepare(FOLDER, home, recipe, tmp_path / "x.zarr", max_rejected=100).store
    rejected = {one["source"].partition("#")[0] for one in store.root["rejected"]}
    assert rejected == set(cut)


def test_a_recording_that_shrank_after_it_was_listed_is_a_reject(tmp_path):
    home = tmp_path / "mine"
    for label in "ab":
        (home / label).mkdir(parents=True)
        for n in range(3):
            written(home / label / f"{n}.wav", "WAV", "PCM_16")

    def shrink(stage: str, done: int, total: int) -> None:
        if stage == "headers" and done == total:
            written(home / "a" / "0.wav", "WAV", "PCM_16", seconds=0.5)

    recipe = Recipe(corpus="folder", longer="segment")
    done = prepare(FOLDER, home, recipe, tmp_path / "x.zarr", max_rejected=9, on_progress=shrink)
    assert [one["source"] for one in done.store.root["rejected"]] == ["a/0.wav#0", "a/0.wav#1"]
