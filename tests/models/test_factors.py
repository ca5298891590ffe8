"""predict, predict_all and as_vectors give the same predictions, and init follows its options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, data, losses, models
from jaxrec.losses.layouts import predict_entries
from jaxrec.models.factors import init
from jaxrec.prediction import as_vectors, predict, predict_all
from jaxrec.types import Factors

N_USERS, N_ITEMS, D = 5, 7, 3
MODELS = pytest.mark.parametrize("mu", [None, "scalar", "per item"])
BIASES = pytest.mark.parametrize("item_bias", [True, False])


def draw(mu, item_bias, seed=0, d=D):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    offset = {None: None, "scalar": jnp.float32(3.5), "per item": normal(N_ITEMS)}[mu]
    c = normal(N_ITEMS) if item_bias else None
    return Factors(normal(N_USERS, d), normal(N_USERS), normal(N_ITEMS, d), c, offset)


def by_loop(factors):
    """Predictions [n_users, n_items] by loops over the formula, in float64."""
    w, b, x = (np.asarray(table, np.float64) for table in (factors.w, factors.b, factors.x))
    c = np.zeros(N_ITEMS) if factors.c is None else np.asarray(factors.c, np.float64)
    mu = np.broadcast_to(0.0 if factors.mu is None else np.asarray(factors.mu, np.float64), N_ITEMS)
    return np.array([[w[j] @ x[i] + b[j] + c[i] + mu[i] for i in range(N_ITEMS)] for j in range(N_USERS)])


@MODELS
@BIASES
@pytest.mark.parametrize("d", [D, 0])
def test_predict_and_predict_all_and_as_vectors_agree_with_the_formula(mu, item_bias, d):
    factors = draw(mu, item_bias, d=d)
    expected = by_loop(factors)
    np.testing.assert_allclose(predict_all(factors), expected, rtol=1e-5, atol=1e-5)
    user, item = np.divmod(np.arange(N_USERS * N_ITEMS), N_ITEMS)
    pairs = predict(factors, jnp.asarray(user), jnp.asarray(item))
    np.testing.assert_allclose(pairs.reshape(N_USERS, N_ITEMS), expected, rtol=1e-5, atol=1e-5)
    users, items = as_vectors(factors)
    assert (users.shape, items.shape) == ((N_USERS, d + 2), (N_ITEMS, d + 2))
    np.testing.assert_allclose(users @ items.T, expected, rtol=1e-5, atol=1e-5)


@MODELS
@BIASES
def test_predict_accepts_pairs_of_any_shape(mu, item_bias):
    factors = draw(mu, item_bias)
    user, item = np.random.default_rng(1).integers([[N_USERS]] * 6 + [[N_ITEMS]] * 6, size=(12, 4)).reshape(2, 6, 4)
    got = predict(factors, jnp.asarray(user), jnp.asarray(item))
    np.testing.assert_allclose(got, by_loop(factors)[user, item], rtol=1e-5, atol=1e-5)
    one = predict(factors, jnp.asarray(user[0, 0]), jnp.asarray(item[0, 0]))
    assert one.shape == ()
    np.testing.assert_allclose(one, got[0, 0], rtol=1e-6)


@MODELS
def test_every_layout_has_the_same_predictions(mu):
    factors, expected = draw(mu, item_bias=True), by_loop(draw(mu, item_bias=True))
    user, item = np.array([0, 4, 4, 1, 2]), np.array([6, 0, 3, 3, 1])
    ratings = Ratings(user, item, np.zeros(5), N_USERS, N_ITEMS)
    np.testing.assert_allclose(predict_entries(factors, data.dense(ratings)), expected.T, rtol=1e-5, atol=1e-5)
    for layout in (data.observed(ratings, pad_to_multiple=4), data.linked(ratings, pad_to_multiple=4)):
        want = expected[np.asarray(layout.user), np.asarray(layout.item)]
        np.testing.assert_allclose(predict_entries(factors, layout), want, rtol=1e-5, atol=1e-5)
    for side in ("user", "item"):
        layout = data.rows(ratings, side, min_length=1, pad_to_multiple=2)
        for bucket, got in zip(layout.buckets, predict_entries(factors, layout), strict=True):
            row, other = np.asarray(bucket.row)[:, None], np.asarray(bucket.other)
            want = expected[row, other] if side == "user" else expected[other, row]
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("as_users_run")
def test_predictions_for_something_other_than_a_layout_are_refused():
    with pytest.raises(TypeError, match=r"^expected ratings as Dense, Observed, Linked or Rows, got Ratings"):
        predict_entries(draw(None, True), Ratings([0], [0], [1.0], N_USERS, N_ITEMS))


@MODELS
@BIASES
def test_gradients_of_repeated_ids_are_summed(mu, item_bias):
    factors = draw(mu, item_bias)
    user, item = jnp.array([2, 2, 0, 2, 4]), jnp.array([1, 1, 1, 5, 0])
    cotangent = np.float32([1.0, 10.0, 100.0, 1000.0, 0.5])
    got = jax.grad(lambda f: jnp.sum(jnp.asarray(cotangent) * predict(f, user, item)))(factors)
    w, b, x, c = np.zeros((N_USERS, D)), np.zeros(N_USERS), np.zeros((N_ITEMS, D)), np.zeros(N_ITEMS)
    for j, i, g in zip(user.tolist(), item.tolist(), cotangent, strict=True):
        w[j] += g * np.asarray(factors.x)[i]
        x[i] += g * np.asarray(factors.w)[j]
        b[j] += g
        c[i] += g
    for name, table, expected in (("w", got.w, w), ("b", got.b, b), ("x", got.x, x)):
        np.testing.assert_allclose(table, expected, rtol=1e-5, atol=1e-4, err_msg=name)
    if item_bias:
        np.testing.assert_allclose(got.c, c, rtol=1e-6)
    else:
        assert got.c is None


@pytest.mark.parametrize("mu", ["scalar", "per item"])
@BIASES
def test_no_gradient_reaches_mu(mu, item_bias):
    factors = draw(mu, item_bias)
    functions = [
        lambda f: predict(f, jnp.array([1]), jnp.array([2])).sum(),
        lambda f: predict_all(f).sum(),
        lambda f: sum(table.sum() for table in as_vectors(f)),
    ]
    for function in functions:
        gradient = jax.grad(function)(factors)
        assert not np.asarray(gradient.mu).any()
        assert np.asarray(gradient.b).any()


# init


def test_init_returns_tables_of_the_given_shapes_and_zero_biases():
    factors = init(N_USERS, N_ITEMS, D, key=jax.random.key(0))
    assert [table.shape for table in (factors.w, factors.b, factors.x, factors.c)] == [(5, 3), (5,), (7, 3), (7,)]
    assert not np.asarray(factors.b).any()
    assert not np.asarray(factors.c).any()
    assert factors.mu is None


@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_the_scale_is_the_standard_deviation_of_the_initial_factors(scale):
    factors = init(300, 400, 50, key=jax.random.key(1), scale=scale)
    for table in (np.asarray(factors.w), np.asarray(factors.x)):
        assert table.std() == pytest.approx(scale, rel=0.03)  # of 15000 draws: 0.6 % is one standard deviation
        assert abs(table.mean()) < 0.05 * scale


def test_the_default_scale_is_one_tenth():
    assert np.asarray(init(300, 400, 50, key=jax.random.key(1)).w).std() == pytest.approx(1 / 10, rel=0.03)


def test_initial_users_and_items_are_independent():
    factors = init(200, 200, 4, key=jax.random.key(2))
    w, x = np.asarray(factors.w), np.asarray(factors.x)
    assert not (w == x).any()
    assert abs(np.corrcoef(w.ravel(), x.ravel())[0, 1]) < 0.15  # 800 pairs: 0.035 is one standard deviation


def test_the_key_determines_the_initial_factors():
    one, same, other = (init(3, 4, 2, key=jax.random.key(seed)) for seed in (0, 0, 1))
    assert (one.w == same.w).all()
    assert (one.x == same.x).all()
    assert not (one.w == other.w).any()
    assert not (one.x == other.x).any()


def test_init_can_leave_out_the_item_biases():
    assert init(3, 4, 2, key=jax.random.key(0), item_bias=False).c is None


@pytest.mark.parametrize("mu", [3.5, 3, jnp.float32(3.5), jnp.arange(4.0)], ids=["float", "int", "scalar", "per item"])
def test_init_accepts_a_number_or_one_mean_per_item_as_mu(mu):
    factors = init(3, 4, 2, key=jax.random.key(0), mu=mu, scale=0.0)
    np.testing.assert_array_equal(factors.mu, mu)
    assert factors.mu.dtype == jnp.float32
    np.testing.assert_array_equal(predict_all(factors), np.broadcast_to(mu, (3, 4)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_init_gives_every_array_the_requested_dtype(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        factors = init(3, 4, 2, key=jax.random.key(0), mu=1.5, dtype=dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(factors)} == {jnp.dtype(dtype)}
        assert predict(factors, jnp.array([0]), jnp.array([1])).dtype == dtype
        assert predict_all(factors).dtype == dtype
        assert {table.dtype for table in as_vectors(factors)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("layout", ["linked", "user", "item"])
def test_factors_of_other_table_sizes_than_the_layout_are_refused(layout):
    ratings = Ratings([0, 2], [1, 3], [1.0, 2.0], 3, 4)
    ratings_layout = data.linked(ratings) if layout == "linked" else data.rows(ratings, layout)
    factors = models.init(3, 4, 2, key=jax.random.key(0))
    losses.cost(factors, ratings_layout, l2=1.0)
    small = models.init(2, 4, 2, key=jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"expected tables of \(3, 4\) users and items, as the ratings have, got \(2, 4\)"
    ):
        losses.cost(small, ratings_layout, l2=1.0)
    if layout == "linked":
        with pytest.raises(ValueError, match=r"expected tables of \(3, 4\)"):
            losses.closed_form.value_and_gradient(small, ratings_layout, l2=1.0)


def test_trainable_mask_covers_everything_but_mu():
    mask = models.trainable_mask(models.init(2, 3, 1, key=jax.random.key(0), mu=3.5))
    assert (mask.w, mask.b, mask.x, mask.c, mask.mu) == (True, True, True, True, False)
    assert models.trainable_mask(models.init(2, 3, 1, key=jax.random.key(0), item_bias=False)).c is None
