"""`prepare` with unusable recordings, and when it is interrupted."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.hashing import canonical_json
from antigram.pipeline.storage.verification import verify_group
from tests.support import corpus_trees
from tests.support.files import bytes_of, names_in
from tests.support.stores import Stopped, prepare_gsc, stop_at

BAD_HEADER = "one/0000ab00_nohash_0.wav"
BAD_SAMPLE = "two/0000ab02_nohash_1.wav"
TOO_LOUD = "zero/0000ab02_nohash_1.wav"


def make_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def make_nan(path: Path) -> None:
    y = corpus_trees.sound(1)
    y[5_000] = np.nan
    corpus_trees.wav(path, y, subtype="FLOAT")


def make_too_loud(path: Path) -> None:
    corpus_trees.wav(path, corpus_trees.sound(1) * np.float32(1e30), subtype="FLOAT")


def make_missing_frames(path: Path) -> None:
    corpus_trees.wav(path, np.zeros(0))


@pytest.fixture
def home(gsc_home, tmp_path) -> Path:
    return Path(shutil.copytree(gsc_home, tmp_path / "gsc"))


@pytest.mark.parametrize(
    ("name", "damage", "source", "reason"),
    [
        (BAD_HEADER, make_truncated, BAD_HEADER, "truncated: its header promises"),
        (BAD_HEADER, make_missing_frames, BAD_HEADER, "no audio frames in it"),
        (BAD_SAMPLE, make_nan, f"{BAD_SAMPLE}#0", "NaN or infinite samples"),
        (TOO_LOUD, make_too_loud, f"{TOO_LOUD}#0", "where full scale is 1"),
    ],
    ids=["truncated", "no frames", "nan", "too loud"],
)
def test_an_unusable_clip_stops_it_and_is_left_out_when_allowed(
    name, damage, source, reason, home, tmp_path
):
    damage(home / name)
    target = tmp_path / "features" / "gsc.zarr"
    with pytest.raises(
        InputError, match=f"1 unusable recordings or segments, 0 allowed: {source}.*{reason}"
    ):
        prepare_gsc(home, target)
    assert not target.exists()
    listed = csv.DictReader((target.parent / "gsc.rejected.csv").read_text().splitlines())
    assert [row["source"] for row in listed] == [source]

    store = prepare_gsc(home, target, max_rejected=1).store
    assert name.removesuffix(".wav") not in store.clip_ids
    assert len(store) == 23
    assert store.split.size == store.labels("word").size == len(store.sources) == 23
    [rejected] = store.root["rejected"]
    assert rejected["source"] == source
    assert reason in rejected["reason"]
    assert list(verify_group(Folder(target))) == []
    assert np.isfinite(store.features.read()).all()


def test_a_store_with_a_reject_has_the_bytes_of_one_whose_corpus_lacks_the_clip(home, tmp_path):
    make_nan(home / BAD_SAMPLE)
    with_it = prepare_gsc(home, tmp_path / "a.zarr", max_rejected=1, workers=2).store
    (home / BAD_SAMPLE).unlink()
    without = prepare_gsc(home, tmp_path / "b.zarr").store
    for name in ("features", "split", "clip_id", "labels"):
        assert bytes_of(with_it.path / name) == bytes_of(without.path / name)


def test_a_store_that_is_there_is_refused_when_fewer_rejects_are_allowed(home, tmp_path):
    make_nan(home / BAD_SAMPLE)
    prepare_gsc(home, tmp_path / "gsc.zarr", max_rejected=1)
    with pytest.raises(InputError, match="1 unusable recordings or segments, 0 allowed"):
        prepare_gsc(home, tmp_path / "gsc.zarr")
    assert prepare_gsc(home, tmp_path / "gsc.zarr", max_rejected=1).computed == 0


def test_rejects_of_both_passes_are_counted_together(home, tmp_path):
    make_truncated(home / BAD_HEADER)
    make_nan(home / BAD_SAMPLE)
    with pytest.raises(
        InputError, match=r"2 unusable recordings or segments, 1 allowed.*`max_rejected=2`"
    ):
        prepare_gsc(home, tmp_path / "gsc.zarr", max_rejected=1)
    assert len(prepare_gsc(home, tmp_path / "gsc.zarr", max_rejected=2).store) == 22


def test_an_unusable_clip_leaves_the_store_of_another_recipe_in_place(
    home, clean, tmp_path, noise_home
):
    target = Path(shutil.copytree(clean.store.path, tmp_path / "gsc.zarr"))
    before = bytes_of(target)
    make_nan(home / BAD_SAMPLE)
    with pytest.raises(InputError, match="unusable"):
        prepare_gsc(home, target, noise_home=noise_home)
    assert bytes_of(target) == before


def test_nothing_usable_is_an_error_even_if_all_rejects_are_allowed(tmp_path):
    for n in range(3):
        path = tmp_path / "gsc" / "one" / f"0000000{n}_nohash_0.wav"
        corpus_trees.wav(path, corpus_trees.sound(n))
        make_truncated(path)
    with pytest.raises(InputError, match="no usable recording"):
        prepare_gsc(tmp_path / "gsc", tmp_path / "gsc.zarr", max_rejected=9)
    assert not (tmp_path / "gsc.zarr").exists()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("stage", "at_least"),
    [("headers", 3), ("features", 4), ("features", 12), ("features", 24),
     ("normalise", 0), ("normalise", 1), ("normalise", 4), ("normalise", 6)],
)  # fmt: skip
def test_resumed_after_an_exception_it_ends_in_the_same_bytes(
    stage, at_least, workers, noisy, gsc_home, noise_home, tmp_path
):
    target = tmp_path / "gsc-high.zarr"
    with pytest.raises(Stopped):
        prepare_gsc(
            gsc_home,
            target,
            noise_home=noise_home,
            workers=workers,
            on_progress=stop_at(stage, at_least),
        )
    assert not target.exists()
    done = 24 if stage == "normalise" else at_least if stage == "features" else 0
    resumed = prepare_gsc(gsc_home, target, noise_home=noise_home)
    in_flight = 2 * workers * 4 if stage == "normalise" else 0
    assert resumed.computed <= 24 - done + in_flight  # what was recorded is not computed again
    assert bytes_of(target) == bytes_of(noisy.store.path)
    assert names_in(tmp_path) == [target.name]


def test_interrupted_again_and_again_it_still_ends_in_the_same_bytes(
    noisy, gsc_home, noise_home, tmp_path
):
    target = tmp_path / "gsc-high.zarr"
    for stage, at_least in (("features", 4), ("features", 12), ("normalise", 2), ("normalise", 5)):
        with pytest.raises(Stopped):
            prepare_gsc(
                gsc_home, target, noise_home=noise_home, on_progress=stop_at(stage, at_least)
            )
    prepare_gsc(gsc_home, target, noise_home=noise_home)
    assert bytes_of(target) == bytes_of(noisy.store.path)


def test_an_exception_before_the_swap_leaves_a_store_to_be_finished(
    noisy, gsc_home, noise_home, tmp_path, monkeypatch
):
    from antigram.pipeline.features import preparation as module

    target = tmp_path / "gsc-high.zarr"

    def fail(*_):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", fail)
        with pytest.raises(Stopped):
            prepare_gsc(gsc_home, target, noise_home=noise_home)
    assert not target.exists()
    assert prepare_gsc(gsc_home, target, noise_home=noise_home).computed == 0
    assert bytes_of(target) == bytes_of(noisy.store.path)


def test_a_chunk_damaged_by_a_crash_is_made_again(noisy, gsc_home, noise_home, tmp_path):
    target = tmp_path / "gsc-high.zarr"
    with pytest.raises(Stopped):
        prepare_gsc(gsc_home, target, noise_home=noise_home, on_progress=stop_at("normalise", 3))
    folder = tmp_path / ".gsc-high.zarr.partial" / "store" / "features" / "c"
    chunks = sorted(folder.glob("*/0/0"))
    chunks[0].write_bytes(bytes(chunks[0].stat().st_size))  # as after a power cut
    chunks[1].unlink()
    assert prepare_gsc(gsc_home, target, noise_home=noise_home).computed == 0
    assert bytes_of(target) == bytes_of(noisy.store.path)


def test_unfinished_work_of_an_earlier_version_is_done_again(clean, gsc_home, tmp_path):
    partial = tmp_path / ".gsc.zarr.partial"
    with pytest.raises(Stopped):
        prepare_gsc(gsc_home, tmp_path / "gsc.zarr", on_progress=stop_at("features", 8))
    note = json.loads((partial / "job.json").read_text())
    del note["files"]  # as it was when raw blocks lay on disk
    (partial / "job.json").write_text(canonical_json(note))
    (partial / "raw").mkdir()
    (partial / "raw" / "00000000.f32").write_bytes(bytes(100))
    seen = []
    computed = prepare_gsc(
        gsc_home,
        tmp_path / "gsc.zarr",
        on_progress=lambda *_: seen.append((partial / "raw").exists()),
    ).computed
    assert (computed, seen[-1]) == (24, False)
    assert bytes_of(tmp_path / "gsc.zarr") == bytes_of(clean.store.path)


def test_what_another_recipe_left_unfinished_is_not_used(clean, gsc_home, noise_home, tmp_path):
    target = tmp_path / "gsc.zarr"
    with pytest.raises(Stopped):
        prepare_gsc(gsc_home, target, noise_home=noise_home, on_progress=stop_at("normalise", 3))
    assert prepare_gsc(gsc_home, target).computed == 24
    assert bytes_of(target) == bytes_of(clean.store.path)
