"""Comparisons: intervals, tests and corrections against SciPy, enumeration, and coverage by simulation."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrec.evaluation import Evaluation, compare, compare_all
from jaxrec.evaluation._compare import holm
from jaxrec.evaluation._resampling import below, bootstrap_means, sign_flip_means, threefry


def result(values, **protocol):
    values = np.asarray(values, np.float32)
    return Evaluation({"ndcg@10": values}, int((~np.isnan(values)).sum()), {}, protocol)


def pair(n=40, shift=0.1, seed=0):
    rng = np.random.default_rng(seed)
    b = rng.random(n)
    return result(b + shift + 0.2 * rng.normal(size=n)), result(b)


def test_the_difference_and_the_tests_are_scipys():
    a, b = pair()
    found = compare(a, b, resamples=200)
    x, y = (each["ndcg@10"].astype(np.float64) for each in (a, b))
    assert found.difference == pytest.approx((x - y).mean(), rel=1e-6)
    assert (found.mean_a, found.mean_b) == pytest.approx((x.mean(), y.mean()))
    assert found.effect_size == pytest.approx((x - y).mean() / (x - y).std(ddof=1))
    assert found.p_t == pytest.approx(stats.ttest_rel(x, y).pvalue, rel=1e-6)
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(x - y, method="approx").pvalue, rel=1e-6)


def test_the_interval_is_the_bootstraps():
    """As SciPy's percentile interval, up to the error of 20,000 resamples; and the level is respected."""
    a, b = pair()
    d = a["ndcg@10"].astype(np.float64) - b["ndcg@10"]
    for level in (0.5, 0.95):
        found = compare(a, b, level=level, resamples=20_000)
        expected = stats.bootstrap(
            (d,), np.mean, confidence_level=level, n_resamples=20_000, method="percentile", rng=1
        )
        tolerance = 0.05 * d.std() / math.sqrt(len(d))
        assert abs(found.low - expected.confidence_interval.low) < tolerance
        assert abs(found.high - expected.confidence_interval.high) < tolerance


def test_p_is_the_share_of_sign_flips_with_as_large_a_mean():
    """All 2^9 sign flips are enumerated; ties at the observed value count."""
    d = np.array([0.3, -0.1, 0.2, 0.2, 0.0, 0.4, -0.2, 0.1, 0.1])
    means = [abs(np.mean(np.array(signs) * d)) for signs in itertools.product((1, -1), repeat=len(d))]
    exact = np.mean(np.array(means) >= abs(d.mean()) - 1e-9)
    found = compare(result(d), result(np.zeros(9)), resamples=40_000)
    assert abs(found.p - exact) < 4 * math.sqrt(exact * (1 - exact) / 40_000)


@pytest.mark.slow
def test_without_a_difference_p_is_uniform_and_the_interval_covers_zero():
    """400 simulated comparisons of equal models: 5 % have p below 0.05, 95 % of the intervals hold 0."""
    below = covered = 0
    for seed in range(400):
        found = compare(*pair(n=60, shift=0.0, seed=seed), resamples=400, rng=seed)
        below += found.p < 0.05
        covered += found.low <= 0 <= found.high
    assert abs(below - 20) < 4 * math.sqrt(400 * 0.05 * 0.95)
    assert abs(covered - 380) < 5 * math.sqrt(400 * 0.05 * 0.95)


@pytest.mark.parametrize("n", [2, 31, 32, 33, 1000])
def test_a_large_difference_is_found_for_any_number_of_users(n):
    found = compare(result(np.linspace(1, 2, n)), result(np.zeros(n)), resamples=1000)
    assert found.low > 0
    assert found.p == pytest.approx(2 / 2**n + 1 / 1001, abs=0.06) if n == 2 else found.p < 0.01


def test_equal_models_are_equal():
    a, _ = pair()
    found = compare(a, a, resamples=100)
    values = found.difference, found.low, found.high, found.effect_size, found.p, found.p_t, found.p_wilcoxon
    assert values == (0, 0, 0, 0, 1, 1, 1)


def test_a_constant_difference_has_an_infinite_effect():
    found = compare(result(np.ones(5)), result(np.zeros(5)), resamples=100)
    assert (found.low, found.high, found.effect_size, found.p_t) == (1, 1, math.inf, 0)


def test_users_without_a_value_by_both_are_left_out():
    a, b = result([0.5, np.nan, 0.25, 1.0]), result([0.25, 0.75, np.nan, 0.5])
    found = compare(a, b, resamples=100)
    assert found.n_users == 2
    assert (found.mean_a, found.mean_b, found.difference) == (0.75, 0.375, 0.375)


def test_runs_are_averaged_per_user_first():
    """Three seeds: the users are the units, and the runs' differences are reported beside them."""
    pairs = [pair(seed=0), pair(shift=0.15, seed=0), pair(shift=0.05, seed=0)]
    found = compare([a for a, _ in pairs], [b for _, b in pairs], resamples=500)
    one = compare(*pairs[0], resamples=500)
    assert found.n_users == one.n_users == 40
    assert found.n_runs == 3
    assert found.difference == pytest.approx(one.difference, abs=1e-6)
    assert found.low == pytest.approx(one.low, abs=1e-6)
    assert found.run_deviation == pytest.approx(0.05, rel=1e-4)
    assert math.isnan(one.run_deviation)


def test_folds_cover_users_who_have_a_value_in_some():
    first, second = result([0.5, np.nan, 0.5]), result([np.nan, 1.0, 0.7])
    zeros = result([0.0, np.nan, 0.0]), result([np.nan, 0.5, 0.0])
    found = compare([first, second], list(zeros), resamples=50)
    assert found.n_users == 3
    assert found.difference == pytest.approx(np.mean([0.5, 0.5, 0.6]))


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (result([1, 2]), result([1, 2, 3]), {}, r"expected the same \[runs, users\], got \(1, 2\) and \(1, 3\)"),
        ([result([1, 2])] * 2, result([1, 2]), {}, "expected the same .runs, users."),
        (result([1, np.nan]), result([np.nan, 1]), {}, "expected at least two users with a value by both, got 0"),
        (result([1, 2], ties="worst"), result([1, 2], ties="lowest_id"), {}, "got ties: worst and lowest_id"),
        (result([1, 2]), result([1, 2]), {"metric": "recall@10"}, "metric: expected one of ndcg@10, got 'recall@10'"),
        (result([1, 2]), result([1, 2]), {"level": 95}, "level: expected a number in"),
        (result([1, 2]), result([1, 2]), {"resamples": 0}, "resamples: expected a whole number >= 1"),
        (np.ones(3), np.ones(3), {}, "expected results of `evaluate`"),
    ],
)
def test_what_cannot_be_compared_is_refused(a, b, options, message):
    with pytest.raises(ValueError, match=message):
        compare(a, b, **options)


def test_other_raw_ids_are_refused():
    values = np.float32([0.1, 0.2])
    a, b = (Evaluation({"ndcg@10": values}, 2, {}, {}, np.array(ids)) for ids in ((1, 2), (2, 1)))
    with pytest.raises(ValueError, match="same users, got other raw ids"):
        compare(a, b)


def test_holms_correction_by_hand_and_against_the_definition():
    assert holm([0.01]).tolist() == [0.01]
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.005]), [0.06, 0.03, 0.06, 0.02])
    rng = np.random.default_rng(0)
    for _ in range(100):
        p = rng.random(6) ** 3
        order = np.argsort(p)
        expected = [min(1, max((6 - s) * p[order[s]] for s in range(r + 1))) for r in range(6)]
        np.testing.assert_allclose(holm(p)[order], expected)


def test_all_models_against_a_baseline():
    base = pair()[1]
    models = {"base": base, "better": pair(shift=0.3)[0], "equal": base}
    found = compare_all(models, baseline="base", resamples=999)
    assert found.models == ("better", "equal")
    assert found.comparisons[0].to_dict() == compare(models["better"], base, resamples=999).to_dict()
    assert found.p_corrected == pytest.approx((0.002, 1.0))
    lines = repr(found).splitlines()
    assert lines[1].startswith("better  ndcg@10")
    assert lines[-1] == "each minus base, over 40 users"
    assert found.to_polars()["model"].to_list() == ["better", "equal"]
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["baseline"] == "base"
    with pytest.raises(ValueError, match="baseline: expected one of 'base', 'better', 'equal', got 'best'"):
        compare_all(models, baseline="best")
    with pytest.raises(ValueError, match="at least one model beside the baseline"):
        compare_all({"base": base}, baseline="base")


@pytest.mark.parametrize("n", [1, 2, 30_000, 2**16 - 1, 2**16, 2**16 + 1, 10**6 + 7, 2**31 - 1])
def test_random_bits_become_numbers_below_n(n):
    """Against Python's integers of any length, at the ends and in between."""
    bits = np.r_[0, 1, 2**16 - 1, 2**16, 2**31, 2**32 - 1, np.random.default_rng(0).integers(0, 2**32, 1000)]
    expected = [int(b) * n >> 32 for b in bits]
    assert np.asarray(below(n, jnp.asarray(bits, jnp.uint32))).tolist() == expected


def test_the_random_words_are_threefrys():
    """As JAX's own implementation has them."""
    from jax.extend.random import threefry_2x32

    seed, counter = jnp.array([7, 2**32 - 1], jnp.uint32), jnp.arange(1000, dtype=jnp.uint32) * jnp.uint32(4_294_967)
    got = jnp.concatenate(threefry(seed, counter[:500], counter[500:]))
    np.testing.assert_array_equal(got, threefry_2x32(seed, counter))


@pytest.mark.parametrize("n", [1, 2, 7, 64, 65, 200])
def test_resampled_means_are_those_of_the_words_one_resample_at_a_time(n):
    """Two users per step from two words; 64 signs per step from their bits, the first word's at the even users."""
    d, key, resamples = np.random.default_rng(n).normal(size=n).astype(np.float32), jax.random.key(n), 5
    seed = jax.random.key_data(key)
    words = lambda step, r: [int(w) for w in threefry(seed, jnp.uint32(r), jnp.uint32(step))]
    for r, (mean, signed) in enumerate(
        zip(*(f(jnp.asarray(d), key, resamples=resamples) for f in (bootstrap_means, sign_flip_means)), strict=True)
    ):
        drawn = [d[word * n >> 32] for step in range(-(-n // 2)) for word in words(step, r)][:n]
        assert mean == pytest.approx(np.mean(drawn, dtype=np.float64), abs=1e-6)
        of_step = [words(step, r) for step in range(-(-n // 64))]
        signs = [1 if of_step[j // 64][j % 2] >> (j % 64 // 2) & 1 else -1 for j in range(n)]
        assert signed == pytest.approx(np.mean(signs * d.astype(np.float64)), abs=1e-6)


@pytest.mark.slow
def test_means_of_many_users_keep_their_digits():
    """A million values near 1000: the resampled means differ from one another in the sixth digit."""
    d = 1000 + np.random.default_rng(0).normal(size=2**20).astype(np.float32)
    means = np.asarray(bootstrap_means(jnp.asarray(d), jax.random.key(0), resamples=64), np.float64)
    assert means.std() == pytest.approx(2**-10, rel=0.5)
    assert abs(means.mean() - d.mean(dtype=np.float64)) < 5e-4
