"""Statistics against independent implementations, and what they promise on simulated studies."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from antigram.studies.statistics import (
    Interval,
    bootstrap_interval,
    clustered_p,
    compare_arms,
    holm,
    interval_over_groups,
    least_p,
    mean_of_groups,
    resampled_p,
    resampled_t,
    sign_flip_p,
    t_interval,
    two_way,
    verdict,
)
from benchmarks.intervals import simulate


def test_the_t_interval_is_scipys(rng):
    values = rng.normal(0.01, 0.03, 9)
    want = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    got = t_interval(values)
    assert (got.low, got.high) == pytest.approx((want.low, want.high), rel=1e-12)
    assert math.isnan(t_interval(values[:1]).low)


def test_the_bootstrap_over_groups_is_scipys(rng):
    values = rng.normal(0.01, 0.03, (40, 1))
    want = stats.bootstrap(
        (values[:, 0],), np.mean, n_resamples=20_000, method="percentile", rng=rng
    ).confidence_interval
    got = bootstrap_interval(values, np.zeros(40, int), 7, draws=20_000)
    assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=4e-4)


def test_the_bootstrap_draws_networks_as_loops_do(rng):
    values, fold = simulate(rng, 24, 3, 4, of_network=0.05)
    means = []
    for _ in range(4000):
        seeds = {k: rng.integers(4, size=4) for k in range(3)}
        picked = rng.integers(24, size=24)
        means.append(np.mean([values[g, seeds[fold[g]]].mean() for g in picked]))
    got = bootstrap_interval(values, fold, 1, draws=20_000)
    want = np.percentile(means, [2.5, 97.5])
    assert (got.low, got.high) == pytest.approx(tuple(want), abs=3e-3)


def test_sign_flips_are_listed_and_agree_with_scipys_permutation_test(rng):
    values = rng.normal(0.02, 0.03, 8)
    want = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert sign_flip_p(values, 0) == pytest.approx(want, abs=1e-12)
    every = [np.dot(s, values) for s in itertools.product((-1, 1), repeat=8)]
    assert sign_flip_p(values, 0) == np.mean(np.abs(every) >= abs(values.sum()) - 1e-12)


def test_drawn_sign_flips_come_close_to_the_listed_ones_and_are_never_zero(rng):
    values = rng.normal(0.008, 0.03, 25)
    normal = 2 * stats.norm.sf(abs(values.sum()) / np.sqrt((values**2).sum()))
    assert sign_flip_p(values, 3) == pytest.approx(normal, abs=0.01)
    assert sign_flip_p(np.full(30, 0.1), 3) == least_p(30) == 1 / 100_001


def test_ties_count_in_full():
    assert sign_flip_p(np.zeros(6), 0) == 1
    assert sign_flip_p(np.full(6, 0.1), 0) == least_p(6) == 2 / 64


def test_holm_is_that_of_statsmodels(rng):
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="needs statsmodels")
    for _ in range(20):
        p = rng.random(6) ** 3
        p[3] = p[1]
        assert holm(p.tolist()) == pytest.approx(multitest.multipletests(p, method="holm")[1])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_the_variance_is_clustered_as_statsmodels_does_it(rng):
    linear = pytest.importorskip("statsmodels.api", reason="needs statsmodels")
    values, fold = simulate(rng, 12, 3, 4)
    group = np.repeat(np.arange(12), 4)
    network = (fold[:, None] * 4 + np.arange(4)).ravel()
    fit = linear.OLS(values.ravel(), np.ones(values.size)).fit()
    by = [
        fit.get_robustcov_results("cluster", groups=g, use_correction=False).cov_params()[0, 0]
        for g in (group, network, np.arange(values.size))
    ]
    parts = by[0] * 12 / 11, by[1] * 12 / 11
    got, freedom = two_way(values, fold)
    assert freedom == 11
    assert got == pytest.approx(max(parts[0] + parts[1] - by[2], *parts), rel=1e-9)


def test_groups_that_are_tested_in_several_folds_are_clustered_as_statsmodels_does_it(rng):
    """Two networks of a group are two networks, and not one mean of both."""
    linear = pytest.importorskip("statsmodels.api", reason="needs statsmodels")
    groups, folds, seeds = 12, 2, 3
    group, fold = (each.ravel() for each in np.indices((groups, folds)))
    values = rng.standard_normal((groups, 1, 1)) + rng.standard_normal((groups, folds, seeds))
    values = values.reshape(-1, seeds)
    of_group = np.repeat(group, seeds)
    network = (fold[:, None] * seeds + np.arange(seeds)).ravel()
    fit = linear.OLS(values.ravel(), np.ones(values.size)).fit()

    def clustered(g):
        found = fit.get_robustcov_results("cluster", groups=g, use_correction=False)
        return found.cov_params()[0, 0]

    of_groups = clustered(of_group) * groups / (groups - 1)
    of_networks = clustered(network) * folds * seeds / (folds * seeds - 1)
    single = clustered(np.arange(values.size))
    got, freedom = two_way(values, fold, group)
    assert got == pytest.approx(max(of_groups + of_networks - single, of_groups, of_networks))
    assert freedom == folds * seeds - 1
    np.testing.assert_allclose(
        mean_of_groups(values, group), values.reshape(groups, -1).mean(1), rtol=1e-12
    )
    shuffled = rng.permutation(len(values))
    again, same = two_way(values[shuffled], fold[shuffled], group[shuffled])
    assert again == pytest.approx(got)
    assert same == freedom


def test_rows_that_are_groups_need_no_groups(rng):
    values, fold = rng.standard_normal((24, 3)), np.repeat(np.arange(4), 6)
    rows = np.arange(24)
    assert two_way(values, fold) == two_way(values, fold, rows)
    assert bootstrap_interval(values, fold, 1, 500) == bootstrap_interval(
        values, fold, 1, 500, rows
    )
    assert clustered_p(values, fold) == clustered_p(values, fold, rows)


def test_the_bootstrap_draws_a_group_with_all_its_folds(rng):
    """If the two folds of a group cancel out, no draw of groups moves the mean."""
    effect = np.repeat(rng.standard_normal(25), 2) * np.tile([1.0, -1.0], 25)
    values = np.repeat(effect[:, None], 4, axis=1)
    group, fold = np.repeat(np.arange(25), 2), np.tile([0, 1], 25)
    together = bootstrap_interval(values, fold, 0, 1000, group)
    apart = bootstrap_interval(values, fold, 0, 1000)
    assert together.high - together.low < 1e-12 < 0.1 < apart.high - apart.low


def test_the_interval_of_resplits_is_the_corrected_one(rng):
    values = rng.normal(0.01, 0.02, 10)
    got = resampled_t(values, 0.1 / 0.7)
    half = stats.t.ppf(0.975, 9) * values.std(ddof=1) * math.sqrt(1 / 10 + 1 / 7)
    assert got.high - got.mean == pytest.approx(half, rel=1e-12)


def test_the_corrected_test_agrees_with_its_interval_and_its_formula():
    """Nadeau and Bengio (2003), with plain numbers: 2 test segments for 8 in training."""
    values = [0.03, -0.01, 0.02, 0.04, 0.01]
    mean = sum(values) / 5
    corrected = sum((v - mean) ** 2 for v in values) / 4 * (1 / 5 + 2 / 8)
    t = mean / math.sqrt(corrected)
    p = resampled_p(np.array(values), 2 / 8)
    # The tail of Student's t with four degrees of freedom is known in closed form.
    share = t / math.sqrt(4 + t * t)
    assert p == pytest.approx(1 - share * (1 + (1 - share**2) / 2), rel=1e-9)
    shifted = np.array(values) - resampled_t(np.array(values), 2 / 8).low
    assert resampled_p(shifted, 2 / 8) == pytest.approx(0.05, rel=1e-9)


def test_resplits_that_do_not_differ_have_a_p_too():
    assert resampled_p(np.zeros(4), 0.1) == 1
    assert resampled_p(np.full(4, 0.25), 0.1) == 0
    assert resampled_p(np.array([0.25]), 0.1) == 1


def test_the_corrected_test_finds_differences_of_equal_learners_less_often(rng):
    """Two learners that are equally good, on 15 random resplits of one data set of 40 points."""
    plain = corrected = 0
    for _ in range(300):
        classes = np.repeat([-1.0, 1.0], 20)
        x = rng.standard_normal((40, 2)) + 0.5 * classes[:, None]  # a feature for each learner
        differences = []
        for _ in range(15):
            order = rng.permutation(40)
            train, test = order[:32], order[32:]
            means = np.array([x[train][classes[train] == side].mean(0) for side in (-1, 1)])
            right = np.sign(x[test] - means.mean(0)) == classes[test][:, None]
            differences.append(right[:, 0].mean() - right[:, 1].mean())
        values = np.array(differences)
        plain += bool(values.any() and stats.ttest_1samp(values, 0).pvalue < 0.05)
        corrected += resampled_p(values, 8 / 32) < 0.05
    assert plain > 90  # 30 % where 5 % were promised
    assert corrected < 45


@pytest.mark.parametrize(
    ("interval", "p", "want"),
    [
        ((0.02, 0.01, 0.03), 0.01, "better"),
        ((-0.02, -0.03, -0.01), 0.01, "worse"),
        ((0.002, 0.001, 0.003), 0.01, "equivalent"),
        ((0.002, -0.005, 0.005), 0.9, "equivalent"),
        ((0.002, -0.006, 0.004), 0.9, "undecided"),
        ((0.02, 0.01, 0.03), 0.06, "undecided"),
        ((0.02, math.nan, math.nan), 1.0, "undecided"),
    ],
)
def test_verdicts(interval, p, want):
    assert verdict(Interval(*interval), p) == want


def test_an_arm_is_held_against_the_baseline_pair_by_pair(rng):
    noise, fold = simulate(rng, 30, 5, 3, of_network=0)
    base = 0.8 + rng.normal(0, 0.2, (30, 3))  # far more than the difference
    done = compare_arms(base, {"at": base + 0.05 + noise, "none": base + noise / 50}, fold)
    assert done["at"].verdict == "better"
    assert done["at"].difference.mean == pytest.approx(0.05 + noise.mean())
    assert done["none"].verdict == "equivalent"
    assert done["at"].p_holm >= done["at"].p


def test_with_few_groups_the_word_is_that_nothing_can_be_decided(rng):
    base = np.zeros((6, 3))
    arms = {name: base + 0.1 + rng.normal(0, 0.001, (6, 3)) for name in ("wi", "at")}
    done = compare_arms(base, arms, np.arange(6))
    assert done["at"].verdict == "undecided"
    assert done["at"].note.startswith("cannot be decided with 6 groups: p cannot come below 0.062")
    assert compare_arms(base, arms, np.arange(6), family=["at"])["at"].verdict == "better"


def test_one_network_decides_nothing_however_many_speakers_it_heard(rng):
    base = np.zeros((40, 1))
    done = compare_arms(base, {"at": base + 0.1}, np.zeros(40, int))["at"]
    assert done.verdict == "undecided"
    assert "more seeds" in done.note


def test_an_arm_outside_of_the_family_is_exploratory(rng):
    base = np.zeros((30, 3))
    values, fold = simulate(rng, 30, 5, 3, effect=0.2)
    done = compare_arms(base, {"at": values, "other": values}, fold, family=["at"])
    assert done["at"].verdict == "better"
    assert (done["other"].verdict, math.isnan(done["other"].p_holm)) == ("undecided", True)


def test_the_noise_of_training_is_no_effect(rng):
    """Sign flips over speakers alone call the luck of three networks an effect."""
    flips = clustered = 0
    for _ in range(200):
        values, fold = simulate(rng, 30, 1, 3, of_group=0.01, of_network=0.04)
        flips += sign_flip_p(values.mean(1), 0, flips=999) < 0.05
        clustered += clustered_p(values, fold) < 0.05
    assert flips > 80
    assert clustered <= 20


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "low", "high"), [(30, 0.92, 0.97), (10, 0.92, 1), (6, 0.92, 1)])
def test_coverage_over_2000_simulated_studies(groups, low, high, rng):
    covered = 0
    for study in range(2000):
        values, fold = simulate(rng, groups, 5, 3)
        interval = interval_over_groups(values, fold, study, draws=1000)
        covered += interval.low <= 0 <= interval.high
    assert low <= covered / 2000 <= high


@pytest.mark.slow
def test_without_an_effect_a_verdict_is_rare_over_the_family(rng):
    said = 0
    for study in range(2000):
        base, fold = simulate(rng, 30, 5, 3)
        arms = {f"arm{n}": base + simulate(rng, 30, 5, 3)[0] for n in range(4)}
        done = compare_arms(base, arms, fold, seed=study, draws=500, flips=2000)
        said += any(each.verdict in ("better", "worse") for each in done.values())
    assert said / 2000 <= 0.05
