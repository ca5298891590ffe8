"""The re-ranker equals a greedy loop; curves of calibration and means of groups equal loops; masks and bad input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrec import metrics

CASES = 1000


def divergence(p, q, mixture=0.01):
    return sum(a * math.log(a / ((1 - mixture) * b + mixture * a)) for a, b in zip(p, q, strict=True) if a > 0)


def greedy(scores, categories, target, k, trade_off):
    """Steck's greedy selection, from the lists themselves in each step."""
    shares = [[value / sum(row) for value in row] if sum(row) > 0 else None for row in categories.tolist()]
    chosen, values = [], []

    def value(n):
        listed = [shares[i] for i in [*chosen, n] if shares[i] is not None]
        q = [sum(column) / len(listed) for column in zip(*listed, strict=True)] if listed else [0] * len(target)
        return (1 - trade_off) * scores[n] - trade_off * divergence(target, q)

    for _ in range(k):
        remaining = [n for n in range(len(scores)) if n not in chosen and scores[n] > -math.inf]
        if not remaining:
            chosen += [n for n in range(len(scores)) if n not in chosen][:1]
            continue
        values = {n: value(n) for n in remaining}
        best = max(values, key=values.get)
        tied = [n for n in remaining if values[best] - values[n] < 1e-5]
        # different candidates too near for float32: either is right, and the case says nothing
        if any(scores[n] != scores[best] or shares[n] != shares[best] for n in tied):
            return None
        chosen.append(min(tied))
    return chosen


def draw_candidates():
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 40, (CASES, 7)) / np.float32(8)
    scores[rng.random((CASES, 7)) < 0.15] = -np.inf
    categories = ((rng.random((CASES, 7, 3)) < 0.5) * rng.integers(1, 3, (CASES, 7, 1))).astype(np.float32)
    target = rng.dirichlet(np.ones(3), CASES).astype(np.float32)
    target[::10] = [1, 0, 0]
    return scores, categories, target, rng.integers(0, 5, CASES).astype(np.float32) / 4


def test_the_reranker_equals_a_greedy_loop():
    scores, categories, target, trade_off = draw_candidates()
    calibrate = lambda s, c, t, a: metrics.calibrate(s, c, t, k=5, trade_off=a)
    got = jax.jit(jax.vmap(calibrate))(scores, categories, target, trade_off)
    compared = 0
    for n in range(CASES):
        expected = greedy(scores[n], categories[n], target[n].tolist(), 5, float(trade_off[n]))
        if expected is not None:
            compared += 1
            assert got.positions[n].tolist() == expected, n
            np.testing.assert_array_equal(got.scores[n], scores[n][expected])
    assert compared > 0.6 * CASES, compared


def test_the_reranker_runs_in_float64(x64):
    """In which nothing is too near to be told apart, but for what is equal."""
    scores, categories, target, trade_off = (each[:50].astype(np.float64) for each in draw_candidates())
    target /= target.sum(axis=1, keepdims=True)
    calibrate = lambda s, c, t, a: metrics.calibrate(s, c, t, k=5, trade_off=a)
    got = jax.jit(jax.vmap(calibrate))(scores, categories, target, trade_off)
    assert got.scores.dtype == jnp.float64
    assert got.positions.dtype == jnp.int32
    expected = [greedy(*each[:3], 5, each[3]) for each in zip(scores, categories, target, trade_off, strict=True)]
    assert all(positions in (None, ids.tolist()) for positions, ids in zip(expected, got.positions, strict=True))
    assert sum(positions is not None for positions in expected) > 30


def test_the_ends_of_the_trade_off_and_what_lies_between():
    """0 keeps the order of the scores, and the more the categories count, the nearer the list is to the target."""
    rng = np.random.default_rng(0)
    scores, categories = np.sort(rng.normal(size=60))[::-1].astype(np.float32), np.eye(3)[rng.integers(0, 3, 60)]
    target = jnp.array([0.1, 0.2, 0.7])
    lists = [metrics.calibrate(scores, categories, target, k=10, trade_off=a).positions for a in (0.0, 0.5, 0.99)]
    assert lists[0].tolist() == list(range(10))
    history = np.flatnonzero(categories[:, 0])[:1].tolist() + np.flatnonzero(categories[:, 1])[:2].tolist()
    history += np.flatnonzero(categories[:, 2])[:7].tolist()  # ten items in the proportions of the target
    off = [float(metrics.miscalibration(ids, np.array(history), categories)) for ids in lists]
    assert off[0] > off[1] >= off[2]
    assert off[2] == pytest.approx(0, abs=1e-6)


def test_a_user_without_a_history_keeps_the_order_of_the_scores():
    categories = jnp.eye(3)
    target = metrics.category_distribution(jnp.array([0]), categories, filled=jnp.array([False]))
    assert np.isnan(target).all()
    got = metrics.calibrate(jnp.array([1.0, 3.0, 2.0]), categories, target, k=3, trade_off=1.0)
    assert got.positions.tolist() == [0, 1, 2], "with scores that do not count, the order is that of the positions"
    got = metrics.calibrate(jnp.array([1.0, 3.0, jnp.nan]), categories, target, k=3, trade_off=0.5)
    assert got.positions.tolist() == [1, 0, 2]


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 4}, "k: expected between 1 and the 3 candidates"),
        ({"trade_off": 1.5}, r"trade_off: expected a number in \[0, 1\]"),
        ({"mixture": 1.0}, r"mixture: expected a number in \(0, 1\)"),
        ({"target": np.array([0.5, 0.2, 0.2])}, "target: expected numbers >= 0 that sum to 1"),
        ({"target": np.array([0.5, 0.5])}, r"expected scores \[n\], categories \[n, c\] and target \[c\]"),
        ({"categories": -np.eye(3)}, "categories: expected finite numbers >= 0"),
    ],
)
def test_candidates_that_cannot_be_calibrated_are_refused(changed, message):
    given = {"scores": np.arange(3.0), "categories": np.eye(3), "target": np.full(3, 1 / 3)}
    given |= {"k": 2, "trade_off": 0.5} | changed
    with pytest.raises(ValueError, match=message):
        metrics.calibrate(given.pop("scores"), given.pop("categories"), given.pop("target"), **given)


def test_weighted_distributions_equal_repetition():
    categories = jnp.array([[1, 1, 0], [0, 1, 0], [0, 0, 2], [0, 0, 0]])
    weighted = metrics.category_distribution(
        jnp.array([0, 1, 2, 3]), categories, weights=jnp.array([2, 1, 3, 5]), filled=jnp.array([1, 1, 1, 1]) > 0
    )
    repeated = metrics.category_distribution(jnp.array([0, 0, 1, 2, 2, 2]), categories)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-6)
    np.testing.assert_allclose(weighted, [1 / 6, 2 / 6, 3 / 6], rtol=1e-6)
    # a NaN weight under the mask is not read
    masked = metrics.category_distribution(
        jnp.array([0, 1]), categories, weights=jnp.array([1.0, jnp.nan]), filled=jnp.array([True, False])
    )
    np.testing.assert_allclose(masked, [1 / 2, 1 / 2, 0], rtol=1e-6)


# Predicted against observed ratings

EDGES = np.array([1.0, 2.0, 2.5, 4.0, 5.0], np.float32)


def draw_pairs():
    rng = np.random.default_rng(1)
    prediction = rng.integers(0, 25, (CASES, 12)) / np.float32(4)  # from 0 to 6, many of them edges
    target, where = rng.integers(1, 6, (CASES, 12)).astype(np.float32), rng.random((CASES, 12)) < 0.7
    weights = rng.integers(0, 4, (CASES, 12)).astype(np.float32)
    where[0], weights[1] = False, 0
    return np.where(where, prediction, np.nan), np.where(where, target, np.inf), where, weights


def bins(prediction, target, where, weights):
    """(mean prediction, mean target, weight) of the bins, by a loop; NaN in empty ones."""
    found = [[] for _ in range(len(EDGES) - 1)]
    for p, y, counts, w in zip(prediction, target, where, weights, strict=True):
        if counts:
            found[sum(p > edge for edge in EDGES[1:-1])].append((w, p, y))
    mean = lambda pairs, n: sum(e[0] * e[n] for e in pairs) / sum(e[0] for e in pairs)
    empty = lambda pairs: not sum(e[0] for e in pairs)
    return [
        *([math.nan if empty(pairs) else mean(pairs, n) for pairs in found] for n in (1, 2)),
        [sum(e[0] for e in pairs) for pairs in found],
    ]


def test_curves_and_errors_of_calibration_equal_loops():
    drawn = draw_pairs()
    curve = jax.jit(jax.vmap(lambda p, y, r, w: metrics.calibration_curve(p, y, EDGES, where=r, weights=w)))(*drawn)
    error = jax.jit(jax.vmap(lambda p, y, r, w: metrics.calibration_error(p, y, EDGES, where=r, weights=w)))(*drawn)
    for n in range(CASES):
        prediction, target, weight = bins(*(each[n] for each in drawn))
        for got, expected in zip(curve, (prediction, target, weight), strict=True):
            np.testing.assert_allclose(got[n], expected, rtol=1e-6)
        used = [m for m in range(len(weight)) if weight[m]]
        off = sum(weight[m] * abs(prediction[m] - target[m]) for m in used)
        np.testing.assert_allclose(error[n], off / sum(weight) if used else math.nan, rtol=1e-6, atol=1e-6)
    assert np.isnan(error[:2]).all()


@pytest.mark.usefixtures("as_users_run")
def test_edges_that_are_none_are_refused():
    for edges in (np.array([1.0]), np.array([1.0, 1.0]), np.array([2.0, 1.0]), np.array([1.0, np.nan]), np.eye(2)):
        with pytest.raises(ValueError, match="edges: expected at least two numbers that increase"):
            metrics.calibration_curve(np.ones(2), np.ones(2), edges)
    with pytest.raises(ValueError, match="expected arrays of one shape"):
        metrics.calibration_curve(np.ones(2), np.ones((2, 1)), EDGES)


def test_one_bin_compares_the_means():
    assert float(metrics.calibration_error(jnp.array([1.0, 4.0]), jnp.array([3.0, 1.0]), jnp.array([0.0, 9.0]))) == 0.5


# Groups


@pytest.mark.slow
def test_means_of_groups_equal_loops():
    rng = np.random.default_rng(2)
    value = rng.random((CASES, 9)).astype(np.float32)
    value[rng.random((CASES, 9)) < 0.2] = np.nan
    group, where = rng.integers(0, 3, (CASES, 9)).astype(np.int32), rng.random((CASES, 9)) < 0.7
    got = jax.jit(jax.vmap(lambda v, g, r: metrics.group_means(v, g, n_groups=3, where=r)))(
        value, np.where(where, group, 99).astype(np.int32), where
    )
    for n in range(CASES):
        of_group = [value[n][where[n] & (group[n] == g)] for g in range(3)]
        means = [float(np.mean(v[~np.isnan(v)].astype(float))) if (~np.isnan(v)).any() else math.nan for v in of_group]
        np.testing.assert_allclose(got.mean[n], means, rtol=1e-6)
        np.testing.assert_allclose(got.difference[n], np.subtract.outer(means, means), rtol=1e-6, atol=1e-6)
        assert got.n_users[n].tolist() == [int((~np.isnan(v)).sum()) for v in of_group]
        assert got.n_undefined[n].tolist() == [int(np.isnan(v).sum()) for v in of_group]
        defined = [v[~np.isnan(v)].astype(float) for v in of_group]
        errors = [float(stats.sem(v)) if len(v) > 1 else math.nan for v in defined]
        np.testing.assert_allclose(got.standard_error[n], errors, rtol=1e-5, atol=1e-7)
        of_difference = np.sqrt(np.add.outer(np.square(errors), np.square(errors)))
        np.fill_diagonal(of_difference, [math.nan if math.isnan(error) else 0 for error in errors])
        np.testing.assert_allclose(got.difference_error[n], of_difference, rtol=1e-5, atol=1e-7)


def test_the_intervals_of_groups_are_welchs():
    """As SciPy has them, for groups of 2 to 400 users, also of equal values; the level is respected."""
    rng = np.random.default_rng(4)
    groups_of_sizes = jax.jit(metrics.group_means, static_argnames=("n_groups",))
    for level, sizes in ((0.95, (2, 2)), (0.95, (2, 400)), (0.8, (3, 5)), (0.99, (300, 200)), (0.95, (40, 3))):
        values = [rng.normal(g, 1 + 2 * g, n).astype(np.float32) for g, n in enumerate(sizes)]
        group = np.repeat(np.arange(2), sizes)
        got = groups_of_sizes(np.concatenate(values), group, n_groups=2, level=level)
        a, b = (each.astype(float) for each in values)
        expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(level)
        np.testing.assert_allclose((got.low[0, 1], got.high[0, 1]), expected, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose((-got.high[1, 0], -got.low[1, 0]), expected, rtol=2e-5, atol=2e-6)
        assert np.diag(got.low).tolist() == np.diag(got.high).tolist() == [0, 0]
    same = metrics.group_means(np.array([1.0, 1.0, 3.0, 3.0]), np.array([0, 0, 1, 1]), n_groups=2)
    assert (float(same.low[1, 0]), float(same.high[1, 0])) == (2, 2)
    alone = metrics.group_means(np.array([1.0, 2.0, 3.0]), np.array([0, 0, 1]), n_groups=2)
    assert np.isnan(alone.low[0, 1])
    assert float(alone.difference[1, 0]) == 1.5


@pytest.mark.slow
def test_the_intervals_of_groups_cover_the_difference():
    """1,500 draws of 12 and 30 users of other variances: 95 % of the intervals hold the true difference of 0.5."""
    rng = np.random.default_rng(5)
    value = np.concatenate([rng.normal(0, 2, (1500, 12)), rng.normal(0.5, 1, (1500, 30))], axis=1).astype(np.float32)
    group = np.repeat(np.arange(2), (12, 30))
    got = jax.jit(jax.vmap(lambda v: metrics.group_means(v, group, n_groups=2)))(value)
    covered = np.mean((got.low[:, 1, 0] <= 0.5) & (got.high[:, 1, 0] >= 0.5))
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1500)


@pytest.mark.usefixtures("as_users_run")
def test_groups_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"group: expected ids in \[0, 2\), got 2"):
        metrics.group_means(np.ones(2), np.array([0, 2]), n_groups=2)
    with pytest.raises(ValueError, match="expected arrays of one shape"):
        metrics.group_means(np.ones(2), np.array([0]), n_groups=2)
    for level in (0, 1, 95, math.nan):
        with pytest.raises(ValueError, match=r"level: expected a number in \(0, 1\)"):
            metrics.group_means(np.ones(2), np.array([0, 1]), n_groups=2, level=level)
    masked = metrics.group_means(np.ones(2), np.array([0, 2]), n_groups=2, where=np.array([True, False]))
    assert masked.n_users.tolist() == [1, 0]
