"""Properties of the pointwise losses, each tested for every loss in cases.POINTWISE."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxrec import losses
from tests import reference
from tests.losses.cases import POINTWISE, SMOOTH

every_loss = pytest.mark.parametrize("name", POINTWISE)
every_smooth_loss = pytest.mark.parametrize("name", SMOOTH)
GARBAGE = [np.nan, np.inf, -np.inf, 1e300]


def random_columns(name, n=9, seed=0):
    """prediction, target, where, weights [n]: one target is 0, some entries are masked, one weight is 0."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 2, n) * 1.0 if POINTWISE[name].binary else rng.integers(0, 6, n) * 1.0
    target[1] = 0.0
    where = np.arange(n) % 3 != 0
    weights = rng.integers(0, 4, n) * 1.0
    weights[1:3] = [2.0, 0.0]
    return rng.normal(size=n), target, where, weights


@every_loss
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(9,), (3, 3), ()])
def test_sum_and_count_equal_the_loop(x64, name, masked, weighted, shape):
    arrays = random_columns(name)
    prediction, target, where, weights = [a[1].reshape(()) if shape == () else a.reshape(shape) for a in arrays]
    options = ({"where": where} if masked else {}) | ({"weights": weights} if weighted else {})
    expected = reference.total(POINTWISE[name].oracle, prediction, target, **options)
    got = POINTWISE[name].loss(
        *map(jnp.asarray, (prediction, target)), **{k: jnp.asarray(v) for k, v in options.items()}
    )
    np.testing.assert_allclose((got.sum, got.count), expected, rtol=1e-12)
    assert got.sum.shape == got.count.shape == ()


def test_squared_and_absolute_errors_equal_a_calculation_by_hand():
    prediction, target = jnp.array([4.0, 3.0, 1.0]), jnp.array([5.0, 0.0, 1.0])
    squared = (4 - 5) ** 2 + (3 - 0) ** 2 + (1 - 1) ** 2
    assert losses.squared_error(prediction, target).sum == squared
    assert losses.half_squared_error(prediction, target).sum == squared / 2
    assert losses.absolute_error(prediction, target).sum == 1 + 3 + 0
    assert losses.squared_error(prediction, target).mean() == pytest.approx(squared / 3)
    weights = jnp.array([2.0, 0.5, 7.0])
    assert losses.squared_error(prediction, target, weights=weights).sum == 2 * 1 + 0.5 * 9 + 7 * 0
    assert losses.squared_error(prediction, target, weights=weights).count == 2 + 0.5 + 7


def test_logistic_loss_and_slope_equal_a_calculation_by_hand():
    logit = jnp.array([0.0, math.log(3.0), math.log(3.0), math.log(3.0)])  # g = 1/2, 3/4, 3/4, 3/4
    target = jnp.array([1.0, 1.0, 0.0, 0.5])
    expected = math.log(2) - math.log(3 / 4) - math.log(1 / 4) - (math.log(3 / 4) + math.log(1 / 4)) / 2
    assert losses.logistic(logit, target).sum == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(
        losses.logistic.slope(logit, target), [1 / 2 - 1, 3 / 4 - 1, 3 / 4 - 0, 3 / 4 - 1 / 2], rtol=1e-6
    )


@every_loss
def test_masking_entries_equals_deleting_them(x64, name):
    prediction, target, where, weights = random_columns(name)
    loss = POINTWISE[name].loss
    masked = loss(*map(jnp.asarray, (prediction, target)), where=jnp.asarray(where), weights=jnp.asarray(weights))
    deleted = loss(jnp.asarray(prediction[where]), jnp.asarray(target[where]), weights=jnp.asarray(weights[where]))
    np.testing.assert_allclose((masked.sum, masked.count), (deleted.sum, deleted.count), rtol=1e-12)
    unmasked = loss(*map(jnp.asarray, (prediction, target)))
    assert abs(float(masked.sum - unmasked.sum)) > 1e-3  # otherwise an ignored mask would not be noticed


@every_loss
def test_a_weight_of_zero_equals_deletion(x64, name):
    prediction, target, _, weights = random_columns(name)
    keep = weights != 0
    assert not keep.all()
    loss = POINTWISE[name].loss
    with_zeros = loss(*map(jnp.asarray, (prediction, target)), weights=jnp.asarray(weights))
    deleted = loss(*(jnp.asarray(a[keep]) for a in (prediction, target)), weights=jnp.asarray(weights[keep]))
    np.testing.assert_allclose((with_zeros.sum, with_zeros.count), (deleted.sum, deleted.count), rtol=1e-12)


@every_loss
@pytest.mark.parametrize("garbage", GARBAGE)
def test_masked_garbage_changes_neither_value_nor_gradient(x64, name, garbage):
    prediction, target, where, weights = map(jnp.asarray, random_columns(name))
    spoil = lambda array: jnp.where(where, array, garbage)

    def value_and_gradients(prediction, target, weights):
        total = lambda *arrays: POINTWISE[name].loss(*arrays[:2], where=where, weights=arrays[2])
        gradients = jax.grad(lambda *arrays: total(*arrays).sum, argnums=(0, 1, 2))(prediction, target, weights)
        count_gradient = jax.grad(lambda weights: total(prediction, target, weights).count)(weights)
        value = total(prediction, target, weights)
        return [value.sum, value.count, *gradients, count_gradient]

    clean = value_and_gradients(prediction, target, weights)
    spoilt = value_and_gradients(spoil(prediction), spoil(target), spoil(weights))
    for expected, got in zip(clean, spoilt, strict=True):
        np.testing.assert_array_equal(expected, got)
        assert np.isfinite(got).all()
    for gradient in spoilt[2:]:
        assert (gradient[~where] == 0).all()


@every_loss
@pytest.mark.parametrize("weighted", [False, True])
def test_the_sum_of_masked_entries_alone_is_zero_with_a_zero_gradient(name, weighted):
    nan = jnp.full(4, jnp.nan)
    where = jnp.zeros(4, bool)
    weights = nan if weighted else None
    loss = lambda prediction: POINTWISE[name].loss(prediction, nan, where=where, weights=weights)
    assert loss(nan).sum == 0
    assert loss(nan).count == 0
    np.testing.assert_array_equal(jax.grad(lambda prediction: loss(prediction).sum)(nan), np.zeros(4))
    assert np.isnan(loss(nan).mean())  # 0 / 0


@every_loss
def test_the_sum_and_count_of_no_entries_are_zero(name):
    total = POINTWISE[name].loss(jnp.zeros(0), jnp.zeros(0))
    assert (total.sum, total.count) == (0, 0)


@every_loss
def test_integer_weights_equal_repeated_entries(x64, name):
    prediction, target, where, weights = random_columns(name)
    times = weights.astype(int)
    loss = POINTWISE[name].loss
    weighted = loss(*map(jnp.asarray, (prediction, target)), where=jnp.asarray(where), weights=jnp.asarray(weights))
    repeated = loss(
        *(jnp.asarray(np.repeat(a, times)) for a in (prediction, target)), where=jnp.asarray(np.repeat(where, times))
    )
    np.testing.assert_allclose((weighted.sum, weighted.count), (repeated.sum, repeated.count), rtol=1e-12)


@every_loss
@pytest.mark.parametrize("boundaries", [[4], [0], [1, 2, 8]])
def test_totals_of_parts_add_up_to_the_total_of_all_entries(x64, name, boundaries):
    prediction, target, where, weights = random_columns(name)

    def total(rows):
        p, t, r, w = (jnp.asarray(array[rows]) for array in (prediction, target, where, weights))
        return POINTWISE[name].loss(p, t, where=r, weights=w)

    expected = total(np.arange(9))
    got, *parts = [total(rows) for rows in np.split(np.arange(9), boundaries)]
    for part in parts:
        got = got + part
    np.testing.assert_allclose((got.sum, got.count), (expected.sum, expected.count), rtol=1e-12)
    np.testing.assert_allclose(got.mean(), float(expected.sum) / float(expected.count), rtol=1e-12)


@every_loss
def test_the_order_of_entries_does_not_change_the_total(x64, name):
    arrays = random_columns(name)
    order = np.random.default_rng(3).permutation(9)
    total = lambda p, t, where, weights: POINTWISE[name].loss(p, t, where=where, weights=weights)
    expected, permuted = total(*map(jnp.asarray, arrays)), total(*(jnp.asarray(array[order]) for array in arrays))
    np.testing.assert_allclose((permuted.sum, permuted.count), (expected.sum, expected.count), rtol=1e-12)


@every_loss
def test_vmap_equals_a_loop(x64, name):
    arrays = [jnp.stack(pair) for pair in zip(random_columns(name), random_columns(name, seed=1), strict=True)]
    total = lambda p, t, where, weights: POINTWISE[name].loss(p, t, where=where, weights=weights)
    batch = jax.vmap(total)(*arrays)
    for k in range(2):
        expected = total(*(array[k] for array in arrays))
        np.testing.assert_allclose((batch.sum[k], batch.count[k]), (expected.sum, expected.count), rtol=1e-12)


@every_loss
def test_jit_equals_eager_and_traces_once_per_shape(name):
    traced_shapes = []

    @jax.jit
    def total(p, t, where, weights):
        traced_shapes.append(p.shape)
        return POINTWISE[name].loss(p, t, where=where, weights=weights)

    for seed in (0, 1):
        p, t, where, weights = (
            jnp.asarray(a, bool if a.dtype == bool else jnp.float32) for a in random_columns(name, 9, seed)
        )
        got, eager = total(p, t, where, weights), POINTWISE[name].loss(p, t, where=where, weights=weights)
        np.testing.assert_allclose((got.sum, got.count), (eager.sum, eager.count), rtol=1e-6)
        assert got.sum.dtype == got.count.dtype == eager.sum.dtype == eager.count.dtype == jnp.float32
    assert traced_shapes == [(9,)]


@every_loss
def test_gradient_equals_finite_differences_of_the_loop(x64, name):
    prediction, target, where, weights = random_columns(name)
    oracle = lambda p, t, w: reference.total(POINTWISE[name].oracle, p, t, where, w)[0]
    got = jax.grad(
        lambda p, t, w: POINTWISE[name].loss(p, t, where=jnp.asarray(where), weights=w).sum, argnums=(0, 1, 2)
    )(*map(jnp.asarray, (prediction, target, weights)))
    expected = [
        reference.central_differences(lambda p: oracle(p, target, weights), prediction),
        reference.central_differences(lambda t: oracle(prediction, t, weights), target),
        reference.central_differences(lambda w: oracle(prediction, target, w), weights),
    ]
    for gradient, expected_gradient in zip(got, expected, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-7, atol=1e-8)


@every_loss
def test_first_and_second_derivatives_in_both_modes_equal_finite_differences(x64, name):
    prediction, target, where, weights = map(jnp.asarray, random_columns(name))
    loss = lambda p: POINTWISE[name].loss(p, target, where=where, weights=weights).sum
    check_grads(jax.jit(loss), (prediction,), order=2, modes=("fwd", "rev"), eps=1e-5)


@every_smooth_loss
def test_slope_equals_the_derivative_in_the_prediction(x64, name):
    entry, (prediction, target, _, _) = SMOOTH[name], random_columns(name)
    slope = entry.slope(*map(jnp.asarray, (prediction, target)))
    by_autodiff = jax.grad(lambda p, t: entry.loss(p, t).sum)(*map(jnp.asarray, (prediction, target)))
    by_differences = reference.central_differences(lambda p: reference.total(entry.oracle, p, target)[0], prediction)
    np.testing.assert_allclose(slope, by_autodiff, rtol=1e-12)
    np.testing.assert_allclose(slope, by_differences, rtol=1e-7, atol=1e-8)


def test_absolute_error_has_a_zero_gradient_at_zero():
    gradient = jax.grad(lambda p: losses.absolute_error(p, jnp.array([1.0, 1.0, 1.0])).sum)(jnp.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(gradient, [-1, 0, 1])


@pytest.mark.parametrize(("z", "y"), [(1e4, 0.0), (1e4, 1.0), (-1e4, 0.0), (-1e4, 1.0)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loss_and_slope_of_extreme_logits_are_finite_and_exact(x64, z, y, dtype):
    logit, target = jnp.array([z], dtype), jnp.array([y], dtype)
    correct = (z > 0) == (y == 1)
    value, gradient = jax.value_and_grad(lambda logit: losses.logistic(logit, target).sum)(logit)
    assert float(value) == (0 if correct else 1e4)  # -log g(z) = log(1 + e^-z), -log(1 - g(z)) = log(1 + e^z)
    assert float(gradient[0]) == (0 if correct else math.copysign(1, z))  # g - y
    np.testing.assert_array_equal(losses.logistic.slope(logit, target), gradient)


@every_loss
@pytest.mark.parametrize("wrong", ["target", "where", "weights"])
def test_arrays_of_different_shapes_are_refused_with_both_shapes(as_users_run, name, wrong):
    arrays = {"target": jnp.zeros(3), "where": jnp.ones(3, bool), "weights": jnp.ones(3)}
    arrays[wrong] = arrays[wrong][:, None]
    with pytest.raises(ValueError, match=rf"prediction: \(3,\).*{wrong}: \(3, 1\)"):
        POINTWISE[name].loss(jnp.zeros(3), arrays["target"], where=arrays["where"], weights=arrays["weights"])
    with pytest.raises(ValueError, match=r"\(3, 1\).*\(3,\)"):
        jax.jit(POINTWISE[name].loss)(jnp.zeros((3, 1)), jnp.zeros(3))
