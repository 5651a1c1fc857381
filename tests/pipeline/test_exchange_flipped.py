"""Flip a bit anywhere in an exported file: import and verification find the same damage."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from antigram import cli
from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.storage.exchange import export_file, import_file, verify_export
from tests.support.files import flip

ROOT = Path(__file__).resolve().parents[2]


FLIPPED = """
import json, signal, sys
from pathlib import Path
import antigram.pipeline.storage.exchange as exchange
from antigram.pipeline.errors import DamagedError, InputError
from tests.support.files import bytes_of
exchange.flush_filesystem = lambda _: None
source, folder, flips = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
raw, made, wrong = source.read_bytes(), 0, []
exchange.import_file(source, folder / "whole.zarr")
want = bytes_of(folder / "whole.zarr")
for number, (place, bit) in enumerate(flips):
    changed = bytearray(raw)
    changed[place] ^= 1 << bit
    file, goal = folder / f"{number}.h5", folder / f"{number}.zarr"
    file.write_bytes(changed)
    signal.alarm(10)  # its default: the end
    print(place, bit, file=sys.stderr, flush=True)
    try:
        exchange.import_file(file, goal)
    except (DamagedError, InputError):
        wrong += [[place, bit]] if goal.exists() else []
    else:
        wrong += [] if bytes_of(goal) == want else [[place, bit]]
        made += 1
    signal.alarm(0)
    file.unlink()
print(json.dumps([made, wrong]))
"""


def flipped(file: Path, folder: Path, flips: list[tuple[int, int]]) -> int:
    """Import in another process; return how many flipped bits do not stop it. None may differ."""
    done = subprocess.run(
        [sys.executable, "-c", FLIPPED, file, folder, json.dumps(flips)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-3:]
    assert done.returncode == 0, f"ended with {done.returncode} at byte and bit {last}"
    made, wrong = json.loads(done.stdout)
    assert not wrong
    return made


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(group, tmp_path, features):
    file = tmp_path / "small.h5"
    size = export_file(group[0], file)
    draw = random.Random(1)
    flips = [(draw.randrange(size), draw.randrange(8)) for _ in range(150)]
    made = flipped(file, features, flips)
    assert made < len(flips)


def test_nothing_lies_in_the_heap_of_hdf5(group, tmp_path):
    """HDF5's heap has no checksums: a flipped bit in a size makes the library loop for ever."""
    file = tmp_path / "small.h5"
    export_file(group[0], file)
    assert b"GCOL" not in file.read_bytes()


def test_verify_of_an_exported_file_finds_what_an_import_would_refuse(copied):
    assert not list(verify_export(copied))
    raw = copied.read_bytes()
    draw = random.Random(5)
    for _ in range(60):
        changed = bytearray(raw)
        changed[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        copied.write_bytes(changed)
        problems = list(verify_export(copied))
        try:
            import_file(copied, copied.with_name("imported.zarr"))
            intact = True
        except (DamagedError, InputError):
            intact = False
        assert intact is not bool(problems)
        shutil.rmtree(copied.with_name("imported.zarr"), ignore_errors=True)


def test_an_exported_file_can_be_named_to_verify(copied, capsys, monkeypatch):
    def verify():
        monkeypatch.setattr(sys, "argv", ["antigram", "--json", "verify", str(copied)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, json.loads(capsys.readouterr().out)

    assert verify() == (0, {"ok": True, "problems": [], "checked": [str(copied)]})
    flip(copied, copied.stat().st_size // 2)
    code, answer = verify()
    assert code == 3
    assert [problem["path"] for problem in answer["problems"]] == [str(copied)]
