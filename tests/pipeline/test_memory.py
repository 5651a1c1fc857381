"""How much memory `prepare` may take, and the memory that its processes share."""

import subprocess
import sys

import numpy as np
import pytest

from antigram.pipeline.execution.memory import available_memory, file_in_memory, shared_memory

MEMINFO = "MemTotal:       64 kB\nMemFree:        8 kB\nMemAvailable:   32 kB\nHugePages: 0\n"
READ = "import sys; print(open(sys.argv[1], 'rb').read(3))"


@pytest.fixture
def system(tmp_path):
    """Return a function that makes a machine: 32 KiB free, and control groups by their path."""

    def make(group="", limits=()):
        proc, groups = tmp_path / "proc", tmp_path / "groups"
        (proc / "self").mkdir(parents=True)
        (proc / "meminfo").write_text(MEMINFO)
        (proc / "self" / "cgroup").write_text(f"1:name=x:/y\n0::/{group}\n")
        for path, limit, used, pages in limits:
            folder = groups / path
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "memory.max").write_text(f"{limit}\n")
            (folder / "memory.current").write_text(f"{used}\n")
            (folder / "memory.stat").write_text(f"anon 5\ninactive_file {pages}\n")
        return proc, groups

    return make


def test_without_a_limit_it_is_what_the_machine_has_available(system):
    assert available_memory(*system("a", [("a", "max", 7, 0)])) == 32 << 10


@pytest.mark.parametrize("inner", ["max", "20000"])
def test_the_tightest_group_counts_and_pages_of_files_are_free(system, inner):
    limits = [("a/b", inner, 100, 0), ("a", "9000", 5000, 1000), ("", "max", 0, 0)]
    assert available_memory(*system("a/b", limits)) == 5000


def test_a_group_over_its_limit_leaves_nothing(system):
    assert available_memory(*system("a", [("a", "10", 20, 3)])) == 0


def test_where_nothing_is_known_nothing_is_taken(tmp_path):
    assert available_memory(tmp_path, tmp_path) == 0


def test_of_this_machine_there_is_some():
    assert available_memory() > 1 << 20


def test_a_file_in_memory_is_read_by_other_processes_and_then_gone(tmp_path):
    with file_in_memory(tmp_path / "x") as path:
        path.write_bytes(b"abc")
        command = [sys.executable, "-c", READ, str(path)]
        assert subprocess.check_output(command, text=True).strip() == "b'abc'"
    assert not list(tmp_path.iterdir())
    assert not path.exists()


def test_shared_memory_returns_what_was_written_where_it_was_written():
    with shared_memory(1 << 20) as memory:
        assert memory is not None
        one, two = np.arange(5, dtype=np.float32), np.ones((2, 3), np.float32)
        assert memory.write(1 << 19, two)
        assert memory.write(8, one)
        got = np.empty(5, np.float32), np.empty((2, 3), np.float32)
        memory.read(8, got[0])
        memory.read(1 << 19, got[1])
        np.testing.assert_array_equal(got[0], one)
        np.testing.assert_array_equal(got[1], two)
        with pytest.raises(OSError, match="ends before"):
            memory.read(1 << 20, one)
        memory.clear()
        assert memory.path.stat().st_size == 0


@pytest.mark.parametrize("size", [0, -1])
def test_no_memory_is_none(size):
    with shared_memory(size) as memory:
        assert memory is None
