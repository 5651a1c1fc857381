"""Stored values are finite: a store whose dtype cannot hold its values is not published."""

import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import soundfile

from antigram.pipeline.errors import InputError
from tests.support import corpus_trees
from tests.support.files import bytes_of
from tests.support.stores import prepare_gsc


@pytest.fixture
def home(gsc_home, tmp_path) -> Path:
    return Path(shutil.copytree(gsc_home, tmp_path / "gsc"))


def outside_training(clean) -> list[str]:
    """Return the recordings of the test split."""
    return [f"{clean.store.clip_ids[row]}.wav" for row in clean.store.rows("test")]


def scale(home: Path, level: float, but: Collection[str] = ()) -> None:
    for path in home.rglob("[!.]*.wav"):
        if path.relative_to(home).as_posix() not in but:
            corpus_trees.wav(path, soundfile.read(path)[0] * level, subtype="FLOAT")


def test_a_loud_segment_outside_the_training_split_is_not_stored_as_infinity(home, clean, tmp_path):
    loud = sorted(outside_training(clean))[0]
    corpus_trees.wav(home / loud, corpus_trees.sound(5) * np.float32(3e6), subtype="FLOAT")
    target = tmp_path / "store.zarr"
    match = rf"1 of 24 segments.* float16 ends at 6.55e\+04: {loud}#0. Use `dtype=float32`"
    with pytest.raises(InputError, match=match):
        prepare_gsc(home, target, dtype="float16")
    assert not target.exists()
    store = prepare_gsc(home, target).store
    values = store.features.read()
    assert np.isfinite(values).all()
    assert values.max() > np.finfo(np.float16).max


def test_the_largest_value_that_float16_holds_is_stored(home, clean, tmp_path):
    loud = sorted(outside_training(clean))[0]
    sound = corpus_trees.sound(5) * np.float32(1e4)
    corpus_trees.wav(home / loud, sound, subtype="FLOAT")
    store = prepare_gsc(home, tmp_path / "a.zarr").store
    scale_up = 65_504 / store.features.read().max()
    for factor, fits in ((0.999, True), (1.001, False)):
        corpus_trees.wav(home / loud, sound * np.float32(scale_up * factor), subtype="FLOAT")
        shutil.rmtree(tmp_path / "a.zarr", ignore_errors=True)
        if fits:
            values = prepare_gsc(home, tmp_path / "a.zarr", dtype="float16").store.features.read()
            assert np.isfinite(values).all()
            assert values.max() > 65_000
        else:
            with pytest.raises(InputError, match="float16 ends at"):
                prepare_gsc(home, tmp_path / "a.zarr", dtype="float16")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_deviation_that_is_denormal_is_refused(dtype, home, tmp_path):
    scale(home, 1e-40)
    with pytest.raises(InputError, match=r"almost silent: .* deviation is .* Scale them"):
        prepare_gsc(home, tmp_path / "store.zarr", dtype=dtype)
    assert not (tmp_path / "store.zarr").exists()


def test_what_is_too_loud_for_float32_beside_faint_training_is_refused(home, clean, tmp_path):
    loud = outside_training(clean)
    scale(home, 1e-34, but=set(loud))
    for path in loud:
        corpus_trees.wav(home / path, corpus_trees.sound(5) * np.float32(1e6), subtype="FLOAT")
    with pytest.raises(InputError, match=r"float32 ends at 3.4e\+38: .* Leave these recordings"):
        prepare_gsc(home, tmp_path / "store.zarr")
    assert not (tmp_path / "store.zarr").exists()


def test_the_command_line_says_it_in_one_line_with_code_2(shell, home, clean):
    corpus_trees.wav(
        home / outside_training(clean)[0], corpus_trees.sound(5) * np.float32(3e6), subtype="FLOAT"
    )
    wanted = ("prepare", "gsc", "--source", home, "--name", "x")
    shell.refused(2, "Use --dtype float32", *wanted, "--dtype", "float16")
    assert not Path("workspace/features/x.zarr").exists()
    shell.json(*wanted)
    before = bytes_of(Path("workspace/features/x.zarr"))
    shell.refused(2, "Use --dtype float32", *wanted, "--dtype", "float16")
    assert bytes_of(Path("workspace/features/x.zarr")) == before
