"""Count the operations of a training step: a deterministic figure, the same on any device.

On a GPU each operation is a kernel launch, which costs the host some microseconds whatever the size
of the tensors. Views and allocations are not counted, as they launch nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OperationCounter", "operations_of"]

_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A block in which torch's operations are counted, those of backward passes, too.

    Attributes:
        counts: name of an operation -> how often it ran.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch has no public type for it
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Count one operation and run it."""
        del types
        schema = func._schema
        name = schema.name.removeprefix("aten::")
        # A view is marked in the schema: it returns memory of its input without writing to it.
        view = any(each.alias_info and not each.alias_info.is_write for each in schema.returns)
        if not view and name not in (*_ALLOCATIONS, "_unsafe_view", "detach"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """Number of operations."""
        return sum(self.counts.values())


def operations_of(step: Callable[[], Any]) -> int:
    """Return the number of operations of a function."""
    with OperationCounter() as counter:
        step()
    total: int = counter.total
    return total
