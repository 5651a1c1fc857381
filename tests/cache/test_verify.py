import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from antigram import cli
from antigram.cache.grams import GramCache
from antigram.model.nets.arch import Arch
from antigram.model.training.config import TrainConfig
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.features.store import FeatureStore
from antigram.studies.verify import kind_of, verify_cache, verify_run, verify_store
from tests.support.files import flip
from tests.support.nets import CPU, VGG16


@pytest.fixture
def copied(store, tmp_path):
    return shutil.copytree(store.path, tmp_path / "features" / "copy.zarr")


@pytest.fixture(scope="session")
def finished(store, tmp_path_factory):
    config = TrainConfig(mode="baseline", task="label", arch=Arch("vgg11", 1), epochs=1)
    run = tmp_path_factory.mktemp("runs") / "finished"
    net = build_student(config, 3, None)
    train(net, store, None, config, run, device=CPU, keep_resume=True)
    return run


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs" / "run")


def files_of(path):
    return sorted(f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file())


def test_what_is_whole_has_no_problem(copied, build, run):
    grams = build().path
    assert not list(verify_store(copied))
    assert not list(verify_cache(grams, [copied]))
    assert not list(verify_run(run))
    assert [kind_of(p) for p in (copied, grams, run)] == ["store", "cache", "run"]


def test_a_verified_sample_is_said_to_be_one(copied, build):
    grams = build().path
    home = copied.parent.parent

    def verify(*options):
        arguments = ["--workspace", str(home), "--json", "verify", str(copied), str(grams)]
        result = CliRunner().invoke(cli.app, [*arguments, *options])
        return result.exit_code, json.loads(result.stdout), result.stderr

    code, content, said = verify("--sample", "3")
    assert (code, content["ok"]) == (0, True)
    assert content["sampled"] == {str(copied): 3, str(grams): 3}
    assert said.count("up to 3 chunks, drawn at random") == 2
    code, content, said = verify()
    assert (code, content["ok"], "sampled" in content) == (0, True, False)
    assert "drawn" not in said
    next(copied.glob("features/c/*/0/0")).unlink()  # no chunk need be read for this
    _, content, _ = verify("--sample", "1")
    assert (content["ok"], [p["problem"] for p in content["problems"]]) == (False, ["missing"])


def test_a_flipped_bit_or_a_deleted_file_of_a_store_is_found_wherever_it_is(copied):
    for name in files_of(copied):
        file, raw = copied / name, (copied / name).read_bytes()
        for place in (0, len(raw) // 2, len(raw) - 1):
            flip(file, place)
            problems = list(verify_store(copied))
            assert problems, f"bit {place} of {name}"
            assert all(str(p.path).startswith(str(copied)) for p in problems)
            file.write_bytes(raw)
        file.write_bytes(raw[:-7])
        assert list(verify_store(copied)), f"{name} truncated"
        file.unlink()
        assert list(verify_store(copied)), f"{name} deleted"
        file.write_bytes(raw)
    assert not list(verify_store(copied))


def test_a_flipped_bit_or_a_deleted_file_of_a_cache_is_found_wherever_it_is(build, store):
    path = build(layers=(5, 13)).path
    for name in files_of(path):
        file, raw = path / name, (path / name).read_bytes()
        for place in (0, len(raw) // 2, len(raw) - 1):
            flip(file, place)
            assert list(verify_cache(path, [store.path])), f"bit {place} of {name}"
        file.write_bytes(raw[:-7])
        assert list(verify_cache(path, [store.path])), f"{name} truncated"
        file.unlink()
        assert list(verify_cache(path, [store.path])), f"{name} deleted"
        file.write_bytes(raw)
    assert not list(verify_cache(path, [store.path]))


def test_swapped_chunks_are_found(build, store):
    path = build(layers=(5,)).path
    one, two = (path / "layer05" / "gram" / "c" / str(n) / "0" for n in (0, 1))
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)
    assert {p.path for p in verify_cache(path, [store.path])} == {one, two}
    grams = GramCache(path, store)
    with pytest.raises(DamagedError, match=r"layer05/gram/c/0/0.*crc32c"):
        grams.read(np.array([0]))


def test_a_problem_names_the_chunk(build, store, copied):
    chunk = build(layers=(5,)).path / "layer05" / "gram" / "c" / "2" / "0"
    flip(chunk, 10)
    (problem,) = verify_cache(chunk.parents[4], [store.path])
    assert problem.path == chunk
    assert "crc32c" in problem.problem
    features = copied / "features" / "c" / "0" / "0" / "0"
    flip(features, 1000)
    (problem,) = verify_store(copied)
    assert problem.path == features


def test_a_cache_that_fits_no_store_is_stale(build, other_store):
    path = build(layers=(5,)).path
    (problem,) = verify_cache(path, [other_store.path])
    assert "stale" in problem.problem
    assert not list(verify_cache(path, []))


def test_a_layer_of_other_features_is_found(build, other_store, store):
    path, other = build(layers=(5,)).path, build("other", of=other_store, layers=(13,)).path
    shutil.copytree(other / "layer13", path / "layer13")
    assert any("features" in p.problem for p in verify_cache(path, [store.path]))


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl"])
def test_a_damaged_file_of_a_run_is_found(name, run):
    flip(run / name, 0)
    assert [p.path for p in verify_run(run)] == [run / name]


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_a_flipped_bit_in_the_weights_of_a_run_is_found(name, run):
    size = (run / name).stat().st_size
    flip(run / name, size // 2)
    assert [p.path for p in verify_run(run)] == [run / name]
    (run / name).write_bytes((run / name).read_bytes()[:-500])
    assert [p.path for p in verify_run(run)] == [run / name]


def test_no_flipped_bit_in_a_checkpoints_directory_ends_in_a_traceback(run):
    raw = (run / "best.pt").read_bytes()
    found = 0
    for place in [*range(60), *range(len(raw) - 150, len(raw))]:
        changed = bytearray(raw)
        changed[place] ^= 1
        (run / "best.pt").write_bytes(changed)
        found += bool(list(verify_run(run)))
    assert found > 40


def test_a_run_without_its_settings_is_a_problem(run):
    (run / "config.json").unlink()
    (problem,) = verify_run(run)
    assert problem.problem.startswith("missing")


def config_of():
    return TrainConfig(mode="cached", task="label", arch=VGG16, layers=(5,), epochs=1)


@pytest.mark.parametrize("name", ["gram/c/1/0", "norm/c/1", "row_norm/c/1"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_of_a_cache_stops_a_training(name, damage, build, store, tmp_path):
    path = build(layers=(5,)).path
    chunk = path / "layer05" / name
    if damage == "flip":
        flip(chunk, 3)
    elif damage == "truncate":
        chunk.write_bytes(chunk.read_bytes()[:-4])
    else:
        chunk.unlink()
    with pytest.raises(DamagedError, match=rf"layer05/{name}.*antigram verify"):
        train(
            build_student(config_of(), 3, None),
            store,
            GramCache(path, store),
            config_of(),
            tmp_path / "run",
            device=CPU,
        )


def test_a_flipped_bit_in_a_layers_metadata_is_never_read_as_something_else(build, store):
    path = build(layers=(5,)).path
    file = path / "layer05" / "zarr.json"
    raw = file.read_bytes()
    want = GramCache(path, store)
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 2
        file.write_bytes(changed)
        try:
            found = GramCache(path, store)
        except (InputError, StoredDataError):
            continue
        assert found.spec == want.spec, raw[max(0, place - 20) : place + 5]
        assert found.layers[5].key == want.layers[5].key, raw[max(0, place - 20) : place + 5]


def test_a_flipped_bit_in_an_arrays_metadata_is_never_read_as_something_else(build, store):
    path = build(layers=(5,)).path
    file = path / "layer05" / "gram" / "zarr.json"
    raw = file.read_bytes()
    want = GramCache(path, store).read(np.arange(15))[5].data.numpy()
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 2
        file.write_bytes(changed)
        try:
            got = GramCache(path, store).read(np.arange(15))[5].data.numpy()
        except (InputError, StoredDataError):
            continue
        np.testing.assert_array_equal(got, want, err_msg=str(raw[max(0, place - 20) : place + 5]))


def test_a_flipped_bit_in_a_stores_metadata_is_never_read_as_something_else(copied):
    before = FeatureStore(copied)
    features, labels = before.features.read(), before.labels("label")
    for name in ("features/zarr.json", "labels/label/zarr.json", "split/zarr.json"):
        file = copied / name
        raw = file.read_bytes()
        for place in range(len(raw)):
            changed = bytearray(raw)
            changed[place] ^= 2
            file.write_bytes(changed)
            where = f"{name}: {raw[max(0, place - 20) : place + 5]!r}"
            try:
                store = FeatureStore(copied)
                got = store.labels("label") if "label" in name else store.split
                if name.startswith("features"):
                    got = store.features.read()
            except (InputError, StoredDataError):
                continue
            want = {"f": features, "l": labels, "s": before.split}[name[0]]
            np.testing.assert_array_equal(got, want, err_msg=where)
        file.write_bytes(raw)


def test_compmul_of_the_negative_input_is_refused(store, teacher, corpus, tmp_path):
    shutil.copytree(store.path, tmp_path / "features" / "tiny.zarr")
    asked = "--layer 1 --tap released --aggregation compmul --data tiny --device cpu".split()
    result = CliRunner().invoke(
        cli.app,
        [
            "--workspace",
            str(tmp_path),
            "cache-grams",
            "--ckpt",
            f"{corpus.parent}/frozen.pt",
            *asked,
        ],
    )
    assert isinstance(result.exception, InputError)
    assert "compmul" in str(result.exception)
