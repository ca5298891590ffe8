"""log_loss and auc equal brute force in float64, with masks, weights and ties, and refuse invalid arguments."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import losses
from jaxrec.metrics import auc, log_loss

METRICS = pytest.mark.parametrize("metric", [log_loss, auc])


def brute_log_loss(logit, target, weights):
    """The log loss from probabilities, as in the lecture notes: only for moderate logits."""
    total = 0.0
    for z, y, weight in zip(logit.tolist(), target.tolist(), weights.tolist(), strict=True):
        g = 1 / (1 + math.exp(-z))
        total += weight * (-y * math.log(g) - (1 - y) * math.log(1 - g))
    return total / weights.sum(dtype=np.float64)


def brute_auc(score, target, weights):
    """The AUC by comparing every entry of label 1 with every entry of label 0."""
    won, pairs = 0.0, 0.0
    entries = list(zip(score.tolist(), target.tolist(), weights.tolist(), strict=True))
    for one, y, weight in entries:
        for zero, other, other_weight in entries:
            if y == 1 and other == 0:
                won += weight * other_weight * (1.0 if one > zero else 0.5 if one == zero else 0.0)
                pairs += weight * other_weight
    return won / pairs


BRUTE = {log_loss: brute_log_loss, auc: brute_auc}
JIT = {metric: jax.jit(metric) for metric in BRUTE}  # one program where an eager call compiles thirty


def call(metric):
    """The metric as a function of positional arguments only."""
    return lambda score, target, weights, where: metric(score, target, where=where, weights=weights)


VALUE_AND_GRADIENT = {metric: jax.jit(jax.value_and_grad(call(metric))) for metric in BRUTE}  # traced once


def draw(seed, n=40):
    """Random scores with ties, labels of both classes, weights of which some are 0, and a mask."""
    rng = np.random.default_rng(seed)
    score = (rng.integers(-6, 7, size=n) / 2).astype(np.float32)
    target = (rng.random(n) < 0.4).astype(np.float32)
    target[:4] = 0, 1, 0, 1
    weights = rng.integers(0, 4, size=n).astype(np.float32) / 2
    weights[:4] = 1
    where = rng.random(n) < 0.7
    where[:4] = True
    return score, target, weights, where


def test_the_metrics_equal_the_calculation_by_hand():
    logit, target = jnp.array([0.0, 0.0, 50.0, -50.0]), jnp.array([1.0, 0.0, 1.0, 1.0])
    assert float(JIT[log_loss](logit, target)) == pytest.approx((2 * math.log(2) + 0 + 50) / 4, rel=1e-6)
    # label 1 at scores 3 and 1, label 0 at 2, 1 and 0: the 3 is above all three; the 1 ties with one and is above one
    score, target = jnp.array([2.0, 3.0, 1.0, 1.0, 0.0]), jnp.array([0.0, 1.0, 0.0, 1.0, 0.0])
    assert float(JIT[auc](score, target)) == pytest.approx((3 + 1.5) / 6, rel=1e-6)
    weights = jnp.array([1.0, 2.0, 4.0, 1.0, 3.0])
    assert float(JIT[auc](score, target, weights=weights)) == pytest.approx((2 * 8 + 1 * (2 + 3)) / (3 * 8), rel=1e-6)


@METRICS
@pytest.mark.parametrize("seed", range(6))
def test_the_metrics_and_their_gradients_equal_brute_force(metric, seed):
    score, target, weights, where = draw(seed)
    ones = np.ones_like(weights)
    put = jnp.asarray
    brute = BRUTE[metric]
    np.testing.assert_allclose(JIT[metric](put(score), put(target)), brute(score, target, ones), rtol=1e-6)
    np.testing.assert_allclose(
        JIT[metric](put(score), put(target), weights=put(weights)), brute(score, target, weights), rtol=1e-6
    )
    np.testing.assert_allclose(
        JIT[metric](put(score), put(target), where=put(where), weights=put(weights)),
        brute(score[where], target[where], weights[where]),
        rtol=1e-6,
    )


@METRICS
@pytest.mark.parametrize("dtype", [bool, np.int32])
def test_labels_may_be_bools_or_integers(metric, dtype):
    score, target, *_ = draw(0)
    labels = jnp.asarray(target.astype(dtype))
    assert float(metric(jnp.asarray(score), labels)) == float(metric(jnp.asarray(score), jnp.asarray(target)))


def test_log_loss_accepts_probabilities_as_targets():
    logit, target = draw(1)[0], np.random.default_rng(1).random(40).astype(np.float32)
    expected = brute_log_loss(logit, target, np.ones(40))
    np.testing.assert_allclose(log_loss(jnp.asarray(logit), jnp.asarray(target)), expected, rtol=1e-6)


def test_log_loss_is_the_mean_of_the_logistic_loss():
    score, target, weights, where = (jnp.asarray(column) for column in draw(2))
    total = losses.logistic(score, target, where=where, weights=weights)
    np.testing.assert_allclose(log_loss(score, target, where=where, weights=weights), total.mean(), rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_auc_depends_only_on_the_order_of_the_scores(seed):
    score, target, weights, _ = (jnp.asarray(column) for column in draw(seed))
    expected = JIT[auc](score, target, weights=weights)
    for same in (3 * score - 100, jnp.exp(score), jnp.where(score == score.max(), jnp.inf, score)):
        np.testing.assert_allclose(JIT[auc](same, target, weights=weights), expected, rtol=1e-6)
    np.testing.assert_allclose(JIT[auc](-score, target, weights=weights), 1 - expected, rtol=1e-5)
    shuffled = np.random.default_rng(seed).permutation(len(score))
    np.testing.assert_allclose(
        JIT[auc](score[shuffled], target[shuffled], weights=weights[shuffled]), expected, rtol=1e-6
    )


def test_auc_orders_the_largest_and_smallest_scores():
    target = jnp.array([0.0, 1.0, 0.0, 1.0])
    assert float(JIT[auc](target, target)) == 1
    assert float(JIT[auc](-target, target)) == 0
    assert float(JIT[auc](jnp.zeros(4), target)) == 0.5
    assert float(JIT[auc](jnp.array([-0.0, 0.0, 0.0, -0.0]), target)) == 0.5, "-0 and 0 tie"


def test_auc_of_hundreds_of_thousands_of_entries_is_exact():
    """Sums of so many ranks exceed 2^24, the largest exact count in float32, but a mean of fractions does not."""
    rng = np.random.default_rng(0)
    score, target = rng.integers(1000, size=300_000), rng.random(300_000) < 0.5
    ones, zeros = (np.bincount(score[target == label], minlength=1000) for label in (True, False))
    below = np.cumsum(zeros) - zeros
    expected = (ones * (below + zeros / 2)).sum() / (ones.sum() * zeros.sum())  # exact to 1e-16
    np.testing.assert_allclose(JIT[auc](jnp.asarray(score, jnp.float32), jnp.asarray(target)), expected, rtol=1e-6)


@METRICS
@pytest.mark.parametrize("masked_value", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("masked_column", ["prediction", "target", "weights"])
def test_masked_entries_may_be_arbitrary(metric, masked_value, masked_column):
    score, target, weights, where = draw(0)
    columns = {"prediction": score, "target": target, "weights": weights}
    with_masked_values = columns | {masked_column: np.where(where, columns[masked_column], np.float32(masked_value))}
    put = lambda columns: [jnp.asarray(column) for column in (*columns.values(), where)]
    clean, got = (VALUE_AND_GRADIENT[metric](*put(which)) for which in (columns, with_masked_values))
    np.testing.assert_array_equal(got[0], clean[0])
    np.testing.assert_array_equal(got[1], clean[1])
    assert np.isfinite(clean[1]).all()
    if np.isnan(masked_value):
        eager = call(metric)(*put(with_masked_values))
        np.testing.assert_allclose(eager, clean[0], rtol=1e-6, err_msg="masked entries are not checked")


@METRICS
def test_the_metrics_accept_any_shape_and_vmap_and_jit(metric):
    score, target, weights, where = (column.reshape(4, 10) for column in draw(3))
    target[:, :2], where[:, :2], weights[:, :2] = [0, 1], True, 1
    columns = [jnp.asarray(column) for column in (score, target, weights, where)]
    brute = lambda n: BRUTE[metric](score[n][where[n]], target[n][where[n]], weights[n][where[n]])
    np.testing.assert_allclose(call(metric)(*columns), brute(...), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(call(metric))(*columns), brute(...), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(call(metric)))(*columns), [brute(n) for n in range(4)], rtol=1e-6)


@METRICS
def test_float64_columns_are_computed_in_float64(metric):
    score, target, weights, _ = draw(4)
    with jax.enable_x64(True):
        got = JIT[metric](
            jnp.asarray(score, jnp.float64), jnp.asarray(target), weights=jnp.asarray(weights, jnp.float64)
        )
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, BRUTE[metric](score, target, weights), rtol=1e-12)


# Refused arguments


@pytest.mark.parametrize("wrong", [-0.1, 1.5, 5.0, np.nan])
def test_targets_outside_of_zero_and_one_are_refused(wrong):
    score, target = jnp.zeros(3), jnp.array([0.0, 1.0, wrong])
    with pytest.raises(ValueError, match=r"^target: expected labels in \[0, 1\], got from"):
        log_loss(score, target)
    with pytest.raises(ValueError, match=r"^target: expected labels that are 0 or 1"):
        auc(score, target)
    shown = jnp.array([True, True, False])
    assert float(log_loss(score, target, where=shown)) == pytest.approx(math.log(2))
    assert float(auc(score, target, where=shown)) == 0.5


def test_auc_refuses_targets_between_zero_and_one():
    with pytest.raises(ValueError, match=r"^target: expected labels that are 0 or 1"):
        auc(jnp.zeros(3), jnp.array([0.0, 1.0, 0.5]))


@pytest.mark.parametrize("options", [{"where": jnp.zeros(3, bool)}, {"weights": jnp.zeros(3)}], ids=str)
def test_log_loss_without_entries_is_refused(options):
    with pytest.raises(ValueError, match=r"^nothing to average"):
        log_loss(jnp.zeros(3), jnp.ones(3), **options)
    assert np.isnan(jax.jit(log_loss)(jnp.zeros(3), jnp.ones(3), **options))


@pytest.mark.parametrize(
    ("missing", "target", "options"),
    [
        ("zeros", [1, 1, 1], {}),
        ("ones", [0, 0, 0], {}),
        ("ones", [0, 1, 0], {"where": jnp.array([True, False, True])}),
        ("zeros", [0, 1, 1], {"weights": jnp.array([0.0, 1.0, 1.0])}),
        ("zeros", [], {}),
    ],
)
def test_auc_of_a_single_class_is_refused(missing, target, options):
    score, target = jnp.arange(len(target), dtype=jnp.float32), jnp.array(target, jnp.float32)
    with pytest.raises(ValueError, match=rf"^no {missing}: expected labels of both classes"):
        auc(score, target, **options)
    assert np.isnan(jax.jit(auc)(score, target, **options)), "under jit the value is NaN, since nothing can be raised"


def test_auc_refuses_nan_scores_and_log_loss_returns_nan():
    score, target = jnp.array([0.0, jnp.nan, 1.0]), jnp.array([0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"^score: expected numbers, got 1 NaN"):
        auc(score, target)
    assert np.isnan(jax.jit(auc)(score, target))
    assert np.isnan(log_loss(score, target)), "the mean is NaN"


@METRICS
@pytest.mark.parametrize(
    ("target", "options"),
    [
        (jnp.ones((4, 1)), {}),
        (jnp.ones(1), {}),
        (jnp.ones(4), {"where": jnp.ones((4, 1), bool)}),
        (jnp.ones(4), {"weights": jnp.ones(1)}),
    ],
    ids=["a column as target", "one target", "a column as where", "one weight"],
)
@pytest.mark.usefixtures("as_users_run")
def test_arrays_of_different_shapes_are_refused(metric, target, options):
    for call in (metric, jax.jit(metric)):
        with pytest.raises(ValueError, match=r"^expected arrays of one shape, got \w+: \(4,\)"):
            call(jnp.ones(4), target, **options)
