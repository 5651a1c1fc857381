"""Measure whether several students on one device gain from being trained in one batched step.

``python -m benchmarks.share_device [--students 4] [--widths 8,16] [--rounds 7] [--device cpu]``

VGG16 on random clips of one second; all students see the same batch, as they would if one stream of
data served a sweep. Forward and backward pass, without the optimiser. The arms take turns:

* ``alone``: one student after the other,
* ``vmap``: `torch.func.vmap` over the stacked weights,
* ``grouped``: convolutions with a group for each student.

The result are medians of seconds, and their ratio to ``alone``. A ratio below 1 is a gain.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from antigram.model.nets.arch import Arch
from antigram.model.nets.vgg import Vgg
from antigram.pipeline.execution.process import keep_freed_memory
from benchmarks.record import save

_CLIPS, _SHAPE, _CLASSES = 13, (129, 126), 10


def _loss(logits: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(logits, y)


def _arms(students: int, width: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Return each arm as a function that runs one step of all students."""
    nets = [
        Vgg(Arch("vgg16", width), _CLASSES, 0.0).to(device).to(memory_format=torch.channels_last)
        for _ in range(students)
    ]
    x = torch.randn(_CLIPS, 1, *_SHAPE, device=device)
    y = torch.randint(_CLASSES, (_CLIPS,), device=device)
    stacked, buffers = stack_module_state(list[nn.Module](nets))
    empty = copy.deepcopy(nets[0]).to("meta")

    def forward(weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Any:  # noqa: ANN401
        return functional_call(empty, (weights, buffers), (x,))

    def alone() -> None:
        for net in nets:
            _loss(net(x), y).backward()  # type: ignore[no-untyped-call]
            net.zero_grad(set_to_none=True)

    def batched() -> None:
        logits = vmap(forward, in_dims=(0, 0, None))(stacked, buffers, x)
        torch.stack([_loss(each, y) for each in logits]).sum().backward()  # type: ignore[no-untyped-call]
        for tensor in stacked.values():
            tensor.grad = None

    layers: list[tuple[nn.Module, Tensor | None, Tensor | None]] = []
    for index, module in enumerate(nets[0].features):
        if isinstance(module, nn.Conv2d):
            own = [net.features[index] for net in nets]
            weight, bias = (
                torch.cat([getattr(each, name).detach() for each in own]).requires_grad_()
                for name in ("weight", "bias")
            )
            layers.append((module, weight, bias))
        else:
            layers.append((module, None, None))

    def grouped() -> None:
        maps = x.expand(-1, students, -1, -1).contiguous(memory_format=torch.channels_last)
        for module, weight, bias in layers:
            if weight is None:
                maps = module(maps)
            else:
                maps = functional.conv2d(maps, weight, bias, padding=1, groups=students)
        flat = nets[0].avgpool(maps).reshape(_CLIPS, students, -1)
        losses = [_loss(net.classifier(flat[:, i]), y) for i, net in enumerate(nets)]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        for _, weight, bias in layers:
            for tensor in (weight, bias):
                if tensor is not None:
                    tensor.grad = None
        for net in nets:
            net.zero_grad(set_to_none=True)

    return {"alone": alone, "vmap": batched, "grouped": grouped}


def main() -> None:
    """Measure all widths, print a line for each, and save the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--students", type=int, default=4)
    parser.add_argument("--widths", default="8,16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="share_device", help="of the result")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory(of_any_size=True)
    widths: dict[str, Any] = {}
    for width in map(int, asked.widths.split(",")):
        arms = _arms(asked.students, width, device)
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(asked.rounds + 1):  # the first round does not count
            for name, step in arms.items():
                begun = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if number:
                    seconds[name].append(time.perf_counter() - begun)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        widths[str(width)] = {
            name: {"seconds": value, "over_alone": value / medians["alone"]}
            for name, value in medians.items()
        }
        print(f"width {width}: " + ", ".join(f"{n} {v:.3f} s" for n, v in medians.items()))
    content = {
        "device": asked.device,
        "students": asked.students,
        "rounds": asked.rounds,
        "widths": widths,
    }
    path = save(asked.name, content)
    print(json.dumps(content))
    print(path)


if __name__ == "__main__":
    main()
