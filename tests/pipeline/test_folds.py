"""Folds of a store: the store's features at a scale of their own, and what makes one stale."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from antigram.pipeline.errors import DamagedError, InputError, StaleError, StoredDataError
from antigram.pipeline.features import folds as module
from antigram.pipeline.features import store as stores
from antigram.pipeline.features.folds import make_folds, make_teacher_view
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.features.summary import summarise
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.verification import verify_group
from antigram.pipeline.workspace import Workspace, locked
from tests.support import corpus_trees
from tests.support.files import bytes_of, flip, names_in
from tests.support.stores import edit_store, prepare_gsc

DESIGN = "kfold:speaker:4"
EPS = np.finfo(np.float32).eps


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Three words of four speakers, three times each."""
    return corpus_trees.gsc(tmp_path_factory.mktemp("crossed"), per_word=12)


@pytest.fixture(scope="module")
def made(home, tmp_path_factory):
    """A store that was prepared with a design, and its folds."""
    return prepare_gsc(home, tmp_path_factory.mktemp("made") / "gsc.zarr", split=DESIGN)


@pytest.fixture(scope="module")
def half(home, tmp_path_factory):
    store = prepare_gsc(home, tmp_path_factory.mktemp("half") / "half.zarr", dtype="float16").store
    make_folds(store, DESIGN, seed=0)
    return store


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the store and its folds, to be changed."""
    folder = shutil.copytree(made.store.path.parent, tmp_path / "features")
    return FeatureStore(folder / "gsc.zarr")


def fold_of(store, number, label=""):
    return FeatureStore(store.path.with_name(f"{store.name}@{number}{label}.zarr"))


def test_prepare_with_a_design_makes_the_store_and_its_folds_once(made, home):
    store = made.store
    assert made.folds == [store.path.with_name(f"gsc@{k}.zarr") for k in range(4)]
    assert made.to_json()["folds"] == [str(path) for path in made.folds]
    first = fold_of(store, 0)
    np.testing.assert_array_equal(first.split, store.split)
    assert (first.mean, first.std) == (store.mean, store.std)
    before = {path: path.stat().st_mtime_ns for path in made.folds}
    again = prepare_gsc(home, store.path, split=DESIGN)
    assert (again.left_alone, again.folds) == (True, made.folds)
    assert before == {path: path.stat().st_mtime_ns for path in made.folds}


def test_folds_test_each_speaker_once_and_no_recording_is_on_two_sides(made):
    tested = []
    for path in made.folds:
        fold = FeatureStore(path)
        speaker, recording = fold.labels("speaker"), np.array(fold.sources)
        sides = [fold.rows(split) for split in ("train", "validation", "test")]
        for of in (speaker, recording):
            sets = [set(of[rows].tolist()) for rows in sides]
            assert sum(map(len, sets)) == len(set().union(*sets))
        tested += sorted(set(speaker[sides[2]].tolist()))
    assert sorted(tested) == [0, 1, 2, 3]


def test_all_but_split_and_scale_is_the_stores(made):
    store, fold = made.store, fold_of(made.store, 2)
    assert (fold.name, fold.design, fold.base.path) == ("gsc@2", DESIGN, store.path)
    assert (len(fold), fold.shape, fold.classes) == (len(store), store.shape, store.classes)
    assert (fold.recipe, fold.main_label) == (store.recipe, store.main_label)
    assert (fold.clip_ids, fold.sources) == (store.clip_ids, store.sources)
    np.testing.assert_array_equal(fold.labels("word"), store.labels("word"))
    every = [store, *map(FeatureStore, made.folds)]
    assert len({each.fingerprint for each in every}) == 5
    assert fold.levels.silence == pytest.approx(-fold.mean / fold.std)
    assert list(verify_group(Folder(fold.path))) == []


@pytest.mark.parametrize("name", ["gsc", "half"])
def test_features_are_the_stores_at_the_folds_own_scale(name, made, half):
    base = made.store if name == "gsc" else half
    fold, stored = fold_of(base, 3), base.features.read()
    magnitudes = stored.astype(np.float64) * base.std + base.mean
    train = magnitudes[fold.split == 0]
    assert fold.mean == pytest.approx(train.mean(), rel=1e-12)
    assert fold.std == pytest.approx(train.std(), rel=1e-9)
    assert abs(fold.std / base.std - 1) > 0.01  # or this shows nothing

    scale = np.float32(base.std / fold.std)
    shift = np.float32((base.mean - fold.mean) / fold.std)
    want = stored.astype(np.float32) * scale + shift
    got = fold.features.read()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)
    exact = (magnitudes - fold.mean) / fold.std
    np.testing.assert_allclose(got, exact, rtol=0, atol=4 * EPS * np.abs(exact).max())  # seen: 1


@pytest.mark.parametrize("name", ["gsc", "half"])
def test_every_way_to_read_gives_the_same_numbers(name, made, half):
    fold = fold_of(made.store if name == "gsc" else half, 3)
    array, want = fold.features, fold.features.read()
    rows = np.array([30, 0, 7, 7])
    assert (array.shape, array.spec.shape, len(array)) == (want.shape, want.shape, len(want))
    assert array.spec.dtype == "float32"
    np.testing.assert_array_equal(array.take(rows), want[rows])
    np.testing.assert_array_equal(array.read_span(slice(5, 11)), want[5:11])
    out = np.empty((4, 2, *fold.shape), np.float32)
    array.gather(rows, out[:, 1])  # not contiguous
    np.testing.assert_array_equal(out[:, 1], want[rows])
    wide = np.empty((4, *fold.shape))
    assert array.take(rows, out=wide) is wide
    np.testing.assert_array_equal(wide, want[rows])
    chunks = np.concatenate([array.chunk(i) for i in range(array.spec.chunks)])
    np.testing.assert_array_equal(chunks[: len(want)], want)
    array.hold()
    assert array.look() == array.look(slice(0, 4)) == []


def test_a_teacher_hears_nothing_but_the_training_recordings_of_its_fold(copied):
    fold = fold_of(copied, 1)
    path = make_teacher_view(fold, "speaker", seed=0)
    assert path.name == "gsc@1-speaker.zarr"
    view = FeatureStore(path)
    assert (view.main_label, view.design, view.base.name) == ("speaker", "teacher:speaker", "gsc")
    np.testing.assert_array_equal(view.split >= 0, fold.split == 0)
    assert not len(view.rows("test"))
    heard = [view.rows("train"), view.rows("validation")]
    assert not {view.sources[i] for i in heard[0]} & {view.sources[i] for i in heard[1]}
    train = copied.features.read()[heard[0]].astype(np.float64) * copied.std + copied.mean
    assert (view.mean, view.std) == pytest.approx((train.mean(), train.std()))
    before = bytes_of(path)
    assert make_teacher_view(fold, "speaker", seed=0) == path
    assert bytes_of(path) == before
    assert make_teacher_view(copied, "word", seed=0).name == "gsc@word.zarr"
    with pytest.raises(InputError, match="no label 'pitch'"):
        make_teacher_view(fold, "pitch", seed=0)


def test_segments_that_no_split_has_are_not_counted(copied):
    view = FeatureStore(make_teacher_view(fold_of(copied, 1), "speaker", seed=0))
    counted = summarise(view, "word")
    assert sum(map(sum, counted.classes.values())) == (view.split >= 0).sum() < len(view)
    assert [group.of for group in counted.groups] == ["speaker"]


def test_the_same_design_is_left_alone_and_another_replaces_it(copied):
    features = copied.path.parent
    before = bytes_of(features)
    make_folds(FeatureStore(copied.path), "kfold:speaker:04", seed=0)
    assert bytes_of(features) == before
    made = make_folds(copied, "confounded:word:speaker", seed=0)
    assert [path.name for path in made] == ["gsc@0.zarr", "gsc@1.zarr"]
    assert FeatureStore(made[1]).design == "confounded:word:speaker"
    other = [FeatureStore(path).fingerprint for path in made]
    make_folds(copied, "confounded:word:speaker", seed=1)
    assert other != [FeatureStore(path).fingerprint for path in made]
    make_folds(copied, DESIGN, seed=0)
    assert bytes_of(features) == before


def test_a_damaged_fold_is_refused_and_made_again(copied):
    fold = copied.path.with_name("gsc@2.zarr")
    before = bytes_of(fold)
    flip(fold / "split" / "c" / "0", 3)
    assert list(verify_group(Folder(fold)))
    with pytest.raises(DamagedError, match=r"gsc@2\.zarr/split"):
        _ = FeatureStore(fold).split
    make_folds(copied, DESIGN, seed=0)
    assert bytes_of(fold) == before


def test_a_fold_whose_store_is_missing_or_another_is_stale(copied, home):
    fold = copied.path.with_name("gsc@1.zarr")
    aside = copied.path.rename(copied.path.with_name("aside"))
    with pytest.raises(StaleError, match=r"gsc@1\.zarr: is a fold of a store: .*no feature store"):
        FeatureStore(fold)
    prepare_gsc(home, copied.path, seed=3)
    with pytest.raises(StaleError, match=r"with the fingerprint \w{12}, which now has \w{12}"):
        FeatureStore(fold)
    shutil.rmtree(copied.path)
    aside.rename(copied.path)
    assert FeatureStore(fold).base.fingerprint == copied.fingerprint
    flip(copied.path / "split" / "zarr.json", 20)
    with pytest.raises(DamagedError, match=r"gsc\.zarr/split/zarr\.json"):
        FeatureStore(fold)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("mean", 0.0, "does not match its fingerprint"),
        ("std", "wide", "could not convert string to float"),
        ("fold", 3, "does not say what it is a fold of"),
        ("fold/number", None, "does not say what it is a fold of"),
        ("fold/of", "../gsc.zarr", "does not say what it is a fold of"),
        ("fold/of", "..", "does not say what it is a fold of"),
        ("fold/of", "", "does not say what it is a fold of"),
        ("fold/of", "gsc@1.zarr", "which is a fold itself"),
        ("fold/of", "gsc@0.zarr", "which is a fold itself"),
        ("fold/of", "none.zarr", "no feature store"),
        ("format_version", 3, "reads up to 2"),
    ],
    ids=str,
)
def test_a_fold_that_says_something_else_is_refused(field, value, match, copied):
    def change(root):
        group, _, inner = field.rpartition("/")
        (root[group] if group else root)[inner] = value

    fold = copied.path.with_name("gsc@1.zarr")
    edit_store(fold, change)
    with pytest.raises(StoredDataError, match=match):
        FeatureStore(fold)


def test_a_fold_is_no_store_to_make_folds_of(made):
    with pytest.raises(InputError, match=r"gsc@0\.zarr: is a fold of gsc; make folds of that"):
        make_folds(fold_of(made.store, 0), DESIGN, seed=0)


def test_an_antigram_of_version_1_refuses_stores_and_folds_by_their_version(made, monkeypatch):
    monkeypatch.setattr(stores, "VERSION", 1)
    for path in (made.store.path, made.folds[0]):
        with pytest.raises(StoredDataError, match=r"written by format version 2, .* up to 1"):
            FeatureStore(path)


def test_a_command_that_is_told_no_store_takes_none_of_the_folds(copied):
    assert Workspace(copied.path.parent.parent).store(None, lambda _: None) == copied.path


def test_silent_training_segments_give_no_scale(copied, monkeypatch):
    def silent(features, wanted):
        return np.zeros((2, len(features)))

    monkeypatch.setattr(module, "_sums", silent)
    shutil.rmtree(copied.path.with_name("gsc@1.zarr"))
    with pytest.raises(InputError, match="almost silent"):
        make_folds(copied, DESIGN, seed=0)


SCRIPT = """
import os, signal, sys
from pathlib import Path
from antigram.pipeline.features.folds import make_folds
from antigram.pipeline.features.store import FeatureStore

path, place = Path(sys.argv[1]), sys.argv[2]

def die(event, details):
    if event == "os.rename" and str(details[1]).endswith(place):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
make_folds(FeatureStore(path), "kfold:speaker:4", seed=0)
"""


@pytest.mark.parametrize("place", ["/gsc@2.zarr", "/.gsc@1.zarr.partial/store/split/zarr.json"])
def test_killed_between_two_folds_the_next_call_ends_in_the_same_bytes(place, copied):
    features = copied.path.parent
    before = bytes_of(features)
    for number in range(4):
        shutil.rmtree(features / f"gsc@{number}.zarr")
    script = features.parent / "run.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, copied.path, place],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (features / "gsc@0.zarr").is_dir()
    assert not (features / "gsc@2.zarr").exists()
    make_folds(copied, DESIGN, seed=0)
    assert bytes_of(features) == before
    assert names_in(features) == ["gsc.zarr", *(f"gsc@{number}.zarr" for number in range(4))]


def test_two_that_make_the_same_folds_do_not_disturb_each_other(copied, monkeypatch):
    """The second finds the fold locked, waits, and finds it made."""
    fold = copied.path.with_name("gsc@3.zarr")
    aside = fold.rename(copied.path.parent.parent / "gsc@3.zarr")
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 1:
            aside.rename(fold)
            holding.__exit__(None, None, None)

    holding = locked(fold, "making")
    holding.__enter__()
    monkeypatch.setattr(time, "sleep", sleep)
    before = bytes_of(aside)
    make_folds(copied, DESIGN, seed=0)
    assert len(waits) == 1
    assert bytes_of(fold) == before


def test_segments_whose_group_is_not_known_are_in_no_split(home, tmp_path):
    """A table without the speaker of some recordings, as of one's own corpus."""
    from antigram.pipeline.corpora import CORPORA
    from antigram.pipeline.features.preparation import prepare
    from antigram.pipeline.features.recipe import Recipe

    own = tmp_path / "own"
    lines = ["file_name,word,speaker"]
    for n in range(24):
        corpus_trees.wav(own / f"{n:02d}.wav", corpus_trees.sound(n))
        lines.append(f"{n:02d}.wav,{'ab'[n // 12]},{'' if n % 6 == 5 else f's{n % 6}'}")
    (own / "metadata.csv").write_text("\n".join(lines) + "\n")
    recipe = Recipe(corpus="folder", longer="segment", split="kfold:speaker:5")
    made = prepare(CORPORA["folder"], own, recipe, tmp_path / "features" / "own.zarr")
    unknown = made.store.labels("speaker") == -1
    assert unknown.sum() == 4
    for path in (made.store.path, *made.folds):
        np.testing.assert_array_equal(FeatureStore(path).split == -1, unknown)
    assert sum(made.to_json()["clips"].values()) == 20
    document = json.loads((made.store.path / "zarr.json").read_text())
    assert document["attributes"]["antigram"]["format_version"] == 2
