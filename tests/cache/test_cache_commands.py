"""The commands that estimate, build, exchange and verify a cache."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.support.caches import place_of
from tests.support.files import bytes_of, flip
from tests.support.runs import metrics
from tests.support.shell import Shell


@pytest.fixture
def shell(tmp_path, store, build, corpus, capsys, monkeypatch):
    """A workspace with the store ``tiny`` and the cache ``whole``; and the teacher of the cache."""
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
    assert bytes_of(Path(folder, "there.zarr")) == bytes_of(Path(path))
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
