"""SIGKILL before calls that change the file system: the same command goes on, to the same bytes.

Not at random moments: before every such call, or, of commands with many, before calls at equal
distances. After each kill the command is run again, must end well, and must leave what a run that
nobody killed leaves; then `clean` must leave not one file more.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.campaigns import keep
from tests.support.class_recordings import write_tones
from tests.support.command_server import Commands
from tests.support.workspaces import TINY, content_of, copied, files_below

pytestmark = pytest.mark.slow
PREPARE = ["prepare", "folder", "--source", "audio", "--name", "tones", "--workers", "1"]
TEACHER = ["train", "--mode", "baseline", *TINY, "--epochs", "1", "--save", "net.pt"]
CACHE = ["cache-grams", "--ckpt", "net.pt", "--layer", "3", "--layer", "8"]
TRAIN = ["train", "--mode", "cached", *TINY, "--epochs", "3", "--name", "killed"]


@dataclass(frozen=True)
class Campaign:
    """Commands that come before, the one that is killed, and before how many of its calls."""

    before: list[list[str]]
    killed: list[str]
    most: int
    where: str = "command"


CAMPAIGNS = {
    "prepare": Campaign([], PREPARE, 60),
    "prepare, in a worker": Campaign([], PREPARE, 20, "worker"),
    "prepare, in place of another recipe": Campaign([PREPARE], [*PREPARE, "--seed", "1"], 40),
    "cache-grams": Campaign([PREPARE, TEACHER], CACHE, 60),
    "cache-grams, in place of other layers": Campaign(
        [PREPARE, TEACHER, CACHE], [*CACHE, "--dtype", "float32"], 40
    ),
    "train": Campaign([PREPARE, TEACHER, CACHE], TRAIN, 60),
}


@pytest.fixture(scope="module")
def run():
    with Commands() as commands:
        yield commands


def ends_well(run, folder, command, **request):
    done = run(folder, *command, **request)
    assert done["code"] == 0, f"{command}: {done['err'][-2000:]}"
    return done


def places(calls, most):
    """Numbers of calls, from 1: all of them, or ``most`` at equal distances."""
    if calls <= most:
        return list(range(1, calls + 1))
    return sorted({1 + round(i * (calls - 1) / (most - 1)) for i in range(most)})


def resumed(command, folder):
    """Return the command that continues: a training gets --resume once its folder exists."""
    if command[0] == "train" and (folder / "workspace" / "runs" / "killed").exists():
        return [*command, "--resume"]
    return command


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_command_killed_before_a_call_goes_on_to_the_same_bytes(name, run, tmp_path):
    campaign = CAMPAIGNS[name]
    base = tmp_path / "base"
    write_tones(base / "audio")
    for command in campaign.before:
        ends_well(run, base, command)
    folder = tmp_path / "work"  # one name for all, as names of runs and paths are stored
    ends_well(run, copied(base, folder), campaign.killed)
    ends_well(run, folder, ["clean"])
    wanted, names = content_of(folder / "workspace"), files_below(folder / "workspace")
    calls = most_calls(run, base, folder, campaign)

    differing, left, kills = [], [], 0
    for place in places(calls, campaign.most):
        copied(base, folder)
        done = run(folder, *campaign.killed, place=place, where=campaign.where)
        kills += done["died"]
        if campaign.where == "command":
            # A training writes checkpoints when they are due: it may end with fewer calls.
            assert done["code"] == (-9 if done["died"] else 0), done
        ends_well(run, folder, resumed(campaign.killed, folder))
        ends_well(run, folder, ["verify"])
        ends_well(run, folder, ["clean"])
        if content_of(folder / "workspace") != wanted:
            differing.append(place)
        if files_below(folder / "workspace") != names:
            left.append((place, set(files_below(folder / "workspace")) ^ set(names)))
    keep(
        f"SIGKILL before calls that change files: {name}",
        kind="kills",
        test="tests/reliability/test_kills.py",
        tried=kills,
        differences=len(differing),
        leftovers=len(left),
    )
    assert kills > max(5, campaign.most // 2) if campaign.where == "command" else kills > 5
    assert not differing
    assert not left


ERRORS = {"a full disk": errno.ENOSPC, "an error of the disk": errno.EIO}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_call_that_fails_is_one_line_and_the_command_goes_on_when_it_is_run_again(
    name, error, run, tmp_path
):
    campaign = CAMPAIGNS[name]
    base = tmp_path / "base"
    write_tones(base / "audio")
    for command in campaign.before:
        ends_well(run, base, command)
    folder = tmp_path / "work"
    ends_well(run, copied(base, folder), campaign.killed)
    ends_well(run, folder, ["clean"])
    wanted, names = content_of(folder / "workspace"), files_below(folder / "workspace")
    calls = most_calls(run, base, folder, campaign)

    wrong: list[tuple[Any, ...]] = []
    tried = refused = 0
    for place in places(calls, campaign.most // 2):
        copied(base, folder)
        request = {"place": place, "where": campaign.where, "error": ERRORS[error]}
        done = run(folder, *campaign.killed, **request)
        tried += done["died"]
        refused += done["code"] == 2
        line = done["err"].strip().splitlines()[-1:]
        if done["code"] not in (0, 2) or "Traceback" in done["err"]:
            wrong.append((place, "not one line", done["code"], done["err"][-800:]))
        elif done["code"] == 2 and os.strerror(ERRORS[error]) not in line[0]:
            wrong.append((place, "another line", line))
        ends_well(run, folder, resumed(campaign.killed, folder))
        ends_well(run, folder, ["verify"])
        ends_well(run, folder, ["clean"])
        if content_of(folder / "workspace") != wanted:
            wrong.append((place, "other content"))
        if files_below(folder / "workspace") != names:
            wrong.append((place, "leftovers", set(files_below(folder / "workspace")) ^ set(names)))
    keep(
        f"{error} at calls that change files: {name}",
        kind="faults",
        test="tests/reliability/test_kills.py",
        tried=tried,
        refused_in_a_line=refused,
        wrong=len(wrong),
    )
    assert tried > 5
    assert not wrong


def most_calls(run, base: Path, folder: Path, campaign: Campaign) -> int:
    """How many calls there are to be killed before."""
    if campaign.where == "command":
        return ends_well(run, copied(base, folder), campaign.killed, place=0)["calls"]
    done = ends_well(run, copied(base, folder), campaign.killed, place=0, where="worker")
    return done["calls"]
