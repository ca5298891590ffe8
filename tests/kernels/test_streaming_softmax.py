"""The streaming softmax and the bags of rows: against NumPy and autodiff of the dense form, in many small tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.kernels import bags, streaming_softmax
from jaxrec.kernels.bags import bag_scores, bag_sum
from jaxrec.kernels.streaming_softmax import log_sum_exp

RNG = np.random.default_rng(0)
N, M, D, E = 7, 11, 3, 4
QUERIES, ITEMS, BIAS = RNG.normal(size=(N, D)), RNG.normal(size=(M, D)), RNG.normal(size=M)
WHERE = RNG.random((N, M)) < 0.6
WHERE[2] = False
IDS, WEIGHT = RNG.integers(0, M, (N, E)), RNG.normal(size=(N, E))
IDS[3] = 5  # one row four times
OPTIONS = {"plain": (None, None), "bias": (BIAS, None), "where": (None, WHERE), "both": (BIAS, WHERE)}


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 3 queries and 4 items, whose last ones begin early; caches keep no program with other tiles."""
    for sizes, number in (
        (streaming_softmax.TILE_SCORES, 12),
        (streaming_softmax.TILE_QUERIES, 3),
        (bags.GATHERED, 2 * D * E),
    ):
        for platform in sizes:
            monkeypatch.setitem(sizes, platform, number)
    jax.clear_caches()
    yield
    jax.clear_caches()


def dense(queries, items, bias, where):
    """The log-sum-exp by its formula."""
    scores = queries @ items.T + (0 if bias is None else bias[None, :])
    return jax.scipy.special.logsumexp(scores if where is None else jnp.where(where, scores, -jnp.inf), axis=1)


def on_device(*arrays):
    return [None if array is None else jnp.asarray(array) for array in arrays]


@pytest.mark.parametrize(
    ("name", "platform"), [*((name, "cpu") for name in OPTIONS), ("both", "cuda"), ("both", "tpu")]
)
def test_value_and_gradient_equal_those_of_the_dense_form(x64, lowered_for, small_tiles, name, platform):
    lowered_for(platform)
    queries, items, bias, where = on_device(QUERIES, ITEMS, *OPTIONS[name])
    weight = jnp.arange(1.0, N + 1).at[2].set(0 if where is not None else 3)  # row 2 has no items under the mask
    streamed = lambda q, v, b: sum(log_sum_exp(q, v, b, where))
    total = lambda f: lambda q, v, b: jnp.sum(jnp.where(weight > 0, weight * f(q, v, b), 0))
    args = (queries, items) if bias is None else (queries, items, bias)
    call = lambda f: (lambda q, v: f(q, v, None)) if bias is None else f
    filled = np.ones(N, bool) if where is None else WHERE.any(axis=1)
    np.testing.assert_allclose(streamed(queries, items, bias)[filled], dense(queries, items, bias, where)[filled])
    argnums = tuple(range(len(args)))
    got = jax.grad(call(total(streamed)), argnums)(*args)
    safe = where if where is None else where.at[2].set(True)
    expected = jax.grad(call(total(lambda q, v, b: dense(q, v, b, safe))), argnums)(*args)
    for gradient, expected_gradient in zip(got, expected, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


def test_infinite_scores_count_as_equal_finite_scores_would_and_have_no_derivative(small_tiles):
    queries, items = jnp.ones((1, D)), jnp.zeros((M, D))

    def values(bias):
        value = lambda b: log_sum_exp(queries, items, b)
        gradient = jax.grad(lambda b: jnp.sum(value(b).log_total))(bias)
        assert np.isfinite(gradient).all()
        return *(float(part[0]) for part in value(bias)), gradient

    finite = jnp.zeros(M)
    top, log_total, gradient = values(finite.at[3].set(-jnp.inf))
    assert (top, log_total) == (0, pytest.approx(np.log(M - 1)))
    assert gradient[3] == 0
    top, log_total, gradient = values(finite.at[jnp.array([3, 9])].set(jnp.inf))
    assert (top, log_total) == (np.inf, pytest.approx(np.log(2)))
    assert (gradient == 0).all()
    top, log_total, gradient = values(jnp.full(M, -jnp.inf))
    assert (top, log_total) == (-np.inf, pytest.approx(np.log(M)))
    assert (gradient == 0).all()
    top, log_total, _ = values(finite.at[10].set(1e4))
    assert (top, log_total) == (1e4, 0)


@pytest.mark.parametrize("n", [0, 1])
def test_no_queries_and_one_item_are_allowed(n):
    queries, items = jnp.ones((n, D)), jnp.ones((1, D))
    value, gradient = jax.value_and_grad(lambda v: jnp.sum(sum(log_sum_exp(queries, v))))(items)
    assert float(value) == n * D
    assert gradient.tolist() == [[n] * D]
    ids = jnp.zeros((n, 2), jnp.int32)
    assert jax.grad(lambda t: jnp.sum(bag_scores(queries, t, ids)))(items).tolist() == [[2 * n] * D]


def test_vmap_equals_a_loop(small_tiles):
    queries, items = jnp.asarray(np.stack([QUERIES, -QUERIES]), jnp.float32), jnp.asarray(ITEMS, jnp.float32)
    gradient = jax.grad(lambda q: jnp.sum(log_sum_exp(q, items).log_total))
    np.testing.assert_allclose(
        jax.vmap(gradient)(queries), np.stack([gradient(q) for q in queries]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_bags_and_their_gradients_equal_those_of_the_dense_form(x64, lowered_for, small_tiles, platform):
    lowered_for(platform)
    query, table, weight, ids = on_device(QUERIES, ITEMS, WEIGHT, IDS)
    cases = [
        (bag_scores, lambda q, t: jnp.einsum("nd,ned->ne", q, t[ids]), query, weight),
        (bag_sum, lambda w, t: jnp.einsum("ne,ned->nd", w, t[ids]), weight, query),
    ]
    for function, formula, left, g in cases:
        np.testing.assert_allclose(function(left, table, ids), formula(left, table), rtol=1e-12)
        got = jax.grad(lambda a, t, f=function, g=g: jnp.sum(g * f(a, t, ids)), (0, 1))(left, table)
        expected = jax.grad(lambda a, t, f=formula, g=g: jnp.sum(g * f(a, t)), (0, 1))(left, table)
        for gradient, expected_gradient in zip(got, expected, strict=True):
            np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


def sizes(jaxpr):
    """The number of entries of every array that a program computes, also in its loops and branches."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


@pytest.mark.cpu
def test_no_array_of_queries_x_items_exists(lowered_for):
    """32 MiB of scores would be the largest array by far; the program takes an eighth of it beside its results."""
    lowered_for("cpu")
    n, m, d, e = 2048, 4096, 16, 8
    floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    args = floats(n, d), floats(m, d), floats(m), jax.ShapeDtypeStruct((n, e), jnp.int32)

    def loss(queries, items, bias, ids):
        return jnp.sum(log_sum_exp(queries, items, bias).log_total) - jnp.sum(bag_scores(queries, items, ids))

    program = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    assert max(sizes(jax.make_jaxpr(program)(*args).jaxpr)) <= max(streaming_softmax.TILE_SCORES["cpu"], n * d * e)
    memory = program.lower(*args).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * n * m / 8
