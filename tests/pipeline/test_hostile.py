"""Files that only pretend to be audio: no traceback, no hang, no silent loss."""

import io
import os
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from antigram.pipeline.audio.decoding import AudioError, probe, read
from antigram.pipeline.corpora.folder import FOLDER
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.preparation import prepare
from antigram.pipeline.features.recipe import Recipe
from tests.support.campaigns import keep
from tests.support.corpus_trees import sound, wav

RATE = 16_000


def plain(subtype="PCM_16", fmt="WAV", frames=RATE, channels=1):
    buffer = io.BytesIO()
    y = np.repeat(sound(1, RATE)[:frames, None], channels, axis=1)
    soundfile.write(buffer, y, RATE, subtype=subtype, format=fmt)
    return buffer.getvalue()


GOOD = plain()


def patched(offset, fmt, *values):
    raw = bytearray(GOOD)
    struct.pack_into(fmt, raw, offset, *values)
    return bytes(raw)


def with_sample(value, subtype="FLOAT"):
    buffer = io.BytesIO()
    y = sound(1).astype(np.float64)
    y[77] = value
    soundfile.write(buffer, y, RATE, subtype=subtype, format="WAV")
    return buffer.getvalue()


FLAC = plain(fmt="FLAC")
OGG = plain(subtype="VORBIS", fmt="OGG")
AIFF = plain(fmt="AIFF")
HOSTILE = {
    "empty": b"",
    "one byte": b"R",
    "riff only": b"RIFF",
    "riff and size": b"RIFF\x24\x00\x00\x00",
    "riff of avi": b"RIFF\x24\x00\x00\x00AVI " + bytes(100),
    "header only": GOOD[:12],
    "header and fmt": GOOD[:36],
    "no data": GOOD[:36] + b"junk" + struct.pack("<I", 4) + b"abcd",
    "half the data": GOOD[: len(GOOD) // 2],
    "one byte missing": GOOD[:-1],
    "data size too large": patched(40, "<I", 40_000),
    "data size of 2 GB": patched(40, "<I", 2**31),
    "data size zero": patched(40, "<I", 0),
    "fmt size zero": patched(16, "<I", 0),
    "fmt size huge": patched(16, "<I", 2**32 - 1),
    "rate zero": patched(24, "<I", 0),
    "rate 1": patched(24, "<I", 1),
    "rate 4 GHz": patched(24, "<I", 2**32 - 1),
    "channels zero": patched(22, "<H", 0),
    "channels 65535": patched(22, "<H", 65_535),
    "frame of zero bytes": patched(32, "<H", 0),
    "frame of 65535 bytes": patched(32, "<H", 65_535),
    "bits zero": patched(34, "<H", 0),
    "bits 255": patched(34, "<H", 255),
    "tag unknown": patched(20, "<H", 0x4242),
    "tag zero": patched(20, "<H", 0),
    "tag mp3": patched(20, "<H", 0x55),
    "big endian": b"RIFX" + GOOD[4:],
    "data before fmt": GOOD[:12] + GOOD[36:] + GOOD[12:36],
    "chunk size wraps": GOOD[:12] + b"LIST" + struct.pack("<I", 2**32 - 2) + GOOD[12:],
    "zip": b"PK\x03\x04" + bytes(500),
    "gzip": b"\x1f\x8b\x08" + bytes(500),
    "html": b"<!doctype html><html>404</html>",
    "text": b"hello\n",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(500),
    "pdf": b"%PDF-1.7" + bytes(500),
    "elf": b"\x7fELF" + bytes(500),
    "zeros": bytes(1000),
    "ones": b"\xff" * 1000,
    "mac rubbish": b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X" + bytes(100),
    "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "pickle": b"\x80\x04\x95\x00\x00\x00\x00",
    "nan": with_sample(np.nan),
    "plus infinity": with_sample(np.inf),
    "minus infinity": with_sample(-np.inf),
    "nan in double": with_sample(np.nan, "DOUBLE"),
    "absurd level": with_sample(1e30),
    "flac magic only": b"fLaC",
    "flac header": FLAC[:42],
    "flac halved": FLAC[: len(FLAC) // 2],
    "flac garbage": b"fLaC" + bytes(range(256)) * 4,
    "flac no frames": plain(fmt="FLAC", frames=0),
    "ogg magic only": b"OggS",
    "ogg halved header": OGG[:60],
    "ogg garbage": b"OggS" + bytes(range(256)) * 4,
    "aiff magic only": b"FORM",
    "aiff header": AIFF[:20],
    "id3 only": b"ID3\x04\x00\x00\x00\x00\x00\x00",
    "mp3 sync and garbage": b"\xff\xfb\x90\x00" + bytes(300),
    "wav no frames": plain(frames=0),
    "rf64 halved": b"RF64" + GOOD[4 : len(GOOD) // 2],
    "caf": b"caff\x00\x01\x00\x00" + bytes(200),
    "midi": b"MThd\x00\x00\x00\x06" + bytes(50),
}


def test_there_are_sixty_of_them():
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_with_a_reason(content, tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(content)

    def use():
        probe(path)
        return read(path, start=0, count=RATE, sample_rate=RATE)

    with pytest.raises(AudioError) as caught:
        use()
    assert len(str(caught.value)) > 8
    assert "\n" not in str(caught.value)


def test_a_tree_of_them_is_rejected_file_by_file_and_nothing_is_lost(tmp_path):
    home = tmp_path / "tree"
    for n in range(6):
        wav(home / "ab"[n % 2] / f"{n}.wav", sound(n))
    for name, content in HOSTILE.items():
        (home / "a" / f"{name}.wav").write_bytes(content)
    (home / "a" / "loop.wav").symlink_to("loop.wav")
    (home / "a" / "upwards").symlink_to(home)
    os.mkfifo(home / "b" / "pipe.wav")
    (home / "b" / "folder.wav").mkdir()
    recipe = Recipe(corpus="folder", longer="segment")
    target = tmp_path / "features" / "x.zarr"
    bad = len(HOSTILE) + 2
    with pytest.raises(InputError, match=f"{bad} unusable recordings or segments, 0 allowed"):
        prepare(FOLDER, home, recipe, target)
    assert not target.exists()
    done = prepare(FOLDER, home, recipe, target, max_rejected=bad)
    assert done.computed == 0  # finished work is not repeated
    assert len(done.store) == 6
    named = {r["source"].removesuffix("#0") for r in done.store.root["rejected"]}
    assert named == {f"a/{name}.wav" for name in HOSTILE} | {"a/loop.wav", "b/pipe.wav"}
    listed = (tmp_path / "features" / "x.rejected.csv").read_text().splitlines()
    assert len(listed) == bad + 1


def test_a_name_that_is_not_utf8_is_an_error_that_names_it(tmp_path):
    home = tmp_path / "tree"
    wav(home / "a" / "good.wav", sound(1))
    (home / "a" / "good.wav").rename(home / "a" / os.fsdecode(b"\xff.wav"))
    with pytest.raises(InputError, match="not UTF-8"):
        prepare(FOLDER, home, Recipe(corpus="folder"), tmp_path / "x.zarr")


def test_silent_clips_are_kept_and_counted(tmp_path):
    for n in range(6):
        wav(tmp_path / "tree" / "ab"[n % 2] / f"{n}.wav", sound(n) * (n != 3))
    done = prepare(FOLDER, tmp_path / "tree", Recipe(corpus="folder"), tmp_path / "x.zarr")
    assert len(done.store) == 6
    assert done.to_json()["silent"] == 1


@given(
    edits=st.lists(st.tuples(st.integers(0, 63), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 3_000)),
)
@settings(
    max_examples=2_000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_mutated_header_ends_in_anything_but_audio_or_a_reason(edits, cut, tmp_path):
    raw = bytearray(SMALL)
    for place, value in edits:
        raw[place] = value
    path = tmp_path / "a.wav"
    path.write_bytes(raw[:cut])
    try:
        info = probe(path)
        y = read(path, start=0, count=2_000, sample_rate=RATE)
    except AudioError:
        pass
    else:
        assert info.frames > 0
        assert np.isfinite(y).all()
        assert y.dtype == np.float32


SMALL = plain(frames=1_000)


@pytest.mark.slow
def test_hostile_files_are_counted(tmp_path):
    """Read all files directly, and count those that are refused with a reason."""
    refused = 0
    for number, raw in enumerate(HOSTILE.values()):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(raw)
        try:
            info = probe(path)
            read(path, start=0, count=min(info.frames, RATE), sample_rate=RATE)
        except AudioError:
            refused += 1
    keep(
        "files that are no audio, or pretend to be",
        kind="hostile",
        test="tests/pipeline/test_hostile.py",
        tried=len(HOSTILE),
        refused_with_a_reason=refused,
    )
    assert refused == len(HOSTILE)
