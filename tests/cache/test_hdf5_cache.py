"""A cache in one HDF5 file is read as its folder is; and the commands that make and check one."""

import json
import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from antigram.cache.build import build_cache
from antigram.cache.grams import GramCache
from antigram.cache.layer import CacheLayer, layers_of
from antigram.cache.plan import plan_layers
from antigram.model.loss.sources import TapSpec
from antigram.model.training.batches import Batches
from antigram.model.training.config import TrainConfig
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from antigram.pipeline.errors import DamagedError, InputError, StaleError
from antigram.pipeline.storage.exchange import export_file, import_file
from tests.cache.conftest import ARCH, LAYERS, content_of
from tests.model.tiny import CPU, flip, metrics
from tests.test_cli import Shell

CLIPS = np.array([9, 2, 14, 2, 0, 12])  # of all four chunks, the last of which holds three rows
KINDS = {  # codec, dtype, aggregation
    "packed": ("packed", "float16", "gram"),
    "packed float32": ("packed", "float32", "gram"),
    "factor": ("factor", "float16", "gram"),
    "lowrank": ("lowrank", "float16", "gram"),
    "map": ("map", "float32", "mean"),
}
VALUES = {"packed": "gram", "factor": "factor", "lowrank": "vectors", "map": "map"}


@pytest.fixture
def make(store, teacher, tmp_path):
    """Build a cache of one codec, and export it: ``(folder, file)``."""

    def run(kind="packed", layers=(5, 13)):
        codec, dtype, aggregation = KINDS[kind]
        spec = TapSpec(arch=ARCH, layers=layers, aggregation=aggregation)
        chosen = "auto" if codec == "map" else codec
        rank = 2 if codec == "lowrank" else None
        plans = plan_layers(store, teacher, spec, codec=chosen, dtype=dtype, rank=rank)
        folder, file = tmp_path / "grams" / "whole.zarr", tmp_path / "whole.h5"
        made_from = {"store": store.name, "checkpoint": "frozen"}
        build_cache(store, teacher, plans, folder, made_from=made_from, batch_clips=4, device=CPU)
        export_file(folder, file)
        return folder, file

    return run


def parts_of(rows):
    """Everything of a batch's rows, by layer."""
    return {
        layer: {
            "codec": found.codec,
            "data": found.data,
            "norm": found.norm,
            "row_norm": found.row_norm,
            "energy": found.energy,
        }
        for layer, found in rows.items()
    }


def assert_same(got, want):
    assert got.keys() == want.keys()
    for layer, parts in want.items():
        for name, value in parts.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(got[layer][name], value), f"layer {layer}, {name}"
                assert got[layer][name].dtype == value.dtype
            else:
                assert got[layer][name] == value, f"layer {layer}, {name}"


# --- a file is its folder --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_the_rows_of_its_folder(kind, make, store):
    folder, file = make(kind)
    one, two = GramCache(folder, store), GramCache(file, store)
    assert two.spec == one.spec
    assert two.identity == one.identity
    assert [x.key for x in two.layers.values()] == [x.key for x in one.layers.values()]
    assert [x.describe() for x in two.layers.values()] == [
        x.describe() for x in one.layers.values()
    ]
    for clips in (CLIPS, np.arange(15), np.array([14])):
        want = parts_of(one.read(clips))
        assert {parts["codec"] for parts in want.values()} == {KINDS[kind][0]}
        assert_same(parts_of(two.read(clips)), want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_a_batch_what_its_folder_gives(kind, make, store):
    found = []
    for path in make(kind):
        grams = GramCache(path, store)
        (batch,) = Batches(store, "label", grams, 8, CPU).passes(CLIPS)
        found.append(parts_of(grams.rows(batch.read, batch.x)))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_comes_back_byte_by_byte(kind, make, tmp_path):
    folder, file = make(kind)
    goal = tmp_path / "imported" / "back.zarr"
    assert import_file(file, goal) is True
    assert content_of(goal) == content_of(folder)
    assert import_file(file, goal) is False


def test_the_values_are_plain_to_h5py(make, store):
    folder, file = make("packed")
    want = GramCache(folder, store)
    with h5py.File(file) as opened:
        assert json.loads(opened.attrs["antigram"])["features"] == store.fingerprint
        for number in (5, 13):
            group = opened[f"layer{number:02d}"]
            assert json.loads(group.attrs["antigram"])["key"]["layer"] == number
            found = group["gram"]
            assert found.chunks is None
            assert found.id.get_offset() > 0
            assert found.dtype == np.float16
            np.testing.assert_array_equal(found[...], want.read(np.arange(15))[number].data)
            np.testing.assert_array_equal(group["norm"][...], want.layers[number].norm)


def test_layers_are_found_and_chosen(make, store):
    _, file = make(layers=LAYERS)
    assert layers_of(file) == list(LAYERS)
    assert GramCache(file, store, [13, 1]).spec.layers == (1, 13)
    with pytest.raises(InputError, match=r"whole.h5: layer 4 is not cached \(there: 1, 5, 13\)"):
        GramCache(file, store, [4])


def read_there(payload):
    """In another process: rows of a pickled cache."""
    return pickle.dumps(parts_of(pickle.loads(payload).read(CLIPS)))


def test_a_cache_in_a_file_goes_to_a_spawned_process(make, store):
    grams = GramCache(make("lowrank")[1], store)
    before = pickle.dumps(grams)
    want = parts_of(grams.read(CLIPS))
    payload = pickle.dumps(grams)
    assert len(payload) == len(before)  # no rows travel: they are mapped again over there
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        answer = pool.submit(read_there, payload).result(timeout=240)
    assert_same(pickle.loads(answer), want)


def test_a_training_on_a_file_is_that_on_its_folder(make, store, tmp_path):
    config = TrainConfig(mode="cached", task="label", arch=ARCH, layers=(5, 13), epochs=2)
    found = []
    for path in make():
        folder = tmp_path / f"run{path.suffix}"
        net = build_student(config, 3, None)
        train(net, store, GramCache(path, store), config, folder, device=CPU)
        found.append([(e["epoch"], e["train"], e["validation"]) for e in metrics(folder)])
    assert len(found[0]) == 2
    assert found[1] == found[0]


# --- a file that is damaged or stale ---------------------------------------------------------


def place_of(file, name, byte):
    with h5py.File(file) as opened:
        return opened[name].id.get_offset() + byte


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_of_a_row_is_found_at_first_touch(kind, make, store):
    _, file = make(kind)
    name = VALUES[KINDS[kind][0]]
    row_bytes = CacheLayer(file, 5).values.spec.row_bytes
    flip(file, place_of(file, f"layer05/{name}", 9 * row_bytes))  # row 9: chunk 2 of 4 rows
    grams = GramCache(file, store)
    want = GramCache(file.parent / "grams" / "whole.zarr", store)
    for _ in range(2):
        whole = np.array([0, 7, 14])
        assert_same(parts_of(grams.read(whole)), parts_of(want.read(whole)))
        with pytest.raises(DamagedError, match=rf"whole\.h5/layer05/{name}/c/2.*crc32c"):
            grams.read(np.array([8]))
    assert_same(
        parts_of(GramCache(file, store, [13]).read(CLIPS)), {13: parts_of(want.read(CLIPS))[13]}
    )


@pytest.mark.parametrize("name", ["norm", "row_norm", "energy"])
def test_a_flipped_bit_of_a_norm_is_found_when_it_is_opened(name, make, store):
    _, file = make("lowrank")
    flip(file, place_of(file, f"layer05/{name}", 4 * 14))
    with pytest.raises(DamagedError, match=rf"whole\.h5/layer05/{name}/c/3.*crc32c"):
        GramCache(file, store)


@pytest.mark.parametrize(
    "name",
    ["zarr.json", "manifest/zarr.json", "layer05/zarr.json", "layer05/manifest/zarr.json",
     "layer05/gram/zarr.json"],
)  # fmt: skip
def test_a_flipped_bit_of_a_document_is_found_when_it_is_opened(name, make, store):
    _, file = make()
    with h5py.File(file) as opened:
        size = opened[f"zarr/{name}"].size
    flip(file, place_of(file, f"zarr/{name}", size // 2))
    with pytest.raises((DamagedError, InputError), match=r"whole\.h5"):
        GramCache(file, store)


def test_damage_of_a_file_stops_a_training(make, store, tmp_path):
    _, file = make()
    flip(file, place_of(file, "layer13/gram", 200))
    config = TrainConfig(mode="cached", task="label", arch=ARCH, layers=(5, 13), epochs=1)
    net, grams = build_student(config, 3, None), GramCache(file, store)
    with pytest.raises(DamagedError, match=r"whole\.h5/layer13/gram/c/0"):
        train(net, store, grams, config, tmp_path / "run", device=CPU)


def test_a_layer_that_is_gone_is_no_layer(make, store):
    _, file = make()
    with h5py.File(file, "r+", libver="latest") as opened:
        del opened["layer13"]
    with pytest.raises(DamagedError, match=r"whole\.h5: layer13/norm is \(\)"):
        GramCache(file, store)
    assert GramCache(file, store, [5]).spec.layers == (5,)


def test_a_file_made_from_another_store_is_stale(make, other_store):
    with pytest.raises(StaleError, match=r"whole\.h5.*features"):
        GramCache(make()[1], other_store)


def test_a_file_with_another_tap_than_wanted_is_stale(make, store):
    with pytest.raises(StaleError, match=r"whole\.h5.*tap"):
        GramCache(make()[1], store, wanted={"tap": "conv"})


def test_a_store_in_a_file_is_no_cache(store, tmp_path):
    export_file(store.path, tmp_path / "tiny.h5")
    with pytest.raises(InputError, match="not a Gram cache"):
        GramCache(tmp_path / "tiny.h5", store)


# --- the commands ----------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path, store, build, corpus, capsys, monkeypatch):
    """A workspace with the store ``tiny`` and the cache ``whole``; and the net it is of."""
    at = Shell(tmp_path, capsys, monkeypatch)
    monkeypatch.setenv("ANTIGRAM_WORKSPACE", ".")
    shutil.copytree(store.path, tmp_path / "features" / "tiny.zarr")
    shutil.copy(corpus.parent / "frozen.pt", tmp_path / "net.pt")
    build("whole", layers=(5, 13))
    return at


def everything():
    return {p.as_posix(): p.is_file() and p.read_bytes() for p in Path().rglob("*")}


@pytest.mark.parametrize(
    ("name", "kind", "folder"), [("whole", "cache", "grams"), ("tiny", "store", "features")]
)
def test_export_and_import_give_the_same_folder(name, kind, folder, shell):
    done = shell.json("export", name, "--to", "there.h5")
    path = f"{folder}/{name}.zarr"
    assert done == {
        "file": "there.h5",
        "bytes": Path("there.h5").stat().st_size,
        "exported": path,
    }
    made = shell.json("import", "there.h5")
    assert made == {kind: f"{folder}/there.zarr", "name": "there", "imported": True}
    assert content_of(Path(folder, "there.zarr")) == content_of(Path(path))
    assert shell.json("import", "there.h5", "--name", "there")["imported"] is False
    assert shell.json("import", "there.h5", "--name", name)["imported"] is False
    assert shell.json("verify")["ok"] is True


@pytest.mark.parametrize("data", ["tiny", "tiny.h5"])
def test_training_on_a_file_gives_the_numbers_of_its_folder(data, shell):
    shell.json("export", "whole", "--to", "file.h5")
    shell.json("export", "tiny", "--to", "tiny.h5")
    found = []
    for name, grams, of in (("one", "whole", "tiny"), ("two", "file.h5", data)):
        asked = ["--cache", grams, "--data", of, "--epochs", 1, "--device", "cpu", "--name", name]
        done = shell.json("train", "--mode", "cached", *asked)
        (entry,) = metrics(Path("runs", name))
        found.append((done["accuracy"], done["layers"], entry["train"], entry["validation"]))
    assert found[1] == found[0]
    assert found[0][2]["at"] > 0


def test_the_store_of_a_file_is_found_by_its_content(shell):
    shell.json("export", "whole", "--to", "file.h5")
    asked = ["--mode", "cached", "--cache", "file.h5", "--ckpt", "net.pt", "--device", "cpu"]
    code, _, err = shell("train", *asked, "--epochs", 1)
    assert code == 0, err
    assert "store: tiny (the cache's)" in err


def test_a_damaged_file_ends_a_training_with_3(shell):
    shell.json("export", "whole", "--to", "file.h5")
    flip(Path("file.h5"), place_of("file.h5", "layer05/gram", 0))
    asked = ["--mode", "cached", "--cache", "file.h5", "--data", "tiny", "--device", "cpu"]
    shell.refused(3, "file.h5/layer05/gram/c/0", "train", *asked, "--epochs", 1)
    shell.refused(3, "file.h5/layer05/gram/c/0", "import", "file.h5")
    assert [p.name for p in Path("grams").glob("[!.]*")] == ["whole.zarr"]


@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("no store or cache is called 'none'; there is tiny, whole", "export none --to a.h5"),
        ("wanted a name that ends in .h5", "export whole --to a.hdf5"),
        ("there is no folder", "export whole --to nowhere/a.h5"),
        ("none.h5: no such file", "import none.h5"),
        ("not written by `antigram export`", "import theirs.h5"),
        ("wanted a plain name", "import whole.h5 --name ../up"),
        ("whole.hdf5", "import whole.hdf5"),
        ("net.pt", "import net.pt"),
        ("whole.h5", "export whole.h5 --to a.h5"),
    ],
)
def test_what_cannot_be_exchanged_is_one_line_and_exit_code_2(match, arguments, shell):
    shell.json("export", "whole", "--to", "whole.h5")
    shutil.copy("whole.h5", "whole.hdf5")
    with h5py.File("theirs.h5", "w") as file:
        file["x"] = np.arange(3)
    before = everything()
    shell.refused(2, match, *arguments.split())
    left = set(everything()) - set(before)
    assert all(Path(name).name.endswith(".lock") for name in left), left


def test_a_file_without_its_root_document_is_damage(shell):
    shell.json("export", "whole", "--to", "whole.h5")
    with h5py.File("whole.h5", "r+", libver="latest") as file:
        del file["zarr/zarr.json"]
    shell.refused(3, "whole.h5", "import", "whole.h5")


# --- before anything is computed, and afterwards ---------------------------------------------


def test_a_dry_run_says_what_a_cache_would_take_and_makes_nothing(shell, store):
    before = everything()
    asked = ["--ckpt", "net.pt", "--layer", 1, "--layer", 13, "--device", "cpu"]
    found = shell.json("cache-grams", *asked, "--name", "new", "--dry-run")
    assert everything() == before
    assert found["dry_run"] is True
    assert (found["cache"], found["name"], found["clips"]) == ("grams/new.zarr", "new", 15)
    split = np.bincount(store.split, minlength=3)
    assert found["online_seconds_per_epoch"] == pytest.approx(
        found["seconds"] * (split[0] + split[1]) / 15
    )
    assert list(found["layers"]) == ["1", "13"]
    for layer in found["layers"].values():
        assert layer["break_even_epochs"] == pytest.approx(15 / (split[0] + split[1]))
        assert layer["bytes"] == 15 * layer["bytes_per_clip"]
        assert 0 < layer["seconds"] <= found["seconds"]
    assert found["bytes"] == sum(layer["bytes"] for layer in found["layers"].values())

    built = shell.json("cache-grams", *asked, "--name", "new")
    for number, layer in built["layers"].items():
        for key in ("codec", "dtype", "channels", "positions", "bytes_per_clip"):
            assert found["layers"][number][key] == layer[key], key


def test_a_dry_run_does_not_know_the_size_before_a_pilot(shell):
    asked = ["cache-grams", "--ckpt", "net.pt", "--layer", 5, "--codec", "lowrank", "--dry-run"]
    layer = shell.json(*asked, "--device", "cpu")["layers"]["5"]
    assert (layer["codec"], layer["bytes"], layer["bytes_per_clip"]) == ("lowrank", None, None)
    known = shell.json(*asked, "--rank", 2, "--device", "cpu")["layers"]["5"]
    assert known["bytes_per_clip"] == 2 * 2 * 8 + 12
    code, out, _ = shell(*asked, "--device", "cpu")
    assert code == 0
    assert "layer 5: lowrank float16, size known after a pilot" in out


def test_a_dry_run_refuses_what_a_build_would(shell):
    asked = ["cache-grams", "--ckpt", "net.pt", "--dry-run", "--device", "cpu"]
    shell.refused(2, "--layer", *asked, "--layer", 14)
    shell.refused(
        2, "a.pt: no such file", "cache-grams", "--ckpt", "a.pt", "--layer", 1, "--dry-run"
    )
    shell.refused(2, "--rank 9", *asked, "--layer", 5, "--codec", "lowrank", "--rank", 9)


def test_recompute_without_the_net_is_refused(shell):
    shell.refused(2, "name it with --ckpt", "verify", "--recompute", 3)
    shell.refused(2, "name it with --ckpt", "verify", "whole", "--recompute", 3)


def test_recompute_finds_a_good_cache_good(shell):
    done = shell.json("verify", "whole", "--recompute", 15, "--ckpt", "net.pt", "--device", "cpu")
    assert done == {"ok": True, "problems": [], "checked": ["grams/whole.zarr"]}
    more = shell.json("verify", "--recompute", 99, "--ckpt", "net.pt", "--device", "cpu")
    assert more["ok"] is True
    assert len(more["checked"]) == 2


def test_recompute_with_another_net_is_refused(shell, other_frozen, corpus):
    asked = ["--recompute", 3, "--ckpt", corpus.parent / "other.pt", "--device", "cpu"]
    shell.refused(2, "made from another teacher", "verify", "whole", *asked)


def test_an_imported_cache_is_good_when_it_is_recomputed(shell):
    shell.json("export", "whole", "--to", "back.h5")
    shell.json("import", "back.h5")
    done = shell.json("verify", "back", "--recompute", 15, "--ckpt", "net.pt", "--device", "cpu")
    assert (done["ok"], done["checked"]) == (True, ["grams/back.zarr"])
