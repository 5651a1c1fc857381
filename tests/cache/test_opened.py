"""A training or a build uses the files that it opened, even if others replace them meanwhile."""

import os
import shutil

import numpy as np
import pytest

import antigram.pipeline.storage.chunks
from antigram.cache.grams import GramCache
from antigram.model.nets.arch import Arch
from antigram.model.training.config import TrainConfig
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from antigram.pipeline.errors import DamagedError, StoredDataError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage import map_limit
from antigram.pipeline.storage.chunks import chunk_key
from antigram.pipeline.storage.exchange import export_file
from antigram.pipeline.storage.mapped import MappedArray
from antigram.pipeline.storage.publish import publish
from antigram.studies.verify import verify_cache, verify_store
from tests.support.files import bytes_of
from tests.support.nets import CPU, LAYERS, VGG16
from tests.support.runs import metrics
from tests.support.stores import make_store

ROW_BYTES = 126 * 129 * 4


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    """Two stores of the same clips, with two rows a chunk and different recipes."""
    home = tmp_path_factory.mktemp("opened")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(antigram.pipeline.storage.chunks, "_TARGET_BYTES", 2 * ROW_BYTES)
        first = make_store(corpus, home / "first.zarr", limit_per_class=4)
        make_store(corpus, home / "second.zarr", limit_per_class=3, seed=1)
    assert first.features.spec.rows == 2
    return home


@pytest.fixture
def own(made, tmp_path):
    shutil.copytree(made / "first.zarr", tmp_path / "own.zarr")
    return FeatureStore(tmp_path / "own.zarr")


@pytest.fixture
def replace(made, own, tmp_path):
    """Replace a store, as another `prepare` of the same name does at its end."""

    def run(goal=own.path, other="second"):
        shutil.copytree(made / f"{other}.zarr", tmp_path / ".new")
        publish(tmp_path / ".new", goal)

    return run


@pytest.fixture
def run(own, tmp_path):
    """Train; ``then`` is called at a step, or with 0 at the end of an epoch."""

    def go(name, grams=None, then=lambda epoch, done: None, epochs=2, said=None, store=own):
        config = TrainConfig(
            mode="cached" if grams else "baseline",
            task="label",
            arch=VGG16 if grams else Arch("vgg11", 1),
            layers=LAYERS if grams else (),
            epochs=epochs,
            batch_clips=1,
        )
        ended = []

        def on_progress(epoch, done, of, known):
            if "loss" not in known:
                ended.append(epoch)
            then(epoch, done if "loss" in known else 0)

        result = train(
            build_student(config, 3, None),
            store,
            grams,
            config,
            tmp_path / name,
            device=CPU,
            on_progress=on_progress,
            on_message=(said if said is not None else []).append,
        )
        assert ended == list(range(1, epochs + 1))
        return result

    return go


def numbers(result, folder):
    kept = ("accuracy", "confusion", "best_epoch", "features")
    seen = [{key: entry[key] for key in ("train", "validation")} for entry in metrics(folder)]
    return {key: result[key] for key in kept}, seen


def overwrite(path):
    raw = path.read_bytes()
    with path.open("r+b") as file:  # the same inode
        file.write(raw[:64][::-1])


def chunk(array, index=0):
    return array.group.path / chunk_key(array.spec, index)


def test_a_training_ends_with_its_result_when_its_store_and_cache_are_replaced(
    run, own, made, replace, build, tmp_path
):
    path = build(of=own).path
    want = numbers(run("want", GramCache(path, own)), tmp_path / "want")
    other = build("other", of=FeatureStore(made / "second.zarr")).path
    said = []

    def then(epoch, done):
        if (epoch, done) == (1, 1):  # most chunks were not read yet
            replace()
            publish(other, path)

    got = numbers(run("got", GramCache(path, own), then, said=said), tmp_path / "got")
    assert got == want
    assert FeatureStore(own.path).fingerprint != own.fingerprint
    features = [line for line in said if line.startswith(f"{own.path}/features: 6 of 6 chunks")]
    assert len(features) == 1  # once, not in each epoch
    assert sum("were replaced" in line for line in said) == 1 + len(LAYERS)


def test_a_training_ends_with_its_result_when_its_exported_store_is_replaced(
    run, own, made, tmp_path
):
    file = tmp_path / "one.h5"
    export_file(own.path, file)
    export_file(made / "second.zarr", tmp_path / "two.h5")
    want = numbers(run("want"), tmp_path / "want")

    def then(epoch, done):
        if (epoch, done) == (1, 1):
            (tmp_path / "two.h5").replace(file)

    got = numbers(run("got", then=then, store=FeatureStore(file)), tmp_path / "got")
    assert got == want


def test_chunks_that_are_too_many_to_map_are_trained_on_with_the_same_numbers(
    run, own, replace, build, tmp_path, monkeypatch
):
    path = build(of=own).path
    want = numbers(run("want", GramCache(path, own)), tmp_path / "want")
    monkeypatch.setattr(map_limit, "most_maps", lambda: 0)
    store = FeatureStore(own.path)
    got = numbers(run("got", GramCache(path, store), store=store), tmp_path / "got")
    assert got == want

    def then(epoch, done):
        if (epoch, done) == (1, 1):
            replace()

    store = FeatureStore(own.path)  # there are no maps that would keep the files
    with pytest.raises(StoredDataError, match="was replaced by another after it was opened"):
        run("replaced", GramCache(path, store), then, store=store)


def test_a_store_that_is_replaced_during_a_build_is_built_from_as_it_was(
    own, replace, build, monkeypatch
):
    want = bytes_of(build("want", of=own, layers=(5,)).path / "layer05")
    spans, read_span = [], MappedArray.read_span

    def read(self, span):
        if self.spec.name == "features":
            spans.append(span)
            if len(spans) == 2:
                replace()
        return read_span(self, span)

    monkeypatch.setattr(MappedArray, "read_span", read)
    got = bytes_of(build("got", of=FeatureStore(own.path), layers=(5,)).path / "layer05")
    assert len(spans) == 3
    assert {n: raw for n, raw in got.items() if "/c/" in n} == {
        n: raw for n, raw in want.items() if "/c/" in n
    }


@pytest.mark.parametrize("of", ["store", "cache"])
def test_a_chunk_overwritten_in_place_ends_a_training_and_is_named(of, run, own, build, tmp_path):
    path = build(of=own).path
    grams = GramCache(path, own)
    file = chunk(own.features if of == "store" else grams.layers[5].values, 1)

    def then(epoch, done):
        if (epoch, done) == (2, 2):
            _ = own.features.read(), grams.layers[5].values.read()  # all chunks were read before
            overwrite(file)

    with pytest.raises(StoredDataError, match=f"{file}: was overwritten in place") as error:
        run("run", grams, then)
    # No epoch that used it was recorded, and `verify` reports what the message says.
    assert len(metrics(tmp_path / "run")) == 1
    found = verify_store(own.path) if of == "store" else verify_cache(path, [own.path])
    assert [problem.path for problem in found] == [file]
    assert "antigram verify" in str(error.value)


def test_a_chunk_overwritten_behind_the_last_epoch_leaves_no_result(run, own, tmp_path):
    file = chunk(own.features, 1)

    def then(epoch, done):
        if (epoch, done) == (2, 0):
            overwrite(file)

    with pytest.raises(DamagedError, match=f"{file}: was overwritten in place"):
        run("run", then=then)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_truncated_chunk_ends_a_training_between_epochs_and_is_named(run, own, tmp_path):
    file = chunk(own.features, 1)

    def then(epoch, done):
        if (epoch, done) == (1, 0):
            os.truncate(file, 100)

    with pytest.raises(DamagedError, match=f"{file}: was overwritten in place.*100 bytes"):
        run("run", then=then)
    assert [problem.path for problem in verify_store(own.path)] == [file]
    assert len(metrics(tmp_path / "run")) == 1


def test_a_chunk_truncated_before_its_first_touch_is_never_read(own):
    own.features.hold()
    os.truncate(chunk(own.features, 3), 0)
    assert len(own.features.take([0, 4])) == 2
    with pytest.raises(DamagedError, match="c/3/0/0: was overwritten in place"):
        own.features.take([6])


def test_files_that_were_touched_are_read_again_and_used_on(run, own, tmp_path):
    want = numbers(run("want"), tmp_path / "want")
    said = []

    def then(epoch, done):
        if (epoch, done) == (1, 2):
            for index in range(own.features.spec.chunks):
                os.utime(chunk(own.features, index))

    store = FeatureStore(own.path)
    got = numbers(run("got", then=then, said=said, store=store), tmp_path / "got")
    assert got == want
    written = [line for line in said if "their content is as it was" in line]
    assert len(written) == 1
    assert written[0].startswith(f"{own.path}/features: 6 of 6 chunks")


def test_a_store_replaced_before_it_is_held_is_said_to_be_replaced_and_not_damaged(own, replace):
    store = FeatureStore(own.path)
    replace()
    with pytest.raises(DamagedError, match="was replaced by another after it was opened"):
        store.features.take(np.arange(len(store)))
    assert not list(verify_store(own.path))
