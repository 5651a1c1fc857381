"""Probes of simulated representations, whose answer is known, against scikit-learn and formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from antigram.studies.probe import classifiers
from antigram.studies.probe.classifiers import (
    GRIDS,
    best_strength,
    log_probabilities,
    majority_of_parts,
    run_probe,
    shuffled_labels,
    standardised,
)
from antigram.studies.probe.code_length import block_ends, code_length
from antigram.studies.probe.division import Sample, divide
from antigram.studies.probe.similarity import linear_cka


def sample_of(y, groups, recordings=None, parts=None, seed=0):
    y, groups = np.asarray(y, np.int64), np.asarray(groups, np.int64)
    return Sample(
        rows=np.arange(len(y)),
        y=y,
        classes=[str(name) for name in range(y.max() + 1)],
        groups=groups,
        recordings=np.arange(len(y)) if recordings is None else np.asarray(recordings),
        parts=divide(groups, 5, seed) if parts is None else np.asarray(parts),
        split="all",
        groups_label="word",
        left_out=[],
    )


def grid(speakers=4, words=10, takes=5):
    """Speaker and word of each segment: every speaker says every word a number of times."""
    cells = np.arange(speakers * words * takes) // takes
    return cells // words, cells % words


def planted(rng, y, columns=12, strength=1.5):
    means = rng.standard_normal((y.max() + 1, columns))
    return strength * means[y] + rng.standard_normal((len(y), columns))


def of_uneven_words(rng, y, words, columns):
    """A planted label in columns of different scales, in which some words are far off."""
    x = planted(rng, y, columns, 0.4) * 10.0 ** rng.integers(-3, 4, columns)
    x[words == 3, 0] *= 1000
    x[words == 7, 1] *= 300
    return x


@pytest.mark.parametrize("columns", [3, 40])
def test_a_linear_probe_predicts_what_scikit_learn_predicts(columns, rng):
    y, words = grid()
    x = of_uneven_words(rng, y, words, columns)
    sample = sample_of(y, words)
    found = run_probe("linear", x, sample, 0)
    for part in range(5):
        train, test = sample.parts != part, sample.parts == part
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=found.strengths[part], max_iter=1000)
        ).fit(x[train], y[train])
        np.testing.assert_array_equal(found.predicted[test], model.predict(x[test]))
        assert found.accuracies[part] == model.score(x[test], y[test])
    assert found.accuracy == pytest.approx(found.accuracies.mean())


def test_standardisation_that_sees_test_rows_changes_what_is_predicted(rng, monkeypatch):
    """The test above has the power to find that leak."""
    y, words = grid()
    x = of_uneven_words(rng, y, words, 3)
    sample = sample_of(y, words)
    honest = run_probe("linear", x, sample, 0).predicted

    def leaky(train, test):
        scaler = StandardScaler().fit(np.concatenate([train, test]))
        return scaler.transform(train), scaler.transform(test)

    monkeypatch.setattr(classifiers, "standardised", leaky)
    assert (run_probe("linear", x, sample, 0).predicted != honest).any()


def test_test_rows_have_no_influence_on_the_scale_of_training_rows(rng):
    train = rng.standard_normal((30, 4)).astype(np.float32)
    train[:, 2] = 5  # a dead channel
    scaled, _ = standardised(train, 1e6 * rng.standard_normal((9, 4)))
    again, test = standardised(train, train[:2])
    np.testing.assert_array_equal(scaled, again)
    np.testing.assert_allclose(scaled[:, [0, 1, 3]].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled[:, [0, 1, 3]].std(0), 1)
    np.testing.assert_array_equal(scaled[:, 2], 0)
    np.testing.assert_array_equal(test, scaled[:2])


def test_what_is_predicted_of_a_part_does_not_depend_on_that_parts_classes(rng):
    y, words = grid()
    x = planted(rng, y, strength=0.3)
    sample = sample_of(y, words)
    for kind in ("linear", "mlp"):
        honest = run_probe(kind, x, sample, 0)
        other = np.where(sample.parts == 2, (y + 1) % 4, y)
        found = run_probe(kind, x, sample, 0, other)
        tested = sample.parts == 2
        np.testing.assert_array_equal(found.predicted[tested], honest.predicted[tested])
        assert found.strengths[2] == honest.strengths[2]


def test_c_is_the_one_with_the_least_loss_on_inner_parts(rng):
    chosen = set()
    for strength in (0.0, 0.3, 3.0):
        y, words = grid()
        x = planted(rng, y, strength=strength)
        sample = sample_of(y, words)
        train, _ = sample.train_and_test(0)
        inner = sample.inner(train, 3, 0)
        assert sorted(np.concatenate([test for _, test in inner])) == train.tolist()
        losses = []
        for c in GRIDS["linear"]:
            models = [
                make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
                for _ in inner
            ]
            losses.append(
                sum(
                    log_loss(y[b], model.fit(x[a], y[a]).predict_proba(x[b]), normalize=False)
                    for model, (a, b) in zip(models, inner, strict=True)
                )
            )
        best = best_strength("linear", x, y, 4, inner, 0)
        assert best == GRIDS["linear"][int(np.argmin(losses))]
        chosen.add(best)
    assert len(chosen) > 1


def test_a_planted_label_is_found_by_both_probes(rng):
    y, words = grid()
    sample = sample_of(y, words)
    x = planted(rng, y)
    assert run_probe("linear", x, sample, 0).accuracy > 0.95
    assert run_probe("mlp", x, sample, 0).accuracy > 0.95
    assert run_probe("linear", x, sample, 0, shuffled_labels(sample, 0)).accuracy < 0.4


def test_only_the_mlp_finds_what_is_not_linear(rng):
    y, words = grid(2, 10, 20)
    angle = rng.uniform(0, 2 * np.pi, len(y))
    x = (1 + 2 * y)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    sample = sample_of(y, words)
    assert run_probe("linear", x, sample, 0).accuracy < 0.65
    assert run_probe("mlp", x, sample, 0).accuracy > 0.95


def accuracies(make, kind="linear", count=12):
    found = []
    for _ in range(count):
        x, sample = make()
        found.append(run_probe(kind, x, sample, 0).accuracy)
    return np.array(found)


def assert_chance(found, chance):
    """Mean of simulated studies within 3.5 standard errors of chance."""
    error = found.std(ddof=1) / math.sqrt(len(found))
    assert error < 0.02  # else the test could find nothing
    assert abs(found.mean() - chance) < 3.5 * error


MANY = pytest.mark.slow  # more simulated studies, in which a smaller bias shows


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("linear", 12),
        ("mlp", 6),
        pytest.param("linear", 200, marks=MANY),
        pytest.param("mlp", 60, marks=MANY),
    ],
)
def test_probes_of_noise_are_at_chance(kind, count, rng):
    def make():
        y, words = grid(4, 10, 3)
        return rng.standard_normal((len(y), 10)), sample_of(y, words, seed=rng.integers(1000))

    assert_chance(accuracies(make, kind, count), 0.25)


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=MANY)])
def test_a_representation_of_the_group_alone_is_at_chance(count, rng):
    def make():
        y, words = grid(4, 10, 3)
        y = rng.integers(0, 4, len(y))  # else the balanced design makes it exactly chance
        return planted(rng, words), sample_of(y, words, seed=rng.integers(1000))

    assert_chance(accuracies(make, count=count), 0.25)


def test_segments_of_one_recording_are_never_learned_and_tested(rng):
    """They are alike, and their recording's class is drawn: a leak would be right every time."""

    def make():
        recordings = np.arange(160) // 4
        y = rng.integers(0, 4, 40)[recordings]
        x = planted(rng, recordings, columns=20, strength=5)
        return x, sample_of(y, rng.integers(0, 15, 160), recordings, seed=rng.integers(1000))

    sample = make()[1]
    for part in range(5):
        train, test = sample.train_and_test(part)
        assert not set(sample.recordings[train]) & set(sample.recordings[test])
        for inner_train, inner_test in sample.inner(train, 3, 0):
            assert not set(sample.recordings[inner_train]) & set(sample.recordings[inner_test])
            assert not set(inner_test) & set(test)
    found = accuracies(make)
    # As segments of a tested recording are left out, few are left, and chance is met from below.
    assert found.mean() < 0.25 + 3.5 * found.std(ddof=1) / math.sqrt(len(found))


def test_a_combination_that_was_heard_says_nothing_of_held_out_groups(rng):
    """One direction for each speaker's each word: separable, but useless for another word."""
    y, words = grid(4, 10, 6)
    x = np.eye(40)[y * 10 + words] + 0.01 * rng.standard_normal((len(y), 40))
    held_out = run_probe("linear", x, sample_of(y, words), 0).accuracy
    heard = run_probe("linear", x, sample_of(y, words, parts=np.arange(len(y)) % 3), 0).accuracy
    assert heard == 1
    assert held_out < 0.45


def test_recalls_of_noise_are_at_chance_though_classes_are_not_balanced(rng):
    found = []
    for _ in range(10):
        y = np.repeat([0, 1, 2], [120, 40, 20])
        sample = sample_of(y, rng.integers(0, 10, len(y)), seed=rng.integers(1000))
        probed = run_probe("linear", rng.standard_normal((len(y), 8)), sample, 0)
        found.append(np.mean([(probed.predicted[y == c] == c).mean() for c in range(3)]))
        assert probed.accuracy < majority_of_parts(sample) + 0.03
    assert_chance(np.array(found), 1 / 3)


def test_majority_is_that_of_the_training_parts():
    y = np.array([0, 0, 0, 1, 1, 1, 1, 1, 0, 0])
    sample = sample_of(y, np.arange(10), parts=[0] * 5 + [1] * 5)
    # Part 1 has more of class 1, part 0 of class 0.
    assert majority_of_parts(sample) == pytest.approx((2 / 5 + 2 / 5) / 2)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("seen", [[1], [0, 2], [0, 1, 2, 3]], ids=str)
def test_probabilities_sum_to_one_with_classes_that_were_not_seen(kind, seen, rng):
    y = np.repeat(seen, 6)
    x, test = rng.standard_normal((len(y), 3)), 1e3 * rng.standard_normal((7, 3))
    grid_of = GRIDS[kind]
    for log_p in log_probabilities(kind, x, test, y, 4, grid_of, 0):
        assert np.isfinite(log_p).all()
        np.testing.assert_allclose(np.exp(log_p).sum(1), 1, rtol=1e-9)
        if 3 not in seen:
            np.testing.assert_allclose(np.exp(log_p[:, 3]), 1 / (len(y) + 4 - len(seen)))


@pytest.mark.parametrize(("groups", "count"), [(3, 5), (5, 5), (40, 5), (7, 2)])
def test_parts_share_no_group_and_are_about_as_large(groups, count, rng):
    group = rng.integers(0, groups, 400)
    parts = divide(group, count, 3)
    assert {len(set(parts[group == g])) for g in np.unique(group)} == {1}
    sizes = np.bincount(parts)
    assert len(sizes) == min(count, groups)
    assert sizes.max() - sizes.min() <= np.bincount(group).max()
    np.testing.assert_array_equal(parts, divide(group, count, 3))
    even = np.arange(400) % groups  # the seed decides between groups of one size
    drawn = {tuple(divide(even, count, seed)) for seed in range(9)}
    assert len(drawn) > 1


def test_a_single_inner_group_is_divided_by_recording(rng):
    y = np.tile([0, 1], 20)
    sample = sample_of(y, np.repeat([0, 1], 20), np.arange(40) // 4, parts=np.repeat([0, 1], 20))
    train, _ = sample.train_and_test(1)
    inner = sample.inner(train, 3, 0)
    assert len(inner) == 3
    for one, two in inner:
        assert not set(sample.recordings[one]) & set(sample.recordings[two])


def test_shuffled_labels_keep_recordings_and_classes(rng):
    recordings = np.arange(200) // 4
    y = rng.integers(0, 5, 50)[recordings]
    sample = sample_of(y, recordings, recordings)
    shuffled = shuffled_labels(sample, 0)
    assert (shuffled.reshape(50, 4) == shuffled.reshape(50, 4)[:, :1]).all()
    for part in range(5):
        inside = sample.parts == part
        np.testing.assert_array_equal(np.sort(shuffled[inside]), np.sort(y[inside]))
    assert np.mean(shuffled == y) < 0.5


@pytest.mark.parametrize("size", [1, 3])
def test_blocks_of_a_code_divide_no_recording(size):
    recordings = np.arange(120) // size
    ends = block_ends(recordings)
    assert ends == [size * math.ceil(e / size) for e in (3, 7, 15, 30, 60, 120)]
    assert block_ends(np.zeros(5, np.int64)) == [5]
    assert block_ends(np.arange(2)) == [1, 2]


def test_the_first_block_takes_the_uniform_code_and_one_recording_all_of_it(rng):
    sample = sample_of(np.tile([0, 1, 2, 3], 5), np.arange(20), np.zeros(20, np.int64))
    assert code_length(rng.standard_normal((20, 3)), sample, 0) == pytest.approx(2)


def test_a_code_is_short_where_the_label_is_easy_to_learn(rng):
    y, words = grid(4, 10, 10)
    sample = sample_of(y, words)
    easy, hard, none = (code_length(planted(rng, y, 12, s), sample, 0) for s in (3, 0.5, 0))
    assert easy < 0.5
    assert easy < hard - 0.3
    assert hard < none - 0.1
    assert 1.98 < none < 2.3  # log2(4), and what noise costs


def hsic_1(k, m):
    """Equation 5 of Song and others (2012), term by term."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    terms = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (terms - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


@pytest.mark.parametrize("columns", [(3, 3), (40, 7)])
def test_cka_is_that_of_the_formulas(columns, rng):
    common = rng.standard_normal((25, 2))
    one, two = (
        common @ rng.standard_normal((2, c)) + rng.standard_normal((25, c)) + 100 for c in columns
    )
    plain, debiased = linear_cka(one, two)
    a, b = one - one.mean(0), two - two.mean(0)
    # In the space of columns (Kornblith and others 2019, equation 5)
    norms = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    assert plain == pytest.approx(np.linalg.norm(b.T @ a) ** 2 / norms, rel=1e-10)
    k, m = one @ one.T, two @ two.T
    want = hsic_1(k, m) / math.sqrt(hsic_1(k, k) * hsic_1(m, m))
    assert debiased == pytest.approx(want, rel=1e-6)


def test_cka_does_not_see_rotations_and_debiased_is_zero_for_independent_ones(rng):
    x = rng.standard_normal((30, 8))
    turned = 7 * x @ np.linalg.qr(rng.standard_normal((8, 8)))[0][:, ::-1] + 3
    assert linear_cka(x, turned) == pytest.approx((1, 1))
    found = np.array([linear_cka(*rng.standard_normal((2, 20, 100))) for _ in range(200)])
    assert found[:, 0].mean() > 0.8  # independent, and yet
    assert abs(found[:, 1].mean()) < 3.5 * found[:, 1].std() / math.sqrt(200)
    assert all(map(math.isnan, linear_cka(np.ones((9, 3)), x[:9])))
