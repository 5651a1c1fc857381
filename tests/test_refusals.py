"""A mistake of the user ends at once with one line and an exit code."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from antigram import cli
from antigram.pipeline.errors import InputError
from antigram.pipeline.workspace import Workspace
from antigram.studies.console import Beta, Device, Layer
from antigram.studies.training import train_student

ROOT = Path(__file__).resolve().parents[1]
# Runs a command and says which of the slow packages it has imported.
PROBE = """
import json, sys
from antigram import cli
try:
    cli.main()
finally:
    slow = ("torch", "torchvision", "torchaudio", "scipy", "matplotlib", "zarr")
    print(json.dumps([name for name in slow if name in sys.modules]))
"""


def imported_by(tmp_path, *arguments):
    """Exit code, slow packages imported, and stderr of a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "--workspace", tmp_path / "workspace", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    return done.returncode, set(json.loads(done.stdout.splitlines()[-1])), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--mode", "cachd"],
        ["train", "--mode", "cached", "--bogus"],
        ["train", "--mode", "cached", "--layer", "\u00b2"],
        ["train", "--mode", "cached", "--layer", "emo:0x5"],
        ["train", "--mode", "online", "--ckpt", "x.pt", "--layer", "5", "--beta", "emo:much"],
        ["train", "--mode", "online", "--layer", "5"],  # without --ckpt
        ["train", "--mode", "frozen", "--ckpt", "x.pt"],  # without --layer
        ["train", "--mode", "baseline", "--lr", "nan"],
        ["train", "--mode", "dann"],  # without --against
        ["train", "--mode", "dann", "--task", "word", "--against", "word"],
        ["train", "--mode", "dann", "--against", "speaker", "--ckpt", "x.pt"],
        ["train", "--mode", "dann", "--against", "speaker", "--cache", "x"],
        ["train", "--mode", "dann", "--against", "speaker", "--layer", "5"],
        ["train", "--mode", "baseline", "--against", "speaker"],
        ["train", "--mode", "coral"],  # without --against
        ["train", "--mode", "wi", "--ckpt", "x.pt", "--shuffle-labels"],
        ["train", "--mode", "baseline", "--width", "0"],
        ["train", "--mode", "cached", "--loss", "released"],
        ["train", "--mode", "baseline", "--device", "cuda:x"],
        ["cache-grams", "--ckpt", "x.pt", "--layer", "5", "--codec", "zip"],
        ["plan", "--layer", "5", "--precision", "16"],
        ["evaluate", "--ckpt", "x.pt", "--split", "tset"],
        ["prepare", "gsc", "--noise", "loud"],
    ],
    ids=" ".join,
)
def test_a_mistyped_option_is_refused_without_importing_torch(tmp_path, arguments):
    code, slow, stderr = imported_by(tmp_path, *arguments)
    assert code == 2, stderr
    assert stderr.startswith("antigram: ")
    assert stderr.count("\n") == 1
    assert slow <= {"scipy"}


@pytest.mark.parametrize("command", ["status", "verify"])
def test_looking_at_a_workspace_needs_no_torch(tmp_path, command):
    code, slow, stderr = imported_by(tmp_path, command)
    assert code == 0, stderr
    assert not slow & {"torch", "torchvision", "torchaudio", "matplotlib"}


def ended(monkeypatch, capsys, error):
    """Exit code and stderr of a command that ends in an error."""

    def fails(**_):
        raise error

    monkeypatch.setattr(cli.app, "main", fails)
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "code",
    [
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ELOOP,
        errno.EROFS,
        errno.EACCES,
        errno.EIO,
    ],
    ids=errno.errorcode.get,
)
def test_what_the_system_refuses_is_one_line_that_names_the_path(monkeypatch, capsys, code):
    error = OSError(code, os.strerror(code), "/data/store.zarr/zarr.json")
    status, stderr = ended(monkeypatch, capsys, error)
    assert status == 2
    assert stderr.startswith(f"antigram: /data/store.zarr/zarr.json: {os.strerror(code)}.")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 1 PiB for an array"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12 bytes"),
    ],
    ids=repr,
)
def test_too_little_memory_is_one_line(monkeypatch, capsys, error):
    status, stderr = ended(monkeypatch, capsys, error)
    assert status == 2
    assert stderr.startswith("antigram: out of memory")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.EBADF, "bad")])
def test_a_defect_of_ours_keeps_its_traceback(monkeypatch, error):
    monkeypatch.setattr(cli.app, "main", lambda **_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        cli.main()


def test_a_full_disk_names_the_file_that_did_not_fit(tmp_path, monkeypatch):
    from antigram.pipeline.storage.durable import write_durably
    from antigram.pipeline.storage.journal import Journal

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("antigram.pipeline.storage.durable.os.fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_durably(tmp_path / "zarr.json", b"{}")
    assert raised.value.filename == str(tmp_path / "zarr.json")
    assert not list(tmp_path.iterdir())
    with (
        Journal(tmp_path / "raw.jsonl") as journal,
        pytest.raises(OSError, match="No space left") as raised,
    ):
        journal.append({"block": 1})
    assert raised.value.filename == str(tmp_path / "raw.jsonl")


def test_patterns_of_options_take_what_they_should():
    for kind, good, bad in (
        (Layer(), ["5", "all", "layer3.1", "5.0"], ["", "emo:5", "5=6", "\u0665", ".5"]),
        (Layer(of_source=True), ["5", "emo:a.b=5", "a:b:all"], [":", "emo:", ":5x", "a=", "a=b=c"]),
        (Beta(), ["1", "-0.5", "1e-3", ".5", "emo:2"], ["nan", "inf", "one", "emo:"]),
        (Device(), ["auto", "cpu", "cuda", "cuda:1"], ["cuda:", "gpu", "cuda:-1"]),
    ):
        for text in good:
            assert kind.convert(text, None, None) == text
        for text in bad:
            with pytest.raises(click.UsageError):
                kind.convert(text, None, None)


@pytest.mark.parametrize("seed", [-1, 2**63])
@pytest.mark.parametrize(
    "command",
    [
        ["prepare", "demo"],
        ["cache-grams", "--ckpt", "x.pt", "--layer", "5"],
        ["train", "--mode", "baseline"],
        ["demo"],
    ],
    ids=lambda words: words[0],
)
def test_a_seed_out_of_range_is_refused(monkeypatch, capsys, tmp_path, command, seed):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["antigram", *command, "--seed", str(seed)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    _, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert err.startswith("antigram: Invalid value for '--seed'")
    assert str(2**63 - 1) in err


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("`max_steps` -1: wanted", "--max-steps -1: wanted"),
        ("use `tap=relu`, or `split=by:speaker`", "use --tap relu, or --split by:speaker"),
        ("see `batch_clips`, `layers` and `ckpts`", "see --batch-size, --layer and --ckpt"),
        ("`resume` it: `antigram train`", "--resume it: `antigram train`"),
        ("`speed` is no option, `` is nothing", "`speed` is no option, `` is nothing"),
    ],
)
def test_arguments_that_a_message_names_are_shown_as_options(told, shown):
    assert cli.app.in_options(told) == shown


def test_a_mistake_is_told_in_options_to_who_typed_them(monkeypatch, capsys):
    mistake = ["train", "--mode", "frozen", "--ckpt", "x.pt"]
    monkeypatch.setattr(sys, "argv", ["antigram", *mistake])
    with pytest.raises(SystemExit):
        cli.main()
    line = "antigram: --mode frozen needs a layer: --layer 1 to 13\n"
    assert capsys.readouterr().err == line
    with pytest.raises(InputError, match="`mode=frozen` needs a layer: `layers` 1 to 13"):
        train_student(Workspace(Path("nowhere")), mode="frozen", ckpts=[Path("x.pt")])
