"""What earlier versions wrote opens, verifies and trains, and comes to the same numbers.

``tests/data/vN`` is a workspace, byte for byte as antigram wrote it at the commit that its
``make.sh`` names; ``answers`` holds what that antigram printed. Tests work on copies.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.shell import Shell

DATA = Path(__file__).parent / "data"
VERSIONS = ("v1", "v2", "v3")
TEACHER = Path("../v1/runs/teacher/best.pt")
CODECS = ("packed", "factor", "lowrank")
STUDENT = ("--arch", "vgg11", "--width", 1, "--batch-size", 2, "--epochs", 1)
STORE = {"v1": "words", "v2": "speakers", "v3": "speakers"}
# The options of the recorded trainings; --resume asks for the same.
CACHED = (
    *("--mode", "cached", "--task", "word", "--cache", "packed", "--layer", 5, "--beta", 0.5),
    *("--batch-size", 2, "--lr", 0.01, "--dropout", 0.1),
)
# Fields that a second call, or a later version, answers otherwise.
VARYING = {"bytes", "summary", "seconds", "clips_per_second", "computed", "sources"}


class Old(Shell):
    """A shell in a copy of one version's workspace, with the other versions beside it."""

    def answer(self, name):
        """What the version that wrote the files printed."""
        return json.loads(Path("answers", f"{name}.json").read_text())

    def repeat(self, name, *command):
        """Give a command that was given when the files were made: it answers as it did."""
        now = self.json(*command)
        check(now, self.answer(name), name)
        return now


def check(now, then, where):
    """All fields there were have the value they had; later versions may have more fields."""
    if isinstance(then, dict):
        for key in then.keys() - VARYING:
            check(now[key], then[key], f"{where} {key}")
    elif isinstance(then, list):
        assert len(now) == len(then), where
        for number, (one, other) in enumerate(zip(now, then, strict=True)):
            check(one, other, f"{where} {number}")
    elif isinstance(then, float):  # of another machine: seen on one machine: 1e-8
        assert now == pytest.approx(then, rel=1e-3, abs=1e-5), where
    else:
        assert now == then, where


@pytest.fixture
def enter(tmp_path, capsys, monkeypatch):
    """``enter("v1")`` copies the files of all versions and opens a shell in one of them."""

    def copy(version):
        for name in VERSIONS:
            shutil.copytree(DATA / name, tmp_path / name)
        for path in tmp_path.glob("*/recordings/**/*.wav"):
            os.utime(path, (1e9, 1e9))  # one that was just written is read again by each `prepare`
        shell = Old(tmp_path / version, capsys, monkeypatch)
        monkeypatch.setenv("ANTIGRAM_WORKSPACE", ".")
        return shell

    return copy


def epochs(run):
    """Entry of each epoch of a run, by number."""
    lines = Path("runs", run, "metrics.jsonl").read_text().splitlines()
    return {entry["epoch"]: entry for entry in map(json.loads, lines)}


def by_name(members):
    return {member["name"]: member for member in members}


def contents(*folders):
    """Bytes of all files but locks."""
    paths = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths if path.suffix != ".lock"}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_files_are_those_that_were_written(version):
    """Neither git nor an editor changed a byte, and nothing is missing."""
    home = DATA / version
    lines = (home / "SHA256SUMS").read_text().splitlines()
    sums = {name.removeprefix("./"): digest for digest, name in map(str.split, lines)}
    paths = {path.relative_to(home).as_posix(): path for path in home.rglob("*") if path.is_file()}
    assert paths.keys() == {*sums, "SHA256SUMS", "make.sh"}
    got = {name: hashlib.sha256(paths[name].read_bytes()).hexdigest() for name in sums}
    assert got == sums


@pytest.mark.parametrize("version", VERSIONS)
def test_old_files_are_intact_and_listed_as_they_were(enter, version):
    old = enter(version)
    old.repeat("verify", "verify")
    assert old.json("verify", *Path().glob("*.h5"), *Path().glob("runs/*/best.pt"))["ok"]
    now, then = old.json("status"), old.answer("status")
    for kind in ("stores", "caches", "runs"):
        assert then[kind]
        check(by_name(now[kind]), by_name(then[kind]), kind)


@pytest.mark.parametrize(
    ("version", "file"),
    [
        ("v1", "features/words.zarr/features/c/0/0/0"),
        ("v1", "grams/packed.zarr/layer05/gram/c/0/0"),
        ("v1", "runs/stopped/last.pt"),
        ("v1", "words.h5"),
        ("v2", "runs/cached/best.pt"),
        ("v2", "runs/cached/metrics.jsonl"),
        ("v3", "features/speakers.zarr/labels/word/c/0"),
        ("v3", "grams/packed.zarr/layer05/scale/c/0/0"),
    ],
)
def test_a_flipped_bit_of_an_old_file_is_damage(enter, version, file):
    old, path = enter(version), Path(file)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    code, out, _ = old("--json", "verify", *Path().glob("*.h5"), *path.parts[1:2])
    assert code == 3
    assert [problem["path"] for problem in json.loads(out)["problems"]] == [file]


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_checkpoint_predicts_as_it_did(enter, version):
    old, checkpoint = enter(version), ("--ckpt", "runs/cached/best.pt")
    evaluate = ("evaluate", "--data", STORE[version], *checkpoint, "--split")
    for split in ("train", "validation", "test"):
        old.repeat(f"evaluate-{split}", *evaluate, split)
    files = [one["file"] for one in old.answer("predict")["predictions"]]
    old.repeat("predict", "predict", *checkpoint, *files)


def test_what_made_an_old_store_or_cache_leaves_it_alone(enter):
    old = enter("v1")
    before = contents("features", "grams")
    quarter = ("--seconds", 0.25, "--overlap", 0)
    words = ("--source", "recordings/words", "--split", "official", "--name", "words")
    old.repeat("words", "prepare", "folder", *quarter, *words)
    noise = ("--noise", "high", "--noise-source", "recordings/noise")
    tones = ("--source", "recordings/tones", "--dtype", "float16", "--max-rejected", 1)
    old.repeat("tones", "prepare", "folder", *quarter, *tones, *noise, "--name", "tones")
    options = {
        "packed": ("--layer", 2),
        "factor": ("--codec", "factor", "--dtype", "float32"),
        "lowrank": ("--codec", "lowrank", "--energy", 0.99),
        "map": ("--aggregation", "mean"),
        "views": ("--views", 2),
    }
    grams = ("cache-grams", "--data", "words", "--ckpt", TEACHER, "--layer", 5)
    for name, own in options.items():
        assert old.repeat(name, *grams, *own, "--name", name)["computed"] == 0
    assert contents("features", "grams") == before


def test_an_old_record_of_recordings_knows_them_again(enter):
    old = enter("v2")
    command = (
        *("prepare", "folder", "--source", "../v1/recordings/words", "--main-label", "speaker"),
        *("--within", "../v1/features/words.zarr", "--seconds", 0.25, "--overlap", 0),
        *("--dtype", "float16", "--name", "speakers"),
    )
    made = old.repeat("speakers", *command)
    assert made["computed"] == 0
    assert made["sources"] == {"known": True, "files": 6, "read": 6, "changed": []}
    edited = Path("../v1/recordings/words/yes_0.wav")
    raw = bytearray(edited.read_bytes())
    raw[-1] ^= 1
    edited.write_bytes(raw)
    again = old.json(*command)
    assert again["computed"] == 6
    assert again["fingerprint"] != made["fingerprint"]


def test_the_old_teacher_makes_the_rows_of_the_old_caches(enter):
    old = enter("v1")
    caches = (*CODECS, "map", "views")
    done = old.json("verify", *caches, "--recompute", 10, "--ckpt", TEACHER)
    assert (done["ok"], len(done["checked"])) == (True, len(caches))


def test_the_old_teacher_makes_the_rows_of_the_old_int8_caches(enter):
    old = enter("v3")
    done = old.json("verify", *CODECS, "--recompute", 6, "--ckpt", TEACHER)
    assert (done["ok"], len(done["checked"])) == (True, len(CODECS))


def test_an_old_export_is_the_store_or_cache_it_was_made_from(enter):
    old = enter("v1")
    for name in ("words", *CODECS):
        old.json("import", f"{name}.h5", "--name", f"{name}-again")
    now = old.json("status")
    stores, caches = by_name(now["stores"]), by_name(now["caches"])
    assert stores["words-again"]["fingerprint"] == old.answer("words")["fingerprint"]
    for codec in CODECS:
        check(caches[f"{codec}-again"]["layers"], old.answer(codec)["layers"], codec)
    assert old.json("verify")["ok"]


def test_old_stores_train_with_and_without_an_old_checkpoint(enter):
    old = enter("v1")
    train = ("train", "--mode", "baseline", *STUDENT)
    for data in ("words", "words.h5", "tones"):
        old.json(*train, "--data", data, "--name", data)
    for key in ("train", "validation"):
        assert epochs("words")[1][key] == epochs("words.h5")[1][key]
    old.json(*train, "--data", "words", "--init", TEACHER, "--name", "begun")
    assert old.json("verify")["ok"]


@pytest.mark.parametrize(
    ("live", "kept", "caches"),
    [
        # What is lost by float16, by nothing but rounding, and by a hundredth of the energy.
        ((), (), {"packed": 2e-3, "packed.h5": 2e-3, "factor": 1e-5, "lowrank": 0.15}),
        pytest.param(("--aggregation", "mean"), (), {"map": 2e-3}, marks=pytest.mark.slow),
        (("--augment", "--views", 2), ("--augment",), {"views": 2e-3}),
    ],
)
def test_a_student_of_an_old_cache_learns_what_its_teacher_teaches(enter, live, kept, caches):
    old = enter("v1")
    train = (
        *("train", "--data", "words", "--layer", 5, "--batch-size", 2, "--dropout", 0),
        *("--epochs", 1),
    )
    old.json(*train, "--mode", "online", "--ckpt", TEACHER, *live)
    want = epochs("online-words-seed0")[1]["train"]
    assert want["at"] > 0.01
    for cache, tolerance in caches.items():
        old.json(*train, "--mode", "cached", "--cache", cache, *kept, "--name", cache)
        got = epochs(cache)[1]["train"]
        assert got["at"] == pytest.approx(want["at"], rel=tolerance), cache
        assert got["ce"] == pytest.approx(want["ce"], rel=1e-2), cache


def test_a_run_of_version_1_that_was_killed_within_an_epoch_ends_as_the_same_run_did(enter):
    old = enter("v1")
    done = old.json("train", *CACHED, "--data", "words", "--name", "stopped", "--resume")
    for key in ("accuracy", "confusion", "epochs", "steps", "best_epoch"):
        check(done[key], old.answer("cached")[key], key)
    for epoch, then in epochs("cached").items():
        for split in ("train", "validation"):
            check(epochs("stopped")[epoch][split], then[split], f"{epoch} {split}")
    assert old.json("verify")["ok"]


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_run_goes_on_for_another_epoch_as_it_would_have_gone_on_then(enter, version):
    old = enter(version)
    command = ("train", *CACHED, "--data", STORE[version], "--name", "cached", "--resume")
    done = old.json(*command, "--epochs", 6)
    for key in ("accuracy", "confusion", "epochs", "steps", "best_epoch"):
        check(done[key], old.answer("longer")[key], key)
    then = json.loads(Path("answers", "longer.jsonl").read_text().splitlines()[5])
    for split in ("train", "validation"):
        check(epochs("cached")[6][split], then[split], split)
    assert old.json("verify")["ok"]
