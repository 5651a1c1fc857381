"""A run that was stopped at any step is resumed and ends in the same numbers."""

import pytest
import torch

from antigram.model.loss.sources import LiveGrams, TapSpec
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from tests.support.nets import CPU
from tests.support.runs import numbers_of


@pytest.fixture(scope="module")
def whole_runs():
    """Folder and result of an uninterrupted run, by mode."""
    return {}


SOME, OTHERS = (1, 5, 9, 16), (2, 3, 8, 11, 12, 14)


@pytest.mark.parametrize(
    "stop", [*SOME, *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)]
)
@pytest.mark.parametrize("mode", ["baseline", "online"])
def test_stopped_at_any_step_a_run_ends_in_the_same_numbers(
    mode, stop, store, config, whole_runs, tmp_path
):
    layers = (3,) if mode == "online" else ()
    settings = config(mode, layers=layers, epochs=3, dropout=0.5, lr=1e-3, batch_clips=5)
    spec = TapSpec(arch=settings.arch, layers=(3,))

    def sources():
        torch.manual_seed(5)
        return LiveGrams(build_student(config("baseline", seed=9), 3, None), spec)

    def go(run, on_progress=lambda *_: None, *, resume=False):
        net = build_student(settings, 3, None)
        grams = sources() if mode == "online" else None
        return train(
            net,
            store,
            grams,
            settings,
            run,
            device=CPU,
            on_progress=on_progress,
            resume=resume,
            save_every_s=0,
        )

    if mode not in whole_runs:
        whole_runs[mode] = (tmp_path / "whole", go(tmp_path / "whole"))
    folder, whole = whole_runs[mode]
    steps = 0

    def stopping(_epoch, _done, _steps, known):
        nonlocal steps
        steps += "clips_per_second" in known  # called after a step, not after an epoch
        if steps == stop + 1:  # last.pt of the step before is on disk
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", stopping)
    resumed = go(tmp_path / "cut", resume=True)
    assert numbers_of(tmp_path / "cut") == numbers_of(folder)
    assert resumed["accuracy"] == whole["accuracy"]
    assert resumed["steps"] == whole["steps"]
