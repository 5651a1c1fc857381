"""Run commands of antigram in forks of one process that has imported everything: 0.1 s, not 3 s.

``python -m tests.support.command_server`` reads requests and writes answers, one line of JSON each.
A request may ask for SIGKILL just before the n-th call that changes the file system below a folder,
or for an error of that call. Calls are counted in the command's own process, or in its workers,
where the first worker that reaches n is killed.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["Commands", "arm"]

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
_WARM = (
    *("antigram.cli", "antigram.pipeline.features.preparation", "antigram.cache.build"),
    *(
        "antigram.model.training.train",
        "antigram.model.training.evaluate",
        "antigram.model.training.predict",
    ),
    *("antigram.studies.job", "antigram.studies.status", "antigram.studies.verify"),
)
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}


def arm(folder: str, place: int, tell: str, error: int = 0) -> None:
    """Kill this process before its ``place``-th call that changes something below ``folder``.

    Args:
        folder: only calls on paths below it count.
        place: number of the call, from 1; 0 only counts the calls.
        tell: file that the number of calls is written to; its name with ``.died`` marks that one
            process has died, so that no other does.
        error: instead of killing, let the call fail with this number of ``errno``.
    """
    count = 0

    def hook(event: str, details: tuple[object, ...]) -> None:
        nonlocal count
        if event == "open":
            path, mode, flags = (*details, None, None)[:3]
            written = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not (written or (isinstance(mode, str) and set(mode) & set("wax+"))):
                return
        elif event in _CHANGES:
            path = details[0]
        else:
            return
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str) or not os.path.abspath(path).startswith(folder):  # noqa: PTH100
            return
        count += 1
        if not place:
            _note(tell, count)
        elif count == place and _claim(tell):
            if error:
                raise OSError(error, os.strerror(error), path)
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _note(tell: str, count: int) -> None:
    handle = os.open(tell, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(handle, str(count).encode())
    os.close(handle)


def _claim(tell: str) -> bool:
    """Whether no other process has died for this request, as a killed worker is replaced."""
    try:
        os.close(os.open(f"{tell}.died", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Commands:
    """Runs commands in a separate process; a context manager."""

    def __init__(self) -> None:
        # One thread, as a fork keeps no other; numbers are then those of one thread.
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        env.pop("ANTIGRAM_WORKSPACE", None)
        env["PYTHONPATH"] = os.pathsep.join([str(HERE / "armed"), str(ROOT)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.command_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=env,
        )

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # closes its pipes and waits
            pass

    def __call__(self, folder: Path, *arguments: object, **request: object) -> dict:
        """Run a command in a folder.

        Args:
            folder: current folder of the command; calls that change files below it are counted.
            arguments: arguments of the command.
            request: ``place``, the number of the call before which to kill (0 only counts);
                ``where``, ``command`` or ``worker``; and ``error``, if the call is to fail.

        Returns:
            ``code`` (negative: the signal), ``out``, ``err`` and ``calls`` if they were counted.
        """
        asked = {"folder": str(folder), "arguments": [str(a) for a in arguments], **request}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _run(asked: dict, scratch: Path) -> dict:
    for file in scratch.iterdir():
        file.unlink()
    tell = str(scratch / "calls")
    if (child := os.fork()) == 0:
        _child(asked, scratch, tell)
    _, status = os.waitpid(child, 0)
    done = {
        "code": os.waitstatus_to_exitcode(status),
        "out": (scratch / "out").read_text(),
        "err": (scratch / "err").read_text(errors="replace"),
        "died": (scratch / "calls.died").exists(),
    }
    if (scratch / "calls").exists():
        done["calls"] = int((scratch / "calls").read_text())
    return done


def _child(asked: dict, scratch: Path, tell: str) -> None:
    from antigram import cli

    code = 1
    try:
        os.chdir(asked["folder"])
        for number, name in ((1, "out"), (2, "err")):
            handle = os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, number)
        sys.argv = ["antigram", *asked["arguments"]]
        if "place" in asked:
            if asked.get("where") == "worker":
                request = {"folder": asked["folder"], "place": asked["place"], "tell": tell}
                request["error"] = asked.get("error", 0)
                os.environ["ANTIGRAM_TEST_KILL"] = json.dumps(request)
            else:
                arm(asked["folder"], asked["place"], tell, asked.get("error", 0))
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:  # noqa: BLE001 - as Python itself would
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def main() -> None:
    """Answer requests until stdin ends."""
    import torch

    for module in _WARM:
        importlib.import_module(module)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for line in sys.stdin:
            print(json.dumps(_run(json.loads(line), Path(scratch))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
