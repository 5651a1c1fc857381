import numpy as np
import pytest
import torch

from antigram.model.nets.arch import Arch
from antigram.model.nets.vgg import Vgg, conv_state
from antigram.model.training.batches import Batches
from antigram.model.training.config import TrainConfig
from antigram.model.training.student import build_student
from antigram.pipeline.errors import InputError
from tests.support.nets import CPU, VGG11


def states_equal(one, two):
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_weights_come_from_the_seed_whatever_was_built_before(config):
    first = build_student(config(seed=3), 3, None).state_dict()
    torch.manual_seed(99)
    Vgg(Arch("vgg13", 3), 7)
    before = torch.get_rng_state()
    again = build_student(config(seed=3), 3, None).state_dict()
    assert states_equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert not states_equal(first, build_student(config(seed=4), 3, None).state_dict())


def test_all_modes_begin_with_the_same_weights(config):
    baseline = build_student(config(), 3, None).state_dict()
    for mode in ("online", "cached"):
        other = build_student(config(mode, layers=(3,), tap="conv"), 3, None).state_dict()
        assert states_equal(baseline, other)


@pytest.mark.parametrize("mode", ["wi", "frozen"])
def test_initial_weights_fill_the_convolutions_and_nothing_else(mode, config, teacher):
    net = build_student(config(mode, layers=(3,)), 3, teacher.state)
    drawn = build_student(config(), 3, None).state_dict()
    assert states_equal(conv_state(net.state_dict()), teacher.state)
    for name, tensor in net.state_dict().items():
        if name.startswith("classifier."):
            assert torch.equal(tensor, drawn[name])
    trainable = [name for name, p in net.named_parameters() if p.requires_grad]
    assert ("features.6.weight" in trainable) == (mode == "wi")  # layer 3
    assert "features.8.weight" in trainable


def test_training_the_student_does_not_change_the_weights_it_began_with(config, teacher):
    before = {name: tensor.clone() for name, tensor in teacher.state.items()}
    net = build_student(config("wi"), 3, teacher.state)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.add_(1)
    assert states_equal(teacher.state, before)


def test_initial_weights_of_another_shape_are_refused_by_name(config, teacher):
    with pytest.raises(
        InputError, match=r"features\.0\.weight is \(2, 1, 3, 3\), the student's is"
    ):
        build_student(config("wi", arch=Arch("vgg11", 4)), 3, teacher.state)
    with pytest.raises(InputError, match=r"features\.\d+\.weight is .*missing"):
        build_student(config("wi"), 3, Vgg(Arch("vgg19", 2), 0).state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "live"}, "mode is 'live'; wanted: baseline, wi, frozen, online, cached"),
        ({"loss": "other"}, "loss is 'other'; wanted: paper, released"),
        ({"tap": "pool"}, "tap is 'pool'; wanted: relu, conv, released"),
        ({"aggregation": "median"}, "aggregation is 'median'; wanted: gram, mean"),
        ({"similarity": "l2"}, "similarity is 'l2'; wanted: cos2, mse-sigmoid"),
        ({"precision": "16"}, "precision is '16'; wanted: 32, tf32, bf16"),
        ({"epochs": 0}, "`epochs` 0: wanted at least 1"),
        ({"patience": 0}, "`patience` 0"),
        ({"batch_clips": 0}, "`batch_clips` 0"),
        ({"max_steps": -1}, "`max_steps` -1"),
        ({"lr": 0.0}, "`lr` 0.0"),
        ({"lr": float("nan")}, "`lr` nan"),
        ({"lr": float("inf")}, "`lr` inf"),
        ({"dropout": 1.0}, "`dropout` 1.0"),
        ({"weight_decay": -0.1}, "`weight_decay` -0.1"),
        ({"weight_decay": float("nan")}, "`weight_decay` nan"),
        ({"beta": float("nan")}, "`beta` nan"),
        ({"mode": "cached", "loss": "released"}, "`loss=released` .* `mode=online`"),
        ({"mode": "baseline", "loss": "released"}, "`loss=released` .* `mode=online`"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_without_a_meaning_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**{"mode": "baseline", "task": "label", "arch": VGG11, **changes})


def test_beta_is_squared_for_the_released_loss_only(config):
    assert config("online", beta=-3.0).at_weight("") == -3.0
    assert config("online", beta=-3.0, loss="released").at_weight("") == 9.0


def test_batches_hold_the_clips_asked_for_and_the_last_one_is_short(store):
    batches = Batches(store, "label", None, 5, CPU)
    rows = np.array([7, 3, 3, 41, 0, 12, 1])
    found = list(batches.passes(rows))
    assert [len(batch.y) for batch in found] == [5, 2]
    np.testing.assert_array_equal(np.concatenate([batch.clips for batch in found]), rows)
    x = torch.cat([batch.x for batch in found])
    assert x.shape == (7, 1, 126, 129)
    np.testing.assert_array_equal(x[:, 0], store.features.read()[rows])
    np.testing.assert_array_equal(
        torch.cat([batch.y for batch in found]), store.labels("label")[rows]
    )
    assert batches.wait_s > 0


def test_an_error_while_reading_ahead_is_raised_where_the_batches_are_used(store):
    class Broken:
        views, stored_bytes, arrays = None, 0, ()

        def read(self, clips, epoch):
            if 20 in clips:
                raise OSError("pulled out")
            return {}

    batches = Batches(store, "label", Broken(), 10, CPU).passes(np.arange(42))  # type: ignore[arg-type]
    assert [next(batches).clips[0], next(batches).clips[0]] == [0, 10]
    with pytest.raises(OSError, match="pulled out"):
        next(batches)
