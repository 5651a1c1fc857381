"""Train and test probes: logistic regression, and a network with one hidden layer.

The only module that knows scikit-learn, which is an extra; it is imported when a probe is trained.

References:
    Alain and Bengio (2016), Understanding intermediate layers using linear classifier probes.
    Hewitt and Liang (2019), Designing and Interpreting Probes with Control Tasks.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from antigram.model.training.chance import majority
from antigram.pipeline.errors import InputError
from antigram.studies.probe.division import Integers, Sample, shuffled_order

__all__ = [
    "GRIDS",
    "Kind",
    "Probed",
    "best_strength",
    "check_installed",
    "log_probabilities",
    "majority_of_parts",
    "one_thread",
    "run_probe",
    "shuffled_labels",
    "standardised",
]

Floats = NDArray[np.float64]
Kind = Literal["linear", "mlp"]

# C: one over the weight of the L2 penalty, for the loss summed over segments.
GRIDS: dict[Kind, tuple[float, ...]] = {
    "linear": (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    "mlp": (1e-2, 1e-1, 1.0),
}
_INNER: dict[Kind, int] = {"linear": 3, "mlp": 1}  # inner parts that C is judged by
_INNER_PARTS = 3
_HIDDEN = 64  # units
_STEPS: dict[Kind, int] = {"linear": 1000, "mlp": 100}  # of L-BFGS, at most


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe predicts for segments that it was not trained on.

    Attributes:
        predicted: ``(segment,)`` classes.
        accuracies: share of correct predictions in each part.
        strengths: the C that was chosen for each part.
    """

    predicted: Integers
    accuracies: Floats
    strengths: list[float]

    @property
    def accuracy(self) -> float:
        """Mean of the parts' accuracies."""
        return float(self.accuracies.mean())


def check_installed() -> None:
    """Raise if scikit-learn is missing.

    Raises:
        InputError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise InputError(
            "a probe needs scikit-learn, which is not installed. "
            'Run `pip install -c constraints.txt "scikit-learn"`.'
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let the libraries of linear algebra use one thread: small problems take longer with more."""
    from threadpoolctl import threadpool_limits  # scikit-learn depends on it

    with threadpool_limits(1):
        yield


def standardised(train: NDArray[np.floating], test: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Subtract the means of the training rows and divide by their standard deviations.

    A column that is constant in the training rows is only shifted.

    Args:
        train: ``(row, column)``.
        test: further rows, which have no influence on the scale.

    Returns:
        Both arrays, in float64.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.astype(np.float64))
    return scaler.transform(train.astype(np.float64)), scaler.transform(test.astype(np.float64))


def _fits(
    kind: Kind, x: Floats, y: Integers, strengths: Sequence[float], seed: int
) -> Iterator[Any]:
    """Yield a fitted classifier for each C; the same object may be yielded again."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    steps = _STEPS[kind]
    if kind == "linear":
        # From a small C to a large one, each fit starts where the last one ended.
        model: Any = LogisticRegression(max_iter=steps, warm_start=len(strengths) > 1)
        settings = [{"C": strength} for strength in strengths]
    else:
        model = MLPClassifier((_HIDDEN,), solver="lbfgs", max_iter=steps, random_state=seed % 2**32)
        settings = [{"alpha": 1 / strength} for strength in strengths]
    for setting in settings:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            # Few segments of many classes, as at the start of an online code.
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            model.set_params(**setting).fit(x, y)
        yield model


def log_probabilities(
    kind: Kind,
    x: Floats,
    test: Floats,
    y: Integers,
    classes: int,
    strengths: Sequence[float],
    seed: int,
) -> Iterator[Floats]:
    """Train a probe with each C, and yield its log-probabilities of the test rows.

    With ``n`` training rows, the ``u`` classes that are not among them get a probability of
    1 / (n + u) each, and the others share the rest; else a class seen first in the test rows would
    have an infinite loss.

    Args:
        kind: ``linear`` or ``mlp``.
        x: ``(row, column)`` training rows, standardised.
        test: ``(row, column)`` test rows.
        y: ``(row,)`` classes of the training rows.
        classes: number of classes.
        strengths: values of C, in rising order.
        seed: seed of the initial weights of ``mlp``.

    Yields:
        ``(test row, class)`` natural logarithms.
    """
    seen = np.unique(y)
    total = len(y) + classes - len(seen)
    result = np.full((len(test), classes), -np.log(total))
    share = np.log(len(y) / total)
    if len(seen) == 1:
        result[:, seen] = share
        yield from (result for _ in strengths)
        return
    tiny = np.finfo(np.float64).tiny
    for model in _fits(kind, x, y, strengths, seed):
        result[:, seen] = share + np.log(model.predict_proba(test).clip(tiny))
        yield result


def best_strength(
    kind: Kind,
    x: NDArray[np.floating],
    y: Integers,
    classes: int,
    divisions: Sequence[tuple[Integers, Integers]],
    seed: int,
) -> float:
    """Return the C with the smallest cross entropy on inner parts.

    C rises from the smallest one as long as the cross entropy falls: fits with a large C take
    longest, and are rarely wanted.

    Args:
        kind: ``linear`` or ``mlp``.
        x: ``(segment, column)`` representation.
        y: ``(segment,)`` classes.
        classes: number of classes.
        divisions: segments to train and to test on. The outer test part is in none of them.
        seed: seed of the initial weights of ``mlp``.
    """
    grid, paths = GRIDS[kind], []
    used = divisions[: _INNER[kind]]
    for train, test in used:
        scaled = standardised(x[train], x[test])
        paths.append(log_probabilities(kind, *scaled, y[train], classes, grid, seed))
    best, least = grid[0], np.inf
    for strength, found in zip(grid, zip(*paths, strict=True), strict=False):
        loss = -sum(
            log_p[np.arange(len(test)), y[test]].sum()
            for log_p, (_, test) in zip(found, used, strict=True)
        )
        if loss >= least:
            break
        best, least = strength, loss
    return best


def run_probe(
    kind: Kind, x: NDArray[np.floating], sample: Sample, seed: int, y: Integers | None = None
) -> Probed:
    """Train a probe on all parts but one, and test it on that one, for each part.

    Mean and standard deviation of the columns are those of the training segments alone, and C is
    chosen by dividing these segments again, without the tested part.

    Args:
        kind: ``linear`` (multinomial logistic regression with an L2 penalty) or ``mlp`` (one
            hidden layer of 64 ReLUs, trained with at most 100 steps of L-BFGS).
        x: ``(segment, column)`` representation.
        sample: classes and parts of the segments.
        seed: seed of the inner divisions and of the initial weights of ``mlp``.
        y: ``(segment,)`` other classes than the sample's, such as `shuffled_labels`.
    """
    y = sample.y if y is None else y
    count, classes = int(sample.parts.max()) + 1, len(sample.classes)
    predicted = np.zeros(len(y), np.int64)
    accuracies, strengths = np.zeros(count), []
    with one_thread():
        for part in range(count):
            train, test = sample.train_and_test(part)
            if not len(train):
                raise InputError(
                    "no segment is left to train a probe on: every recording has segments in the "
                    f"tested part ({sample.groups_label}). Take other `groups`."
                )
            inner = sample.inner(train, _INNER_PARTS, seed)
            best = best_strength(kind, x, y, classes, inner, seed)
            scaled = standardised(x[train], x[test])
            (log_p,) = log_probabilities(kind, *scaled, y[train], classes, [best], seed)
            predicted[test] = log_p.argmax(1)
            accuracies[part] = np.mean(predicted[test] == y[test])
            strengths.append(best)
    return Probed(predicted, accuracies, strengths)


def majority_of_parts(sample: Sample) -> float:
    """Return the accuracy of always predicting the most frequent class of the training parts.

    It is the mean over parts, as is that of a probe.
    """
    found = []
    for part in range(int(sample.parts.max()) + 1):
        train, test = sample.train_and_test(part)
        found.append(majority(sample.y[train], sample.y[test]) or 0.0)
    return float(np.mean(found))


def shuffled_labels(sample: Sample, seed: int) -> Integers:
    """Return the classes shuffled over the recordings of each part.

    All segments of a recording keep one class; those of one recording that have different classes
    count as different recordings. Each part keeps its number of segments of each class, if its
    recordings are of one length: else a class that is rarer in one part would be more frequent in
    the others, and a probe that learned no more than frequencies would fall below chance.
    """
    keys = np.stack([sample.parts, sample.recordings, sample.y])
    units, unit = np.unique(keys, axis=1, return_inverse=True)
    order = shuffled_order(units.shape[1], seed, "shuffled labels")
    order = order[np.argsort(units[0, order], kind="stable")]  # units are sorted by part
    shuffled: Integers = units[2, order][unit.reshape(-1)]
    return shuffled
