"""Windows of long recordings are predicted as they come, in memory that does not grow."""

import itertools
import json
import tracemalloc
import wave
from typing import Any

import numpy as np
import pytest
import torch

import antigram
from antigram.model.nets.arch import Arch
from antigram.model.training import stream as streaming
from antigram.model.training.checkpoint import save_tensors
from antigram.model.training.predict import segment_features
from antigram.pipeline.audio.windows import window_starts
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.recipe import Recipe
from tests.support.checkpoints import sharp
from tests.support.nets import CPU

ARCH = Arch("vgg11", 1)
SEGMENTS = Recipe(corpus="folder", longer="segment", overlap=0.25)
CUT = Recipe(corpus="gsc", longer="cut")


@pytest.fixture
def long(write_wav, tmp_path, rng):
    y = rng.uniform(-0.5, 0.5, 16_000 * 9 + 4_000) * np.sin(np.arange(148_000) / 16_000)
    return write_wav(tmp_path / "long.wav", y.astype(np.float32))


def silence(path, seconds):
    """Write a recording of silence at 1000 Hz, as a file with a hole."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(1_000)
        file.setnframes(seconds * 1_000)
        file.writeframesraw(b"")
    header = bytearray(path.read_bytes()[:44])
    header[4:8] = (36 + seconds * 2_000).to_bytes(4, "little")
    header[40:44] = (seconds * 2_000).to_bytes(4, "little")
    with path.open("wb") as raw:
        raw.write(header)
        raw.truncate(44 + seconds * 2_000)
    return path


@pytest.mark.parametrize("last_window", ["pad", "end"])
def test_starts_are_those_of_a_list(last_window, rng):
    for _ in range(300):
        count, window, hop = (int(n) for n in rng.integers(1, [60, 20, 30]))
        found = list(streaming._starts(count, window, hop, last_window))
        want, _ = window_starts(count, window, hop, last_window)
        assert [start for start, _ in found] == want, (count, window, hop)
        assert [last for _, last in found] == [False] * (len(want) - 1) + [True]


def test_windows_are_the_segments_of_predict(store, long):
    checkpoint = sharp(ARCH, store, recipe=SEGMENTS)
    (want,) = antigram.predict(checkpoint, [long], device=CPU)
    *windows, whole = streaming.stream(checkpoint, [long], device=CPU)
    assert [each.to_json() for each in windows] == [each.to_json() for each in want.segments]
    assert len(windows) == 12
    assert whole.start_s is None
    np.testing.assert_allclose(whole.shares, want.prediction.shares, rtol=1e-12)


def test_a_hop_moves_windows_over_all_of_a_recording_that_training_cut(store, long):
    checkpoint = sharp(ARCH, store, recipe=CUT)
    *windows, _ = streaming.stream(checkpoint, [long], device=CPU, hop_seconds=0.5)
    assert [each.start_s for each in windows] == [0.5 * i for i in range(18)]
    (cut,) = antigram.predict(checkpoint, [long], device=CPU)
    np.testing.assert_allclose(windows[0].shares, cut.prediction.shares, rtol=0, atol=1e-6)
    assert len({each.label for each in windows}) > 1
    with pytest.raises(InputError, match="`hop_seconds` 1e-09: wanted at least one sample"):
        next(streaming.stream(checkpoint, [long], device=CPU, hop_seconds=1e-9))


def test_ten_hours_take_the_memory_of_one(store, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "segments_at_once", lambda _: 4)
    checkpoint = sharp(ARCH, store, recipe=CUT)
    peaks, counts = [], []
    for hours in (1, 1, 10):  # the first loads what is loaded once
        path = silence(tmp_path / f"{hours}.wav", hours * 3600)
        tracemalloc.start()
        with torch.no_grad():
            predicted = streaming.stream(checkpoint, [path], device=CPU, hop_seconds=200)
            counts.append(sum(1 for _ in predicted))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert counts == [19, 19, 181]
    assert peaks[2] < 1.1 * peaks[1]


def test_no_window_is_read_before_the_one_before_was_given(store, long, monkeypatch):
    monkeypatch.setattr(streaming, "segments_at_once", lambda _: 2)
    read = []
    monkeypatch.setattr(
        streaming, "segment_features", lambda *args: read.append(args[1]) or segment_features(*args)
    )
    predicted = streaming.stream(sharp(ARCH, store, recipe=SEGMENTS), [long], device=CPU)
    for number, _ in enumerate(itertools.islice(predicted, 6), 1):
        assert len(read) == 2 * -(-number // 2)


@pytest.fixture
def saved(store, tmp_path):
    save_tensors(tmp_path / "net.pt", sharp(ARCH, store, recipe=SEGMENTS).to_plain())
    return tmp_path / "net.pt"


def test_the_command_prints_an_object_a_line_and_fills_the_table(saved, long, shell):
    words = ("predict", "--ckpt", saved, "--stream", long, "--hop-seconds", "2", "--csv", "t.csv")
    code, out, _ = shell("--json", *words)
    assert code == 0
    *windows, whole = map(json.loads, out.splitlines())
    assert [each["start_s"] for each in windows] == [0, 2, 4, 6, 8]
    assert set(whole) == {"file", "label", "probabilities"}
    rows = (shell.folder / "t.csv").read_text().splitlines()
    assert len(rows) == 1 + len(windows)
    code, out, _ = shell(*words)
    assert out.count("\n") == 6
    line = "--hop-seconds goes with --stream"
    shell.refused(2, line, "predict", "--ckpt", saved, long, "--hop-seconds", "2")


def test_rows_stay_and_the_rest_is_said_if_a_recording_is_damaged(saved, long, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF nothing")
    table = tmp_path / "rows.csv"
    rows: Any = antigram.stream_files(saved, [long], table=table, device="cpu")
    next(rows)
    assert len(table.read_text().splitlines()) == 2  # there at once
    rows.close()
    with pytest.raises(InputError, match=r"bad\.wav: "):
        list(antigram.stream_files(saved, [bad, long], device="cpu"))
    said = []
    files = [bad, long]
    given: dict[str, Any] = {"skip_unreadable": True, "device": "cpu", "on_message": said.append}
    assert len(list(antigram.stream_files(saved, files, **given))) == 13
    assert said[-1].startswith(f"left out from here on: {bad}: ")
    with pytest.raises(InputError, match="none of 1 files can be used"):
        list(antigram.stream_files(saved, [bad], **given))
