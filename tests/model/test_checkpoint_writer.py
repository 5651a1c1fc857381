"""Checkpoints that a thread writes: what they hold, when they are written, and its errors."""

import errno
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from antigram.model.nets.arch import Arch
from antigram.model.training import checkpoint_writer, host_copy
from antigram.model.training.checkpoint import load_checkpoint, load_tensors
from antigram.model.training.checkpoint_writer import CheckpointWriter
from antigram.model.training.config import TrainConfig
from antigram.model.training.host_copy import HostCopy
from antigram.model.training.resume import State
from antigram.model.training.run_files import RunFiles
from antigram.studies.verify import verify_run
from tests.support.runs import Killed, killed_before, metrics, numbers_of, train_baseline

WAIT = 30  # seconds, in which any thread gets to what a test waits for


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(checkpoint_writer, "time", SimpleNamespace(perf_counter=clock))
    return clock


class Run:
    """A training without steps: its weights are all equal to its number of steps."""

    def __init__(self, folder, checkpoint, **options):
        self.files = RunFiles(folder, {"config": {}, "features": "", "grams": {}})
        self.files.begin()
        self.net, self.state = checkpoint.net(), State()
        self.adam = torch.optim.Adam(self.net.parameters(), fused=True)
        self.writer = None
        self.step()
        self.said = []
        self.writer = CheckpointWriter(
            self.files,
            partial(self.state.content, self.net, self.adam),
            lambda weights: replace(checkpoint, state_dict=dict(weights)),
            device=torch.device("cpu"),
            save_every_s=10,
            on_message=self.said.append,
            **options,
        )

    def step(self):
        self.state.step += 1
        if self.writer is not None:
            self.writer.settle()
        for parameter in self.net.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.adam.step()
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.fill_(self.state.step)

    def end_epoch(self, *, best=False, over=False):
        self.state.epoch += 1
        if best:
            self.state.best_epoch = self.state.epoch
        self.writer.end_epoch(b"%d" % self.state.epoch, best=best, over=over)

    def on_disk(self):
        """Return steps and best epoch of last.pt, the weight in it, and the weight in best.pt."""
        last, best = load_tensors(self.files.folder / "last.pt"), self.files.folder / "best.pt"
        weights = [last["model"]]
        if best.exists():
            weights.append(load_checkpoint(best).state_dict)
        values = []
        for state in weights:
            (value,) = {float(v) for tensor in state.values() for v in tensor.unique()}
            values.append(value)
        for number, average in last["optimiser"]["state"].items():
            assert average["step"] == last["step"], number
        return last["step"], last["best_epoch"], *values


@pytest.fixture
def run(checkpoint, tmp_path, clock):
    return Run(tmp_path / "run", checkpoint)


@pytest.fixture
def gate(run, monkeypatch):
    """Return two events: writing of checkpoints has begun, and may go on."""
    begun, go_on = threading.Event(), threading.Event()
    write_all = RunFiles.write_all

    def slow(self, contents):
        if "last.pt" in contents:
            begun.set()
            assert go_on.wait(WAIT)
        write_all(self, contents)

    monkeypatch.setattr(RunFiles, "write_all", slow)
    return begun, go_on


def test_a_checkpoint_holds_the_state_of_when_it_was_saved_though_training_goes_on(run, gate):
    begun, go_on = gate
    with run.writer as writer:
        writer.save()
        assert begun.wait(WAIT)
        run.step()
        go_on.set()
    assert run.on_disk() == (1, 0, 1.0)


def test_a_step_waits_until_the_weights_are_copied(run, monkeypatch):
    copy, stepping = host_copy._copy, threading.Event()
    settle = CheckpointWriter.settle

    def late(pairs):
        assert stepping.wait(WAIT)
        copy(pairs)

    def seen(self):
        stepping.set()
        settle(self)

    monkeypatch.setattr(host_copy, "_copy", late)
    with run.writer as writer:
        writer.save()
        monkeypatch.setattr(CheckpointWriter, "settle", seen)
        run.step()
    assert run.on_disk() == (1, 0, 1.0)


def test_at_most_one_write_is_in_flight_and_the_best_weights_wait_for_the_next(run, gate, clock):
    begun, go_on = gate
    clock.now += 1
    with run.writer as writer:
        run.end_epoch(best=True)
        assert begun.wait(WAIT)
        clock.now += 1000
        assert not writer.due()
        for best in (True, True, False):  # epochs 2 to 4: the best of them is 3
            run.step()
            run.end_epoch(best=best)
        go_on.set()
        writer._write.result(WAIT)
        assert run.on_disk() == (1, 1, 1.0, 1.0)
        run.step()
        clock.now += 100_000
        assert writer.due()
        writer.save()
    assert run.on_disk() == (5, 3, 5.0, 3.0)
    assert (run.files.folder / "metrics.jsonl").read_bytes() == b"4"


def test_writing_takes_at_most_a_twentieth_of_the_time(run, clock, monkeypatch):
    write_all = RunFiles.write_all

    def slow(self, contents):
        write_all(self, contents)
        clock.now += 2.0

    with run.writer as writer:
        clock.now += 9.9
        assert not writer.due()  # `save_every_s` is 10
        assert writer.due(epoch_ends=True)
        clock.now += 0.2
        assert writer.due()
        monkeypatch.setattr(RunFiles, "write_all", slow)
        writer.save()
        writer._write.result(WAIT)
        for pause, due in ((39.9, False), (0.2, True)):
            clock.now += pause
            assert writer.due() == writer.due(epoch_ends=True) == due


def test_when_the_training_is_over_all_is_on_disk(run, clock):
    with run.writer:
        run.end_epoch(best=True)
        run.step()
        run.end_epoch(best=True)  # not due, and never written
        run.step()
        run.end_epoch(over=True)
        assert run.on_disk() == (3, 2, 3.0, 2.0)
        assert (run.files.folder / "metrics.jsonl").read_bytes() == b"3"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoints")]


def test_an_error_of_the_thread_is_raised_by_the_next_call_and_nothing_more_is_written(
    run, gate, monkeypatch
):
    begun, go_on = gate
    full = OSError(errno.ENOSPC, "No space left on device", "last.pt")

    def fail(*_, **__):
        raise full

    monkeypatch.setattr(checkpoint_writer, "write_tensors", fail)
    writer = run.writer
    writer.save()
    assert begun.wait(WAIT)
    go_on.set()
    writer._write.result(WAIT)
    with pytest.raises(OSError, match="No space left") as caught:
        run.end_epoch()
    assert caught.value is full
    with pytest.raises(OSError, match="No space left"), writer:
        pass
    assert not {path.name for path in run.files.folder.iterdir()} & {"last.pt", "metrics.jsonl"}


def test_an_error_at_the_very_end_is_raised_too_unless_the_training_raised_before(
    checkpoint, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error", "last.pt")

    monkeypatch.setattr(checkpoint_writer, "write_tensors", fail)
    with (
        pytest.raises(OSError, match="Input/output"),
        Run(tmp_path / "one", checkpoint).writer as w,
    ):
        w.save()
    interrupted = Run(tmp_path / "two", checkpoint).writer

    def interrupt():
        with interrupted:
            interrupted.save()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_with_too_little_memory_for_copies_the_training_waits_and_the_files_are_the_same(
    run, clock, monkeypatch
):
    monkeypatch.setattr(host_copy, "available_memory", lambda: 1000)
    with run.writer as writer:
        assert writer.due(epoch_ends=True) is False  # no time has passed
        run.end_epoch(best=True)
        assert run.on_disk() == (1, 1, 1.0, 1.0)
        run.step()
        run.end_epoch(best=True)  # not due, but its weights could not be kept
        assert run.on_disk() == (2, 2, 2.0, 2.0)
        run.step()
        run.end_epoch()
        assert run.on_disk() == (2, 2, 2.0, 2.0)
        clock.now += 100_000
        writer.save()
        assert run.on_disk() == (3, 2, 3.0, 2.0)
    assert len(run.said) == 1
    assert "too little memory to copy the training's state" in run.said[0]


def test_memory_that_cannot_be_allocated_is_too_little(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4")

    monkeypatch.setattr(torch, "empty_like", refuse)
    with pytest.raises(MemoryError, match=r"a copy takes 0\.0 MB"):
        HostCopy().begin([torch.ones(1)], ThreadPoolExecutor(1), None)


def test_a_copy_keeps_layouts_and_names_and_its_memory_is_used_again():
    maps = torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last)
    net = torch.nn.BatchNorm2d(3)
    tree = {"net": net.state_dict(), "more": [(maps, 1.5), "text", None], "empty": torch.empty(0)}
    memory = HostCopy()

    def copied(tree):
        with ThreadPoolExecutor(1) as executor:
            copying = memory.begin(tree, executor, None)
            copying.wait()
        return copying.tree

    memory.reserve(tree)
    first = copied(tree)
    assert first["more"][1:] == tree["more"][1:]
    assert first["more"][0][0].stride() == maps.stride()
    assert torch.equal(first["more"][0][0], maps)
    assert vars(first["net"]) == vars(tree["net"])  # the versions of modules
    assert all(torch.equal(value, first["net"][name]) for name, value in net.state_dict().items())
    maps.zero_()
    assert first["more"][0][0].any()
    assert copied(tree)["more"][0][0].data_ptr() == first["more"][0][0].data_ptr()
    assert not first["more"][0][0].any()
    assert copied([maps[:1]])[0].shape == (1, 3, 4, 5)  # another tree


def test_best_and_last_are_renamed_when_both_are_on_disk(run, monkeypatch):
    changes = []
    replaced = type(run.files.folder).replace

    def replace_(self, target):
        names = sorted(path.name.partition(".pt")[0] for path in target.parent.glob("*.pt.*"))
        changes.append((target.name, names))
        return replaced(self, target)

    monkeypatch.setattr(type(run.files.folder), "replace", replace_)
    with run.writer:
        run.end_epoch(best=True, over=True)
    of_checkpoints = [change for change in changes if change[0].endswith(".pt")]
    assert of_checkpoints == [("best.pt", ["best", "last"]), ("last.pt", ["last"])]


FEW = (21, 30, 42)  # before last.pt is renamed, and before two changes after that
CONFIG = TrainConfig(
    mode="baseline", task="label", arch=Arch("vgg11", 1), epochs=4, patience=9, lr=3e-3
)


@pytest.fixture(scope="module")
def complete(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete") / "run"
    train_baseline(CONFIG, store, folder, keep_resume=True)
    assert metrics(folder)[-1]["validation"]["loss"] < metrics(folder)[0]["validation"]["loss"]
    return folder


@pytest.mark.parametrize("often", [True, False], ids=["each epoch", "once"])
@pytest.mark.parametrize(
    "change",
    [*FEW, *(pytest.param(n, marks=pytest.mark.slow) for n in range(9, 59) if n not in FEW)],
)
def test_killed_before_any_change_of_a_file_a_run_ends_in_the_same_weights(
    change, often, store, complete, monkeypatch, tmp_path
):
    # With "once", the best weights of the second and third epoch wait in memory when it is killed.
    monkeypatch.setattr(checkpoint_writer, "_PAUSE", 0 if often else 1e9)
    folder = tmp_path / "run"
    with pytest.raises(Killed), killed_before(change, folder):
        train_baseline(CONFIG, store, folder, keep_resume=True)
    assert not list(verify_run(folder))
    train_baseline(CONFIG, store, folder, keep_resume=True, resume=folder.exists())
    assert numbers_of(folder) == numbers_of(complete)
    for name, key in (("best.pt", "state_dict"), ("last.pt", "model")):
        one, two = (load_tensors(path / name)[key] for path in (folder, complete))
        assert all(torch.equal(one[weight], two[weight]) for weight in one)


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn"])
def test_no_weight_and_no_average_of_a_batch_norm_changes_before_it_is_copied(
    name, store, monkeypatch, tmp_path
):
    copy = host_copy._copy

    def late(pairs):
        time.sleep(0.1)
        copy(pairs)

    def stop(epoch, done, _steps, known):
        if (epoch, done) == (2, 3) and "clips_per_second" in known:
            raise KeyboardInterrupt

    config = replace(CONFIG, arch=Arch(name, 1), epochs=3, batch_clips=6)
    train_baseline(config, store, tmp_path / "complete")
    monkeypatch.setattr(host_copy, "_copy", late)
    monkeypatch.setattr(checkpoint_writer, "_PAUSE", 0)
    with pytest.raises(KeyboardInterrupt):
        train_baseline(config, store, tmp_path / "cut", on_progress=stop, save_every_s=0)
    assert (tmp_path / "cut" / "last.pt").exists()
    train_baseline(config, store, tmp_path / "cut", resume=True)
    assert numbers_of(tmp_path / "cut") == numbers_of(tmp_path / "complete")
    one, two = (load_checkpoint(tmp_path / run / "best.pt") for run in ("cut", "complete"))
    assert all(torch.equal(one.state_dict[key], two.state_dict[key]) for key in one.state_dict)


def test_a_training_that_raises_leaves_no_thread_and_what_it_began_to_write(store, tmp_path):
    def stop(epoch, _done, _steps, known):
        if epoch == 2 and "clips_per_second" in known:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_baseline(CONFIG, store, tmp_path / "run", on_progress=stop)
    assert load_tensors(tmp_path / "run" / "last.pt")["epoch"] == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoints")]
