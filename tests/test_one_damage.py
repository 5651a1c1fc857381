"""One damage has one exit code, whichever command meets it; a path to nothing has another."""

import shutil

import pytest

from tests.support.shell import TINY

STORE, CACHE = "workspace/features/tones.zarr", "workspace/grams/tones--net.zarr"
TRAIN = ["train", "--mode", "baseline", *TINY]
CACHED = ["train", "--mode", "cached", *TINY]
# What opens a store, and a cache; by its name, or as the only one there is.
OF_STORE = [
    [*TRAIN, "--data", "tones"],
    TRAIN,
    CACHED,
    [*CACHED, "--cache", "tones--net"],
    ["evaluate", "--ckpt", "net.pt", "--data", "tones"],
    ["evaluate", "--ckpt", "net.pt"],
    ["cache-grams", "--ckpt", "net.pt", "--layer", "5", "--data", "tones"],
    ["cache-grams", "--ckpt", "net.pt", "--layer", "5"],
    ["plan", "--layer", "3"],
    ["verify", "tones"],
    ["verify"],
    ["status"],
    ["export", "tones", "--to", "tones.h5"],
]
OF_CACHE = [
    [*CACHED, "--cache", "tones--net"],
    CACHED,
    ["verify", "tones--net"],
    ["verify"],
    ["status"],
    ["export", "tones--net", "--to", "grams.h5"],
]


def lose(path):
    path.unlink()


def flip_format(path):
    """One bit of the name of the format, which then is a name like another."""
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"antigram/', b'"antigral/'))


def codes_of(shell, commands):
    found = {}
    for command in commands:
        code, _, err = shell(*command)
        assert "Traceback" not in err, err
        found[" ".join(command)] = code
    return found


@pytest.mark.parametrize("damage", [lose, flip_format])
@pytest.mark.parametrize(("path", "commands"), [(STORE, OF_STORE), (CACHE, OF_CACHE)])
def test_a_lost_or_flipped_root_document_is_damage_wherever_it_is_opened(
    path,
    commands,
    damage,
    chain,
):
    damage(chain.folder / path / "zarr.json")
    assert codes_of(chain, commands) == {" ".join(command): 3 for command in commands}
    assert not (chain.folder / "tones.h5").exists()


def test_an_export_without_its_root_document_is_damage(chain):
    h5py = pytest.importorskip("h5py")
    chain.json("export", "tones", "--to", "tones.h5")
    with h5py.File(chain.folder / "tones.h5", "r+", libver="latest") as file:
        del file["zarr/zarr.json"]
    commands = [[*TRAIN, "--data", "tones.h5"], ["evaluate", "--ckpt", "net.pt", "--data"]]
    commands[1].append("tones.h5")
    commands += [["verify", "tones.h5"], ["import", "tones.h5", "--name", "again"]]
    assert codes_of(chain, commands) == {" ".join(command): 3 for command in commands}


def test_a_path_to_no_store_is_the_users_mistake_wherever_it_is_given(chain):
    (chain.folder / "notes").mkdir()
    (chain.folder / "notes" / "zarr.json").write_text('{"zarr_format": 3, "attributes": {}}')
    commands = [
        [*TRAIN, "--data", "notes"],
        ["evaluate", "--ckpt", "net.pt", "--data", "notes"],
        ["cache-grams", "--ckpt", "net.pt", "--layer", "5", "--data", "notes"],
        [*CACHED, "--cache", "notes"],
        ["verify", "notes"],
        ["export", "notes", "--to", "notes.h5"],
    ]
    assert codes_of(chain, commands) == {" ".join(command): 2 for command in commands}


def test_status_lists_what_is_damaged_beside_what_is_not(chain):
    shutil.copytree(chain.folder / STORE, chain.folder / "workspace/features/other.zarr")
    (chain.folder / STORE / "zarr.json").unlink()
    code, out, _ = chain("status")
    assert code == 3
    assert "tones: unusable: " in out
    assert "zarr.json: missing; make the feature store again" in out
    assert "other: 30 clips of 126 x 129" in out
