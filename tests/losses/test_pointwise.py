"""The laws of the pointwise losses: one table (laws.POINTWISE), every law on every entry."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxrec import losses
from tests import reference
from tests.losses.laws import POINTWISE, SMOOTH

every_loss = pytest.mark.parametrize("name", POINTWISE)
every_slope = pytest.mark.parametrize("name", SMOOTH)
GARBAGE = [np.nan, np.inf, -np.inf, 1e300]


def columns(name, n=9, seed=0):
    """prediction, target, where, weights [n]: a 0 among the targets, True and False in the mask, a weight of 0."""
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
def test_equals_the_loop(x64, name, masked, weighted, shape):
    arrays = columns(name)
    prediction, target, where, weights = [a[1].reshape(()) if shape == () else a.reshape(shape) for a in arrays]
    options = ({"where": where} if masked else {}) | ({"weights": weights} if weighted else {})
    expected = reference.total(POINTWISE[name].oracle, prediction, target, **options)
    got = POINTWISE[name].loss(
        *map(jnp.asarray, (prediction, target)), **{k: jnp.asarray(v) for k, v in options.items()}
    )
    np.testing.assert_allclose((got.sum, got.count), expected, rtol=1e-12)
    assert got.sum.shape == got.count.shape == ()


def test_by_hand():
    prediction, target = jnp.array([4.0, 3.0, 1.0]), jnp.array([5.0, 0.0, 1.0])
    squared = (4 - 5) ** 2 + (3 - 0) ** 2 + (1 - 1) ** 2
    assert losses.squared_error(prediction, target).sum == squared
    assert losses.half_squared_error(prediction, target).sum == squared / 2
    assert losses.absolute_error(prediction, target).sum == 1 + 3 + 0
    assert losses.squared_error(prediction, target).mean() == pytest.approx(squared / 3)
    weights = jnp.array([2.0, 0.5, 7.0])
    assert losses.squared_error(prediction, target, weights=weights).sum == 2 * 1 + 0.5 * 9 + 7 * 0
    assert losses.squared_error(prediction, target, weights=weights).count == 2 + 0.5 + 7


def test_logistic_by_hand():
    logit = jnp.array([0.0, math.log(3.0), math.log(3.0), math.log(3.0)])  # g = 1/2, 3/4, 3/4, 3/4
    target = jnp.array([1.0, 1.0, 0.0, 0.5])
    expected = math.log(2) - math.log(3 / 4) - math.log(1 / 4) - (math.log(3 / 4) + math.log(1 / 4)) / 2
    assert losses.logistic(logit, target).sum == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(
        losses.logistic.slope(logit, target), [1 / 2 - 1, 3 / 4 - 1, 3 / 4 - 0, 3 / 4 - 1 / 2], rtol=1e-6
    )


@every_loss
def test_mask_is_deletion(x64, name):
    prediction, target, where, weights = columns(name)
    loss = POINTWISE[name].loss
    masked = loss(*map(jnp.asarray, (prediction, target)), where=jnp.asarray(where), weights=jnp.asarray(weights))
    deleted = loss(jnp.asarray(prediction[where]), jnp.asarray(target[where]), weights=jnp.asarray(weights[where]))
    np.testing.assert_allclose((masked.sum, masked.count), (deleted.sum, deleted.count), rtol=1e-12)
    everything = loss(*map(jnp.asarray, (prediction, target)))
    assert abs(float(masked.sum - everything.sum)) > 1e-3  # the mask does something here


@every_loss
def test_a_weight_of_zero_is_deletion(x64, name):
    prediction, target, _, weights = columns(name)
    keep = weights != 0
    assert not keep.all()
    loss = POINTWISE[name].loss
    zeros = loss(*map(jnp.asarray, (prediction, target)), weights=jnp.asarray(weights))
    deleted = loss(*(jnp.asarray(a[keep]) for a in (prediction, target)), weights=jnp.asarray(weights[keep]))
    np.testing.assert_allclose((zeros.sum, zeros.count), (deleted.sum, deleted.count), rtol=1e-12)


@every_loss
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_under_the_mask_is_inert(x64, name, garbage):
    prediction, target, where, weights = map(jnp.asarray, columns(name))
    spoil = lambda array: jnp.where(where, array, garbage)

    def value_and_gradients(prediction, target, weights):
        total = lambda *arrays: POINTWISE[name].loss(*arrays[:2], where=where, weights=arrays[2])
        by = jax.grad(lambda *arrays: total(*arrays).sum, argnums=(0, 1, 2))(prediction, target, weights)
        count = jax.grad(lambda weights: total(prediction, target, weights).count)(weights)
        out = total(prediction, target, weights)
        return [out.sum, out.count, *by, count]

    clean = value_and_gradients(prediction, target, weights)
    spoilt = value_and_gradients(spoil(prediction), spoil(target), spoil(weights))
    for c, s in zip(clean, spoilt, strict=True):
        np.testing.assert_array_equal(c, s)
        assert np.isfinite(s).all()
    for gradient in spoilt[2:]:
        assert (gradient[~where] == 0).all()


@every_loss
@pytest.mark.parametrize("weighted", [False, True])
def test_all_masked_is_zero_with_a_zero_gradient(name, weighted):
    nothing = jnp.full(4, jnp.nan)
    where = jnp.zeros(4, bool)
    loss = lambda prediction: POINTWISE[name].loss(
        prediction, nothing, where=where, weights=nothing if weighted else None
    )
    assert loss(nothing).sum == 0
    assert loss(nothing).count == 0
    np.testing.assert_array_equal(jax.grad(lambda p: loss(p).sum)(nothing), np.zeros(4))
    assert np.isnan(loss(nothing).mean())  # there is no mean of nothing


@every_loss
def test_no_entries_are_zero(name):
    total = POINTWISE[name].loss(jnp.zeros(0), jnp.zeros(0))
    assert (total.sum, total.count) == (0, 0)


@every_loss
def test_integer_weights_are_repetition(x64, name):
    prediction, target, where, weights = columns(name)
    times = weights.astype(int)
    loss = POINTWISE[name].loss
    weighted = loss(*map(jnp.asarray, (prediction, target)), where=jnp.asarray(where), weights=jnp.asarray(weights))
    repeated = loss(
        *(jnp.asarray(np.repeat(a, times)) for a in (prediction, target)), where=jnp.asarray(np.repeat(where, times))
    )
    np.testing.assert_allclose((weighted.sum, weighted.count), (repeated.sum, repeated.count), rtol=1e-12)


@every_loss
@pytest.mark.parametrize("cuts", [[4], [0], [1, 2, 8]])
def test_totals_add_over_any_split(x64, name, cuts):
    prediction, target, where, weights = columns(name)
    total = lambda rows: POINTWISE[name].loss(
        *(jnp.asarray(a[rows]) for a in (prediction, target)),
        where=jnp.asarray(where[rows]),
        weights=jnp.asarray(weights[rows]),
    )
    whole = total(np.arange(9))
    first, *rest = [total(rows) for rows in np.split(np.arange(9), cuts)]
    for part in rest:
        first = first + part
    np.testing.assert_allclose((first.sum, first.count), (whole.sum, whole.count), rtol=1e-12)
    np.testing.assert_allclose(first.mean(), float(whole.sum) / float(whole.count), rtol=1e-12)


@every_loss
def test_order_does_not_matter(x64, name):
    arrays = columns(name)
    order = np.random.default_rng(3).permutation(9)
    total = lambda p, t, where, weights: POINTWISE[name].loss(p, t, where=where, weights=weights)
    as_given, permuted = total(*map(jnp.asarray, arrays)), total(*(jnp.asarray(a[order]) for a in arrays))
    np.testing.assert_allclose((permuted.sum, permuted.count), (as_given.sum, as_given.count), rtol=1e-12)


@every_loss
def test_vmap_is_the_loop(x64, name):
    arrays = [jnp.stack(pair) for pair in zip(columns(name), columns(name, seed=1), strict=True)]
    total = lambda p, t, where, weights: POINTWISE[name].loss(p, t, where=where, weights=weights)
    batch = jax.vmap(total)(*arrays)
    for k in range(2):
        one = total(*(a[k] for a in arrays))
        np.testing.assert_allclose((batch.sum[k], batch.count[k]), (one.sum, one.count), rtol=1e-12)


@every_loss
def test_jit_is_eager_and_traces_once_per_shape(name):
    traced = []

    @jax.jit
    def total(p, t, where, weights):
        traced.append(p.shape)
        return POINTWISE[name].loss(p, t, where=where, weights=weights)

    for seed in (0, 1):
        p, t, where, weights = (
            jnp.asarray(a, bool if a.dtype == bool else jnp.float32) for a in columns(name, 9, seed)
        )
        got, eager = total(p, t, where, weights), POINTWISE[name].loss(p, t, where=where, weights=weights)
        np.testing.assert_allclose((got.sum, got.count), (eager.sum, eager.count), rtol=1e-6)
        assert got.sum.dtype == got.count.dtype == eager.sum.dtype == eager.count.dtype == jnp.float32
    assert traced == [(9,)]


@every_loss
def test_gradient_is_the_loop_s_finite_difference(x64, name):
    prediction, target, where, weights = columns(name)
    oracle = lambda p, t, w: reference.total(POINTWISE[name].oracle, p, t, where, w)[0]
    got = jax.grad(
        lambda p, t, w: POINTWISE[name].loss(p, t, where=jnp.asarray(where), weights=w).sum, argnums=(0, 1, 2)
    )(*map(jnp.asarray, (prediction, target, weights)))
    expected = [
        reference.central_differences(lambda p: oracle(p, target, weights), prediction),
        reference.central_differences(lambda t: oracle(prediction, t, weights), target),
        reference.central_differences(lambda w: oracle(prediction, target, w), weights),
    ]
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-7, atol=1e-8)


@every_loss
def test_second_derivatives_in_both_modes(x64, name):
    prediction, target, where, weights = map(jnp.asarray, columns(name))
    loss = lambda p: POINTWISE[name].loss(p, target, where=where, weights=weights).sum
    check_grads(jax.jit(loss), (prediction,), order=2, modes=("fwd", "rev"), eps=1e-5)


@every_slope
def test_slope_is_the_derivative_in_the_prediction(x64, name):
    entry, (prediction, target, _, _) = SMOOTH[name], columns(name)
    slope = entry.slope(*map(jnp.asarray, (prediction, target)))
    by_jax = jax.grad(lambda p, t: entry.loss(p, t).sum)(*map(jnp.asarray, (prediction, target)))
    by_differences = reference.central_differences(lambda p: reference.total(entry.oracle, p, target)[0], prediction)
    np.testing.assert_allclose(slope, by_jax, rtol=1e-12)
    np.testing.assert_allclose(slope, by_differences, rtol=1e-7, atol=1e-8)


def test_absolute_error_has_gradient_zero_where_equal():
    gradient = jax.grad(lambda p: losses.absolute_error(p, jnp.array([1.0, 1.0, 1.0])).sum)(jnp.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(gradient, [-1, 0, 1])


@pytest.mark.parametrize(("z", "y"), [(1e4, 0.0), (1e4, 1.0), (-1e4, 0.0), (-1e4, 1.0)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_logits_stay_finite(x64, z, y, dtype):
    logit, target = jnp.array([z], dtype), jnp.array([y], dtype)
    right = (z > 0) == (y == 1)
    value, gradient = jax.value_and_grad(lambda logit: losses.logistic(logit, target).sum)(logit)
    assert float(value) == (0 if right else 1e4)  # -log g(z) = log(1 + e^-z), -log(1 - g(z)) = log(1 + e^z)
    assert float(gradient[0]) == (0 if right else math.copysign(1, z))  # g - y
    np.testing.assert_array_equal(losses.logistic.slope(logit, target), gradient)


@every_loss
@pytest.mark.parametrize("wrong", ["target", "where", "weights"])
def test_shape_mistakes_are_refused_with_both_shapes(as_users_run, name, wrong):
    arrays = {"target": jnp.zeros(3), "where": jnp.ones(3, bool), "weights": jnp.ones(3)}
    arrays[wrong] = arrays[wrong][:, None]
    with pytest.raises(ValueError, match=rf"prediction: \(3,\).*{wrong}: \(3, 1\)"):
        POINTWISE[name].loss(jnp.zeros(3), arrays["target"], where=arrays["where"], weights=arrays["weights"])
    with pytest.raises(ValueError, match=r"\(3, 1\).*\(3,\)"):
        jax.jit(POINTWISE[name].loss)(jnp.zeros((3, 1)), jnp.zeros(3))
