"""rmse and mae equal the calculation by hand, with masks and weights, and refuse invalid arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.metrics import mae, rmse

METRICS = pytest.mark.parametrize("metric", [rmse, mae])
PREDICTION = jnp.array([4.0, 3.0, 1.0, 0.0])
TARGET = jnp.array([5.0, 3.0, -1.0, 4.0])  # errors -1, 0, 2, -4


def draw(seed, n=12):
    rng = np.random.default_rng(seed)
    return rng.normal(size=n).astype(np.float32), rng.integers(6, size=n).astype(np.float32), rng.random(n) < 0.6


def test_the_metrics_equal_the_calculation_by_hand():
    assert float(rmse(PREDICTION, TARGET)) == pytest.approx(np.sqrt((1 + 0 + 4 + 16) / 4), rel=1e-6)
    assert float(mae(PREDICTION, TARGET)) == pytest.approx((1 + 0 + 2 + 4) / 4, rel=1e-6)


def test_masked_and_weighted_metrics_equal_the_calculation_by_hand():
    where = jnp.array([True, True, True, False])
    weights = jnp.array([3.0, 0.5, 2.0, 100.0])
    got = rmse(PREDICTION, TARGET, where=where, weights=weights), mae(PREDICTION, TARGET, where=where, weights=weights)
    assert float(got[0]) == pytest.approx(np.sqrt((3 * 1 + 0.5 * 0 + 2 * 4) / 5.5), rel=1e-6)
    assert float(got[1]) == pytest.approx((3 * 1 + 0.5 * 0 + 2 * 2) / 5.5, rel=1e-6)


@METRICS
def test_exactly_predicted_zeros_count(metric):
    assert float(metric(jnp.array([0.0, 2.0]), jnp.array([0.0, 0.0]))) == {rmse: np.float32(np.sqrt(2)), mae: 1}[metric]


@METRICS
@pytest.mark.parametrize("seed", range(3))
def test_masking_equals_deleting(metric, seed):
    prediction, target, where = draw(seed)
    masked = metric(jnp.asarray(prediction), jnp.asarray(target), where=jnp.asarray(where))
    deleted = metric(jnp.asarray(prediction[where]), jnp.asarray(target[where]))
    np.testing.assert_allclose(masked, deleted, rtol=1e-6)
    assert abs(float(masked) - float(metric(jnp.asarray(prediction), jnp.asarray(target)))) > 1e-3


@METRICS
@pytest.mark.parametrize("seed", range(3))
def test_integer_weights_equal_repetition(metric, seed):
    prediction, target, _ = draw(seed)
    times = np.random.default_rng(seed).integers(4, size=12)
    weighted = metric(jnp.asarray(prediction), jnp.asarray(target), weights=jnp.asarray(times, jnp.float32))
    repeated = metric(jnp.asarray(np.repeat(prediction, times)), jnp.asarray(np.repeat(target, times)))
    np.testing.assert_allclose(weighted, repeated, rtol=1e-6)


@METRICS
@pytest.mark.parametrize("masked_value", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("masked_column", ["prediction", "target", "weights"])
def test_masked_entries_may_be_arbitrary(metric, masked_value, masked_column):
    prediction, target, where = draw(0)
    columns = {"prediction": prediction, "target": target, "weights": np.linspace(1, 2, 12, dtype=np.float32)}
    with_masked_values = columns | {masked_column: np.where(where, columns[masked_column], np.float32(masked_value))}

    def value(prediction, columns):
        rest = {name: jnp.asarray(column) for name, column in columns.items() if name != "prediction"}
        return metric(prediction, where=jnp.asarray(where), **rest)

    clean, got = (
        jax.value_and_grad(value)(jnp.asarray(which["prediction"]), which) for which in (columns, with_masked_values)
    )
    np.testing.assert_array_equal(got[0], clean[0])
    np.testing.assert_array_equal(got[1], clean[1])
    assert np.isfinite(clean[1]).all()


@METRICS
def test_an_unmasked_nan_makes_the_metric_nan(metric):
    assert np.isnan(metric(PREDICTION, TARGET.at[0].set(jnp.nan)))


@METRICS
@pytest.mark.parametrize(
    ("n", "options"),
    [
        (4, {"where": jnp.zeros(4, bool)}),
        (4, {"weights": jnp.zeros(4)}),
        (4, {"where": jnp.arange(4) == 0, "weights": jnp.array([0.0, 1.0, 1.0, 1.0])}),
        (0, {}),
    ],
    ids=["all masked", "all weights 0", "masked or weight 0", "no entries"],
)
def test_a_mean_of_no_entries_is_refused(metric, n, options):
    with pytest.raises(ValueError, match=r"^nothing to average"):
        metric(PREDICTION[:n], TARGET[:n], **options)
    assert np.isnan(jax.jit(metric)(PREDICTION[:n], TARGET[:n], **options)), (
        "under jit the value is NaN, since nothing can be raised"
    )


@METRICS
@pytest.mark.parametrize(
    ("target", "options"),
    [
        (jnp.ones((4, 1)), {}),
        (jnp.ones(1), {}),
        (jnp.ones(()), {}),
        (jnp.ones(4), {"where": jnp.ones((4, 1), bool)}),
        (jnp.ones(4), {"weights": jnp.ones(1)}),
    ],
    ids=["a column as target", "one target", "a scalar target", "a column as where", "one weight"],
)
@pytest.mark.usefixtures("as_users_run")
def test_arrays_of_different_shapes_are_refused(metric, target, options):
    for call in (metric, jax.jit(metric)):
        with pytest.raises(ValueError, match=r"^expected arrays of one shape, got prediction: \(4,\)"):
            call(jnp.ones(4), target, **options)


@METRICS
def test_the_metrics_accept_any_shape_and_vmap_and_jit(metric):
    prediction, target, where = (jnp.asarray(column).reshape(3, 4) for column in draw(1))
    flat = metric(prediction.reshape(-1), target.reshape(-1), where=where.reshape(-1))
    np.testing.assert_allclose(metric(prediction, target, where=where), flat, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(metric)(prediction, target, where=where), flat, rtol=1e-6)
    each = jax.vmap(lambda p, y, r: metric(p, y, where=r))(prediction, target, where)
    expected = [metric(prediction[n], target[n], where=where[n]) for n in range(3)]
    np.testing.assert_allclose(each, np.array(expected), rtol=1e-6)


@METRICS
def test_float64_columns_are_computed_in_float64(metric):
    with jax.enable_x64(True):
        got = metric(jnp.array([1 + 1e-12], jnp.float64), jnp.array([1.0], jnp.float64), weights=jnp.array([2.0]))
        assert got.dtype == jnp.float64
        assert float(got) == pytest.approx(1e-12, rel=1e-3)
