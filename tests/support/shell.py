"""Run commands as a user types them, in a separate folder and workspace."""

import json
import os
import shutil
import sys

import pytest

from antigram import cli
from tests.support.class_recordings import write_tones

TINY = ["--arch", "vgg11", "--width", "1", "--epochs", "1"]


class Shell:
    """Runs commands in this process, in a separate folder and workspace."""

    def __init__(self, folder, capsys, monkeypatch):
        self.folder, self.capsys, self.monkeypatch = folder, capsys, monkeypatch
        monkeypatch.chdir(folder)
        monkeypatch.delenv("ANTIGRAM_WORKSPACE", raising=False)
        monkeypatch.delenv("ANTIGRAM_CORPORA", raising=False)

    def __call__(self, *arguments):
        """Run a command, and return its exit code, stdout and stderr."""
        self.monkeypatch.setattr(sys, "argv", ["antigram", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self.capsys.readouterr()
        return ended.value.code or 0, out, err

    def json(self, *arguments):
        """Run a command that must succeed, and return its answer."""
        code, out, err = self("--json", *arguments)
        assert code == 0, err
        assert out.count("\n") == 1  # one object and nothing else
        return json.loads(out)

    def refused(self, code, match, *arguments):
        """Run a command that must fail with one line that matches ``match``."""
        got, out, err = self(*arguments)
        assert (got, out) == (code, ""), err
        last = err.strip().splitlines()[-1]
        assert last.startswith("antigram: ")
        assert match in last
        assert "Traceback" not in err


@pytest.fixture
def shell(tmp_path, capsys, monkeypatch):
    return Shell(tmp_path, capsys, monkeypatch)


@pytest.fixture(scope="session")
def audio(tmp_path_factory):
    """Make recordings with times of change long ago, so that they do not count as fresh."""
    home = write_tones(tmp_path_factory.mktemp("audio"))
    for path in home.rglob("*.wav"):
        os.utime(path, (1e9, 1e9))  # just written, they would be read again by a second run
    return home


@pytest.fixture(scope="session")
def first_chain(tmp_path_factory):
    """Return the folder of the first `chain`, which later tests copy; the first test makes it."""
    return tmp_path_factory.mktemp("chain") / "made"


@pytest.fixture
def chain(shell, audio, first_chain):
    """Return a shell in whose folder there are a store, a teacher and a cache."""
    if not first_chain.exists():
        shell.json("prepare", "folder", "--source", audio, "--name", "tones")
        shell.json("train", "--mode", "baseline", *TINY, "--save", "net.pt")
        shell.json("cache-grams", "--ckpt", "net.pt", "--layer", 3)
        shutil.copytree(shell.folder, first_chain)
    shutil.copytree(first_chain, shell.folder, dirs_exist_ok=True)
    return shell
