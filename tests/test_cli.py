"""The command line as a user types it: fields of the JSON, names, defaults, exit codes."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from antigram import cli
from antigram.model.training.checkpoint import save_tensors
from antigram.pipeline.features.folds import make_teacher_view
from antigram.pipeline.features.store import FeatureStore
from tests.support.shell import TINY

ROOT = Path(__file__).resolve().parents[1]


def test_the_chain_gives_the_fields_that_are_promised(shell, audio):
    store = shell.json("prepare", "folder", "--source", audio, "--name", "tones")
    assert store["name"] == "tones"
    assert sum(store["clips"].values()) == 30
    assert store["shape"] == [126, 129]
    assert store["classes"] == {"label": ["high", "low", "middle"]}
    promised = {"store", "fingerprint", "mean", "std", "rejected", "skipped", "seconds"}
    assert promised | {"clips_per_second"} <= set(store)
    assert Path(store["store"]) == Path("workspace/features/tones.zarr")

    first = shell.json("train", "--mode", "baseline", *TINY, "--save", "net.pt")
    assert Path(first["run"]) == Path("workspace/runs/baseline-tones-seed0")
    assert set(first["accuracy"]) == {"train", "validation", "test"}
    grams = shell.json("cache-grams", "--ckpt", "net.pt", "--layer", "3", "--layer", 5)
    assert grams["name"] == "tones--net"
    assert (grams["clips"], grams["computed"]) == (30, 30)
    assert grams["layers"]["3"]["codec"] == "packed"
    assert grams["layers"]["3"]["channels"] == 4
    assert grams["layers"]["3"]["bytes_per_clip"] == 2 * 4 * 5 // 2 + 8

    second = shell.json("train", "--mode", "cached", "--epochs", 1)
    assert (second["layers"], second["mode"], second["beta"]) == ([3, 5], "cached", 1.0)
    scores = shell.json("evaluate", "--ckpt", "net.pt")
    assert scores["accuracy"] == pytest.approx(first["accuracy"]["test"])
    assert np.sum(scores["confusion"]) == store["clips"]["test"]
    said = shell.json("predict", "--ckpt", "net.pt", audio / "low" / "0.wav")["predictions"]
    assert said[0]["start_s"] == 0
    assert sum(said[0]["probabilities"].values()) == pytest.approx(1)
    assert said[0]["label"] == max(said[0]["probabilities"], key=said[0]["probabilities"].get)
    assert shell.json("verify")["ok"] is True
    there = shell.json("status")
    assert [m["name"] for m in there["stores"]] == ["tones"]
    assert there["caches"][0]["store"] == "tones"
    assert len(there["runs"]) == 2


def test_folds_are_prepared_trained_on_cached_and_verified_like_stores(shell, audio):
    home = Path("spoken")
    lines = ["file_name,word,speaker"]
    for number, path in enumerate(sorted(audio.rglob("*.wav"))):
        target = home / f"{number:02d}.wav"
        home.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
        os.utime(target, (1e9, 1e9))
        lines.append(f"{target.name},{path.parent.name},s{number % 5}")
    (home / "metadata.csv").write_text("\n".join(lines) + "\n")
    command = ("prepare", "folder", "--source", home, "--main-label", "word", "--name", "own")
    store = shell.json(*command, "--split", "kfold:speaker:5")
    assert [Path(path).name for path in store["folds"]] == [f"own@{k}.zarr" for k in range(5)]
    assert store["clips"] == {"train": 18, "validation": 6, "test": 6}

    fold = FeatureStore("workspace/features/own@1.zarr")
    view = make_teacher_view(fold, "speaker", seed=0).stem
    teacher = shell.json("train", "--mode", "baseline", "--data", view, *TINY, "--save", "net.pt")
    assert (teacher["task"], teacher["accuracy"]["test"]) == ("speaker", None)
    grams = shell.json("cache-grams", "--ckpt", "net.pt", "--data", "own@1", "--layer", 3)
    assert (grams["name"], grams["clips"]) == ("own@1--net", 30)
    at = shell.json(
        "train", "--mode", "cached", "--data", "own@1", "--epochs", 1, "--save", "at.pt"
    )
    assert (at["data"], Path(at["run"]).name) == ("own@1", "cached-own@1-seed0")
    assert at["features"] == fold.fingerprint
    scores = shell.json("evaluate", "--ckpt", "at.pt", "--data", "own@1")
    assert scores["accuracy"] == pytest.approx(at["accuracy"]["test"])
    recomputed = ("own@1--net", "--recompute", 30, "--ckpt", "net.pt", "--data", "own@1")
    assert shell.json("verify", *recomputed)["ok"] is True
    checked = shell.json("verify", "own@1")["checked"]
    assert [Path(path).name for path in checked] == ["own@1.zarr", "own.zarr"]
    assert shell.json("verify")["ok"] is True
    stores = {entry["name"]: entry for entry in shell.json("status")["stores"]}
    assert {entry["fold_of"] for name, entry in stores.items() if name != "own"} == {"own"}
    within = ("--within", "own@2", "--split", "confounded:word:speaker", "--name", "inner")
    assert len(shell.json(*command[:-2], *within)["folds"]) == 2

    shell.refused(2, "own@1.zarr: is a fold", "export", "own@1", "--to", "own.h5")
    shell.refused(2, "names with @ belong to folds", *command, "--name", "own@9")
    shell.refused(2, "5 groups for 6 folds", *command, "--split", "kfold:speaker:6")
    shell.refused(2, "no label 'singer'", *command, "--split", "confounded:word:singer")
    Path("workspace/features/own.zarr").rename("aside.zarr")
    train = ("train", "--mode", "baseline")
    shell.refused(3, "own@1.zarr: is a fold of a store", *train, "--data", "own@1")


def test_a_plan_tells_costs_of_all_modes_and_makes_nothing(chain):
    before = sorted(Path("workspace").rglob("*"))
    found = chain.json("plan", "--ckpt", "net.pt", "--layer", 3, "--layer", 8, "--nets", 2)
    assert (found["store"], found["nets"], found["batch_clips"]) == ("tones", 2, 13)
    assert list(found["layers"]) == ["3", "8"]
    layer = found["layers"]["3"]
    assert layer["cache"]["bytes"] == 2 * 30 * layer["cache"]["bytes_per_clip"]
    assert layer["cache"]["bytes_per_clip"] == 2 * 4 * 5 // 2 + 8  # as the cache that is there
    for arm in ("cached", "online", "released"):
        assert layer[arm]["memory"] > found["baseline"]["memory"] > 0
        assert layer[arm]["flops"] > found["baseline"]["flops"] > 0
    code, out, _ = chain("plan", "--ckpt", "net.pt", "--layer", 3)
    assert code == 0
    assert "layer 3: a cache of packed float16" in out
    assert sorted(Path("workspace").rglob("*")) == before
    chain.refused(2, "give a --rank", "plan", "--layer", 3, "--codec", "lowrank")
    chain.refused(2, "vgg11", "plan", "--ckpt", "net.pt", "--layer", 9)
    chain.refused(2, "tones", "plan", "--layer", 3, "--task", "pitch")
    chain.refused(2, "no such file", "plan", "--layer", 3, "--ckpt", "none.pt")


def test_a_trainings_line_has_chance_and_majority_beside_each_accuracy(chain):
    code, out, _ = chain("train", "--mode", "baseline", *TINY)
    assert code == 0
    for split in ("train", "validation", "test"):
        assert re.search(rf"{split} 0\.\d+ \(chance 0\.333, majority 0\.\d+\)", out)
    assert "test 0." in chain.json("status")["runs"][0]["summary"]
    assert "(chance 0.333" in chain.json("status")["runs"][0]["summary"]


def test_a_teacher_that_learned_nothing_is_warned_of_wherever_it_is_used(chain):
    poor = chain.json("train", "--mode", "baseline", *TINY, "--lr", 1e-30, "--save", "poor.pt")
    assert any("not above chance" in note for note in poor["notes"])
    known = {**torch.load("poor.pt", weights_only=True), "scores": {}}
    save_tensors(Path("silent.pt"), {key: known[key] for key in known if key != "digest"})
    quick = ("--epochs", 1, "--max-steps", 1)
    uses = [
        ("cache-grams", "--layer", 3, "--ckpt"),
        ("train", "--mode", "online", "--layer", 3, *quick, "--ckpt"),
        ("train", "--mode", "wi", *quick, "--ckpt"),
        ("train", "--mode", "frozen", "--layer", 3, *quick, "--ckpt"),
        ("train", "--mode", "baseline", *TINY, *quick, "--init"),
    ]
    for use in uses:
        code, _, err = chain(*use, "poor.pt")
        assert (code, err.count("warning: poor.pt: by its own scores")) == (0, 1), err
    for use in uses[:2]:
        code, _, err = chain(*use, "silent.pt")
        assert (code, "warning" in err) == (0, False), err


def test_a_second_run_is_numbered_and_a_named_one_never_overwritten(chain):
    again = chain.json("train", "--mode", "baseline", *TINY)
    assert Path(again["run"]).name == "baseline-tones-seed0-2"
    chain.json("train", "--mode", "baseline", *TINY, "--name", "mine")
    chain.refused(
        2, "a run of this name exists", "train", "--mode", "baseline", *TINY, "--name", "mine"
    )


def test_what_is_there_is_left_alone(chain, audio):
    before = {p: p.read_bytes() for p in Path("workspace").rglob("*") if p.is_file()}
    code, _, err = chain("prepare", "folder", "--source", audio, "--name", "tones")
    assert code == 0
    assert "nothing to do" in err
    assert chain.json("cache-grams", "--ckpt", "net.pt", "--layer", 3)["computed"] == 0
    assert {p: p.read_bytes() for p in Path("workspace").rglob("*") if p.is_file()} == before


def test_several_caches_go_by_their_names_or_by_those_of_their_nets(chain):
    chain.json("train", "--mode", "baseline", *TINY, "--seed", 5, "--save", "other.pt")
    chain.json("cache-grams", "--ckpt", "other.pt", "--layer", 3, "--layer", 5)
    chain.json("cache-grams", "--ckpt", "other.pt", "--layer", 3, "--name", "again")
    two = ["--cache", "tones--net", "--cache", "tones--other", "--epochs", 1]
    train = ("train", "--mode", "cached", "--layer", "net:3")
    done = chain.json(*train, *two, "--layer", "tones--other:5", "--beta", "other:0.5")
    assert done["layers"] == [3, 5]
    assert done["beta"] == {"tones--other": 0.5}  # the rest has the usual 1
    unknown = ("--layer", "third:5")
    chain.refused(2, "no source is called 'third'", *train, *two, "--layer", "other:5", *unknown)
    both = [*two, "--cache", "again", "--layer", "tones--other:5"]
    # Two caches of one net: its name says too little.
    chain.refused(2, "no source is called 'other'", *train, *both, "--layer", "other:3")


def test_json_is_also_taken_behind_the_command(chain):
    code, out, _ = chain("status", "--json")
    assert code == 0
    assert json.loads(out)["stores"]


def test_a_store_prepared_with_another_seed_makes_the_cache_stale(chain, audio):
    chain.json("prepare", "folder", "--source", audio, "--name", "tones", "--seed", 1)
    chain.refused(3, "built with features", "train", "--mode", "cached", "--epochs", 1)
    code, out, _ = chain("--json", "verify")
    assert code == 3
    assert any("stale" in problem["problem"] for problem in json.loads(out)["problems"])


def test_another_width_than_the_cache_is_refused(chain):
    chain.refused(2, "width 2", "train", "--mode", "cached", "--width", 2)


def test_a_flipped_bit_stops_training_and_is_found(chain):
    chunk = Path("workspace/grams/tones--net.zarr/layer03/gram/c/0/0")
    raw = bytearray(chunk.read_bytes())
    raw[11] ^= 4
    chunk.write_bytes(raw)
    chain.refused(3, "gram/c/0/0", "train", "--mode", "cached", "--epochs", 1)
    code, out, _ = chain("--json", "verify")
    assert code == 3
    assert [Path(p["path"]).name for p in json.loads(out)["problems"]] == ["0"]


def test_resume_goes_on_with_the_run(chain):
    whole = chain.json("train", "--mode", "cached", "--epochs", 2, "--name", "whole")
    half = ("train", "--mode", "cached", "--name", "half")
    chain.json(*half, "--epochs", 1, "--keep-resume")
    half = chain.json(*half, "--epochs", 2, "--resume")
    keys = ("epochs", "steps", "best_epoch", "accuracy")
    assert [half[k] for k in keys] == [whole[k] for k in keys]


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(chain):
    Path("evil.pt").write_bytes(pickle.dumps(Touch(Path("owned").absolute())))
    chain.refused(2, "evil.pt", "cache-grams", "--ckpt", "evil.pt", "--layer", 3)
    assert not Path("owned").exists()


def test_a_text_file_is_no_checkpoint(chain):
    Path("text.pt").write_text("hello\n")
    chain.refused(2, "text.pt: not a checkpoint", "train", "--mode", "wi", "--ckpt", "text.pt")


@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("no corpus is called 'nosuch'", ["prepare", "nosuch"]),
        ("no such corpus in nowhere", ["prepare", "gsc", "--source", "nowhere"]),
        ("no feature store yet", ["train", "--mode", "baseline"]),
        ("'--mode': 'odd' is not one of 'baseline'", ["train", "--mode", "odd"]),
        ("needs the teacher", ["train", "--mode", "online", "--layer", "5"]),
        ("'loud' is not one of 'none', 'low', 'high'", ["prepare", "fsdd", "--noise", "loud"]),
        ("by:LABEL", ["prepare", "fsdd", "--split", "half"]),
        ("not a valid float", ["train", "--mode", "baseline", "--lr", "much"]),
        ("No such command", ["paint"]),
        ("no such file", ["cache-grams", "--ckpt", "none.pt", "--layer", "5"]),
        (
            "'8' is not one of '32', 'tf32', 'bf16'",
            ["cache-grams", "--ckpt", "n.pt", "--layer", "5", "--precision", "8"],
        ),
        ("no store, cache or run", ["verify", "nothing"]),
        ("has no such option", ["prepare", "fsdd", "--words", "all"]),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(shell, match, arguments):
    shell.refused(2, match, *arguments)


def test_a_file_that_cannot_be_written_or_read_is_said_before_any_work(chain):
    """A rename to a device or a pipe takes it away: from every program of the machine."""
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    before = set(Path().rglob("*"))
    long, just_too_long = "a" * 300, "b" * 250
    goals = (
        ("pipe", "is a device or a pipe; wanted the name of a file"),
        ("loop", "loop: Too many levels of symbolic links"),
        (long, "File name too long"),
        (just_too_long, "File name too long"),  # with what is added while it is written
        ("net.pt/x.h5", "there is no folder"),
        ("loop/x.h5", "there is no folder"),
    )
    for name, match in goals:
        chain.refused(2, match, "train", "--mode", "baseline", *TINY, "--save", name)
    Path("pipe").rename("pipe.h5")
    chain.refused(2, "is a device or a pipe", "export", "tones", "--to", "pipe.h5")
    Path("pipe.h5").rename("pipe")
    for name in ("loop", "loop/x.pt", "net.pt/x.pt", "pipe", ".", long):
        for command in (("evaluate",), ("cache-grams", "--layer", 3)):
            chain.refused(2, name, *command, "--ckpt", name)
    assert Path("pipe").is_fifo()
    assert Path("loop").is_symlink()
    assert set(Path().rglob("*")) == before


def test_wrong_options_of_a_training_are_said_before_anything_is_made(chain):
    train, online = ("train", "--mode", "baseline"), ("train", "--mode", "online", "--ckpt")
    Path("folder").mkdir()
    chain.refused(2, "--save folder: is a folder", *train, "--save", "folder")
    chain.refused(2, "'--device-memory': inf is not in the range", *train, "--device-memory", "inf")
    chain.refused(2, "'--seed': -1 is not in the range", *train, "--seed", -1)
    chain.refused(2, "width", *train, "--width", 0)
    released = (*online, "net.pt", "--layer", 3, "--loss", "released")
    chain.refused(2, "a Gram and a similarity of its own", *released, "--similarity", "mse-sigmoid")
    Path("second.pt").write_bytes(Path("net.pt").read_bytes())
    chain.refused(2, "one teacher", *released, "--ckpt", "second.pt")
    for command in (("cache-grams", "--ckpt", "net.pt", "--dry-run"), ("plan",)):
        chain.refused(
            2,
            "'--aggregation': 'Gram' is not one of",
            *command,
            "--layer",
            3,
            "--aggregation",
            "Gram",
        )
    assert [path.name for path in Path("workspace/runs").glob("[!.]*")] == ["baseline-tones-seed0"]


def test_resuming_a_finished_run_leaves_its_result_alone(chain):
    there = Path("workspace/runs/baseline-tones-seed0/result.json")
    before = there.read_bytes()
    again = chain.json("train", "--mode", "baseline", *TINY, "--resume")
    assert there.read_bytes() == before
    assert again["seconds_per_step"] > 0


def test_a_missing_noise_folder_says_where_it_looked(shell, audio):
    command = ["prepare", "folder", "--source", audio, "--noise", "high"]
    shell.refused(2, "workspace/corpora/ms-snsd", *command)
    shell.refused(2, "no noise recordings", *command, "--noise-source", "nowhere")
    assert not list(Path().rglob("*.zarr"))


def test_an_unusable_clip_stops_the_store_until_it_is_allowed(shell, audio, tmp_path):
    tree = tmp_path / "tree"
    for path in audio.rglob("*.wav"):
        target = tree / path.relative_to(audio)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    bad = tree / "low" / "0.wav"
    bad.write_bytes(bad.read_bytes()[:1000])
    command = ["prepare", "folder", "--source", tree, "--name", "t"]
    shell.refused(2, "low/0.wav: truncated", *command)
    assert not Path("workspace/features/t.zarr").exists()
    done = shell.json(*command, "--max-rejected", 1)
    assert [r["source"] for r in done["rejected"]] == ["low/0.wav"]
    assert sum(done["clips"].values()) == 29


def test_a_defect_of_ours_keeps_its_traceback(shell, monkeypatch):
    def broken(*_):
        raise RuntimeError("ours")

    monkeypatch.setattr("antigram.studies.preparing.find_corpus", broken)
    monkeypatch.setattr(sys, "argv", ["antigram", "prepare", "gsc"])
    with pytest.raises(RuntimeError, match="ours"):
        cli.main()


def test_an_interrupt_says_how_to_go_on(shell, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("antigram.studies.preparing.find_corpus", stopped)
    code, _, err = shell("prepare", "gsc")
    assert code == 130
    assert "again to continue" in err


def test_it_runs_as_a_script_from_another_folder(tmp_path, audio):
    done = subprocess.run(
        [sys.executable, ROOT / "cli.py", "--json", "prepare", "folder", "--source", audio],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("ANTIGRAM")},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "folder"
    assert (tmp_path / "workspace" / "features" / "folder.zarr").is_dir()
