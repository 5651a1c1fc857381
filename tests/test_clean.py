"""`antigram clean`, and what `status` says of leftovers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from antigram.pipeline.workspace import locked
from tests.support.files import bytes_of

SPACE = Path("workspace")
STORE, CACHE = SPACE / "features" / "tones.zarr", SPACE / "grams" / "tones--net.zarr"
RUN = SPACE / "runs" / "baseline-tones-seed0"
# Path -> bytes of what is put there.
LEFT = {
    "features/.other.zarr.partial/raw/00000000.f32": 5_000,
    "features/.other.zarr.lock": 0,
    "features/.tones.zarr.old/zarr.json": 30,
    "features/tones.rejected.csv.77.partial": 9,
    "features/tones.zarr/features/zarr.json.77.partial": 11,
    "grams/.tones--net.zarr.trash/layer03/x": 12,
    "grams/.tones--net.zarr.import/zarr.json": 13,
    "grams/tones--net.zarr/.layer03.old/norm/c/0": 14,
    "runs/baseline-tones-seed0/last.pt.4242.partial": 70_000,
    "runs/.baseline-tones-seed0.lock": 0,
    "corpora/.gsc.partial/gsc/one/a.wav": 15,
    "corpora/archives/gsc.tar.gz.partial": 16,
}
# What is named: folders as a whole.
NAMED = {
    str(SPACE / name): size
    for name, size in (
        ("features/.other.zarr.partial", 5_000),
        ("features/.other.zarr.lock", 0),
        ("features/.tones.zarr.old", 30),
        ("features/tones.rejected.csv.77.partial", 9),
        ("features/tones.zarr/features/zarr.json.77.partial", 11),
        ("grams/.tones--net.zarr.trash", 12),
        ("grams/.tones--net.zarr.import", 13),
        ("grams/tones--net.zarr/.layer03.old", 14),
        ("runs/baseline-tones-seed0/last.pt.4242.partial", 70_000),
        ("runs/.baseline-tones-seed0.lock", 0),
        ("corpora/.gsc.partial", 15),
        ("corpora/archives/gsc.tar.gz.partial", 16),
    )
}


@pytest.fixture
def chain(shell, audio):
    """A workspace with a store, and files in the places of a cache and a run."""
    shell.json("prepare", "folder", "--source", audio, "--name", "tones")
    for path in (CACHE / "layer03" / "norm" / "c" / "0", CACHE / "zarr.json", RUN / "last.pt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"of a command that ended")
    return shell


@pytest.fixture
def littered(chain):
    """A workspace with a store, a cache and a run, and what killed commands leave."""
    before = bytes_of(SPACE)
    for name, size in LEFT.items():
        (SPACE / name).parent.mkdir(parents=True, exist_ok=True)
        (SPACE / name).write_bytes(b"x" * size)
    return chain, before


def leftovers(run):
    """What `status` lists of them, beside a cache that is none."""
    code, out, _ = run("--json", "status")
    assert code == 3
    return json.loads(out)["leftovers"]


def as_dict(found):
    return {entry["path"]: entry["bytes"] for entry in found}


def test_what_killed_commands_left_is_listed_and_removed_and_nothing_else(littered):
    run, before = littered
    there = bytes_of(SPACE)
    shown = leftovers(run)
    assert as_dict(shown) == NAMED
    assert all({"name", "summary"} <= set(entry) for entry in shown)
    _, out, _ = run("status")
    assert "  last.pt.4242.partial: a file that was being written; 0.1 MB" in out

    would = run.json("clean", "--dry-run")
    assert as_dict(would["removed"]) == NAMED
    assert bytes_of(SPACE) == there

    done = run.json("clean")
    assert done["removed"] == would["removed"]
    assert (done["restored"], done["busy"]) == ([], [])
    assert bytes_of(SPACE) == before
    assert [p.name for p in SPACE.rglob(".*") if p.name != ".zarr"] == [".tones.zarr.sources"]
    assert run.json("verify", "tones")["ok"] is True
    assert run.json("clean")["removed"] == []
    assert leftovers(run) == []


def test_clean_says_what_and_how_much(littered):
    run, _ = littered
    code, out, _ = run("clean", "--dry-run")
    assert code == 0
    unfinished = SPACE / "features" / ".other.zarr.partial"
    wanted = f"would be removed: {unfinished} (0.0 MB): unfinished work, which the same command"
    assert wanted in out
    assert out.splitlines()[-1] == "12 leftovers, 0.1 MB"
    code, out, _ = run("clean")
    assert f"\nremoved: {unfinished} (0.0 MB): " in f"\n{out}"


def test_what_a_process_works_on_is_left_alone(littered):
    run, _ = littered
    with locked(SPACE / "features" / "other.zarr", "preparing"), locked(RUN, "training"):
        kept = {name for name in NAMED if "other" in name or "baseline" in name}
        assert as_dict(leftovers(run)).keys() == NAMED.keys() - kept
        for more in (["--dry-run"], []):
            done = run.json("clean", *more)
            assert as_dict(done["removed"]).keys() == NAMED.keys() - kept
            assert {Path(p).name for p in done["busy"]} == {"other.zarr", RUN.name}
        assert (SPACE / "features/.other.zarr.partial/raw/00000000.f32").exists()
        assert (RUN / "last.pt.4242.partial").exists()
    assert as_dict(run.json("clean")["removed"]).keys() == {n for n in kept if "lock" not in n}


def test_a_store_that_a_cut_swap_had_put_aside_is_put_back(chain):
    before = bytes_of(SPACE)
    STORE.rename(STORE.with_name(".tones.zarr.old"))
    (CACHE / "layer03").rename(CACHE.with_name(".tones--net.zarr.layer03.old"))
    listed = [entry["summary"] for entry in leftovers(chain)]
    assert all("the only version, which `clean` moves back" in text for text in listed)
    assert len(listed) == 2
    assert chain.json("clean", "--dry-run")["removed"] == []
    done = chain.json("clean")
    assert done["removed"] == []
    assert sorted(done["restored"]) == [str(STORE), str(CACHE / "layer03")]
    assert bytes_of(SPACE) == before


def test_commands_leave_no_lock_behind(chain):
    assert [p.name for p in SPACE.rglob(".*")] == [".tones.zarr.sources"]


def test_an_empty_workspace_is_clean(shell):
    assert shell.json("clean")["removed"] == []
    assert not SPACE.exists()


def test_a_lock_that_goes_while_another_process_opens_it_is_no_lock(tmp_path):
    """Four processes increment a counter under a lock whose file is deleted on each release."""
    (tmp_path / "n").write_text("0")
    code = (
        "import sys, time, pathlib\n"
        "from antigram.pipeline.errors import InputError\n"
        "from antigram.pipeline.workspace import locked\n"
        "count, left = pathlib.Path(sys.argv[1]), 20\n"
        "while left:\n"
        "    try:\n"
        "        with locked(count, 'counting'):\n"
        "            n = int(count.read_text()); time.sleep(0.0005); count.write_text(str(n + 1))\n"
        "            left -= 1\n"
        "    except InputError: pass\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "n"], cwd=Path(__file__).parents[1]
        )
        for _ in range(4)
    ]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert (tmp_path / "n").read_text() == "80"
    assert [p.name for p in tmp_path.iterdir()] == ["n"]
