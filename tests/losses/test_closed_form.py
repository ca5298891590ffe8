"""Closed-form gradients equal jax.grad of the costs and finite differences; so does `closed_form.cost`."""

import dataclasses
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, data, losses, models
from jaxrec.losses import closed_form
from jaxrec.types import Dense, Factors, Linked
from tests import reference
from tests.losses.cases import (
    LAYOUTS,
    N_ITEMS,
    N_USERS,
    ONE_ITEM,
    ONE_USER,
    OPTIONS,
    PER_ITEM,
    PER_USER,
    RANK,
    SMOOTH,
    finite_differences,
    on_device,
    random_problem,
    rated_everywhere,
    value_and_gradient,
    with_garbage,
    without_ratings,
)
from tests.trees import as_dtype, assert_trees_close

every_smooth_loss = pytest.mark.parametrize("name", SMOOTH)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
GARBAGE = [np.nan, np.inf, -1e300]


@partial(jax.jit, static_argnames="loss")
def compiled_value_and_gradient(factors, ratings, *, l2, l2_bias, loss=losses.half_squared_error):
    """`closed_form.value_and_gradient`, compiled once for all tests."""
    return closed_form.value_and_gradient(factors, ratings, l2=l2, l2_bias=l2_bias, loss=loss)


# Bob's column of the lecture notes' table (test_costs.py has all of it): his residuals are -0.5, 0.95, 0.5 and 0.

X = [[0.9, 0.0], [1.0, 0.01], [0.99, 0.0], [0.1, 1.0], [0.0, 0.9]]


def test_user_gradient_equals_a_calculation_by_hand(x64):
    y = jnp.array([5.0, jnp.nan, 4.0, 0.0, 0.0])
    by_w, by_b = closed_form.user_gradient(
        jnp.array([5.0, 0.0]), jnp.array(0.0), jnp.array(X), y, ~jnp.isnan(y), l2=0.1, l2_bias=7.0
    )
    np.testing.assert_allclose(by_w, [-0.5 * 0.9 + 0.95 * 0.99 + 0.5 * 0.1 + 0.1 * 5, 0.5 * 1.0 + 0.1 * 0], rtol=1e-12)
    assert float(by_b) == pytest.approx(-0.5 + 0.95 + 0.5 + 7.0 * 0.0)


def test_item_gradient_equals_a_calculation_by_hand(x64):
    w, b = jnp.array([[5.0, 0.0], [5.0, 0.0], [0.0, 5.0], [0.0, 4.0]]), jnp.array([0.5, 0.0, 0.5, 0.0])
    y = jnp.array([0.0, 0.0, 5.0, jnp.nan])  # Swords vs. karate, x = (0, 0.9), c = 0.2: residuals 0.7, 0.2 and 0.2
    by_x, by_c = closed_form.item_gradient(
        jnp.array([0.0, 0.9]), w, b, y, ~jnp.isnan(y), l2=0.1, c=jnp.array(0.2), l2_bias=3.0
    )
    np.testing.assert_allclose(by_x, [0.7 * 5 + 0.2 * 5, 0.2 * 5 + 0.1 * 0.9], rtol=1e-12)
    assert float(by_c) == pytest.approx(0.7 + 0.2 + 0.2 + 3.0 * 0.2)


# One user or one item


@every_smooth_loss
@pytest.mark.parametrize("options", ONE_USER)
@pytest.mark.parametrize("user", [0, 1])
def test_user_gradient_equals_autodiff_and_finite_differences(x64, name, options, user):
    entry, p = SMOOTH[name], random_problem(binary=SMOOTH[name].binary)
    assert p.where[:, user].any() == (user == 0)  # user 1 has no ratings
    arguments = p.w[user], p.b[user], p.x, p.y[:, user], p.where[:, user]
    device, keywords = list(map(jnp.asarray, arguments)), {"l2": 0.3} | on_device(ONE_USER[options])
    got = tuple(closed_form.user_gradient(*device, loss=entry.loss, **keywords))
    assert_trees_close(got, jax.grad(losses.user_cost, argnums=(0, 1))(*device, loss=entry.loss, **keywords))
    oracle = lambda w, b: reference.user_cost(w, b, *arguments[2:], l2=0.3, loss=entry.oracle, **ONE_USER[options])
    by_w = reference.central_differences(lambda w: oracle(w, p.b[user]), p.w[user])
    by_b = reference.central_differences(lambda b: oracle(p.w[user], b), p.b[user])
    assert_trees_close(got, (by_w, by_b), rtol=1e-7, atol=1e-8)


@every_smooth_loss
@pytest.mark.parametrize("options", ONE_ITEM)
@pytest.mark.parametrize("item", [2, 0])
def test_item_gradient_equals_autodiff_and_finite_differences(x64, name, options, item):
    entry, p = SMOOTH[name], random_problem(binary=SMOOTH[name].binary)
    assert p.where[item].any() == (item == 2)  # item 0 has no ratings
    arguments = p.x[item], p.w, p.b, p.y[item], p.where[item]
    device, keywords = list(map(jnp.asarray, arguments)), {"l2": 0.3} | on_device(ONE_ITEM[options])
    got = tuple(closed_form.item_gradient(*device, loss=entry.loss, **keywords))

    def oracle(x, **changes):
        return reference.item_cost(x, *arguments[1:], l2=0.3, loss=entry.oracle, **(ONE_ITEM[options] | changes))

    by_x = reference.central_differences(oracle, p.x[item])
    if "c" in keywords:
        c = keywords.pop("c")
        cost = lambda x, c: losses.item_cost(x, *device[1:], loss=entry.loss, c=c, **keywords)
        assert_trees_close(got, jax.grad(cost, argnums=(0, 1))(device[0], c))
        by_c = reference.central_differences(lambda c: oracle(p.x[item], c=c), c)
        assert_trees_close(got, (by_x, by_c), rtol=1e-7, atol=1e-8)
    else:
        assert_trees_close(got[0], jax.grad(losses.item_cost)(*device, loss=entry.loss, **keywords))
        assert_trees_close(got[0], by_x, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_masked_garbage_does_not_change_the_gradient_of_one_user_or_item(x64, garbage):
    p = random_problem()
    x, w, b, c = map(jnp.asarray, (p.x, p.w, p.b, np.float64(0.6)))
    y, where = jnp.asarray(p.y[:, 0]), jnp.asarray(p.where[:, 0])

    def user_gradient(masked_value):
        spoil = lambda array: jnp.where(where, array, masked_value)
        options = {"weights": spoil(jnp.arange(1.0, 1 + N_ITEMS)), "offset": spoil(jnp.arange(0.0, N_ITEMS))}
        return closed_form.user_gradient(w[0], b[0], x, spoil(y), where, l2=0.3, **options)

    assert_trees_close(user_gradient(garbage), user_gradient(0.0), rtol=0, atol=0)
    y, where = jnp.asarray(p.y[2]), jnp.asarray(p.where[2])

    def item_gradient(masked_value):
        spoil = lambda array: jnp.where(where, array, masked_value)
        weights = spoil(jnp.arange(1.0, 1 + N_USERS))
        return closed_form.item_gradient(x[2], w, spoil(b), spoil(y), where, l2=0.3, c=c, weights=weights)

    assert_trees_close(item_gradient(garbage), item_gradient(0.0), rtol=0, atol=0)


def test_vmap_over_users_and_items_equals_the_joint_gradient(x64):
    p = random_problem(OPTIONS["l2 per row"])
    w, b, x, y, where = map(jnp.asarray, (p.w, p.b, p.x, p.y, p.where))
    user = lambda w, b, y, where, l2: closed_form.user_gradient(w, b, x, y, where, l2=l2)
    item = lambda x, y, where, l2: closed_form.item_gradient(x, w, b, y, where, l2=l2)
    by_w, by_b = jax.vmap(user, in_axes=(0, 0, 1, 1, 0))(w, b, y, where, jnp.asarray(PER_USER))
    by_x, _ = jax.vmap(item)(x, y, where, jnp.asarray(PER_ITEM))
    expected = finite_differences(p, reference.half_squared_error)
    assert_trees_close(Factors(by_w, by_b, by_x), expected, rtol=1e-7, atol=1e-8)


# The joint gradient


# With "all", below, every option that the code of a layout can depend on.
STRUCTURES = ["plain", "c", "mu a number", "weights"]


@pytest.mark.parametrize(
    ("layout", "option"),
    [("dense", option) for option in OPTIONS]
    + [(layout, option) for layout in ("observed padded", "linked padded") for option in STRUCTURES],
)
def test_joint_gradient_with_every_option_equals_finite_differences(x64, layout, option):
    problem = random_problem(OPTIONS[option])
    ratings = problem.layout(LAYOUTS[layout])
    value, got = compiled_value_and_gradient(problem.factors(), ratings, **problem.strengths())
    np.testing.assert_allclose(value, problem.reference(), rtol=1e-12)
    assert_trees_close(got, finite_differences(problem, reference.half_squared_error), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        *[("dense", name) for name in SMOOTH],
        *[("linked padded", name) for name in SMOOTH],
        ("observed", "logistic"),
        ("observed padded", "half_squared_error"),
        ("linked", "logistic"),
    ],
)
def test_gradient_of_losses_on_layouts(x64, layout, name):
    entry = SMOOTH[name]
    problem = random_problem(OPTIONS["all"], binary=entry.binary)
    ratings, keywords = problem.layout(LAYOUTS[layout]), problem.strengths()
    value, got = compiled_value_and_gradient(problem.factors(), ratings, loss=entry.loss, **keywords)
    np.testing.assert_allclose(value, problem.reference(entry.oracle), rtol=1e-12)
    assert_trees_close(got, finite_differences(problem, entry.oracle), rtol=1e-7, atol=1e-8)
    expected = value_and_gradient(problem.factors(), ratings, loss=entry.loss, **keywords)
    assert_trees_close((value, got), expected)


@pytest.mark.parametrize(
    ("layout", "name"), [("dense", "logistic"), ("observed", "squared_error"), ("linked", "half_squared_error")]
)
def test_gradient_equals_that_of_value_and_gradient(x64, layout, name):
    entry = SMOOTH[name]
    problem = random_problem(OPTIONS["all"], binary=entry.binary)
    ratings, keywords = problem.layout(LAYOUTS[layout]), problem.strengths()
    gradient_alone = closed_form.gradient(problem.factors(), ratings, loss=entry.loss, **keywords)
    _, gradient = compiled_value_and_gradient(problem.factors(), ratings, loss=entry.loss, **keywords)
    assert_trees_close(gradient_alone, gradient)


@every_layout
def test_rows_without_ratings_have_the_gradient_of_their_penalty(x64, layout):
    problem = random_problem(OPTIONS["all"])
    _, got = compiled_value_and_gradient(problem.factors(), problem.layout(LAYOUTS[layout]), **problem.strengths())
    for j in (1, 5):
        np.testing.assert_allclose(got.w[j], PER_USER[j] * problem.w[j], rtol=1e-12)
        np.testing.assert_allclose(got.b[j], 0.2 * problem.b[j], rtol=1e-12)
    for i in (0, 4):
        np.testing.assert_allclose(got.x[i], PER_ITEM[i] * problem.x[i], rtol=1e-12)
        np.testing.assert_allclose(got.c[i], PER_ITEM[i] * problem.c[i], rtol=1e-12)


@every_layout
@pytest.mark.parametrize("garbage", GARBAGE)
def test_masked_garbage_does_not_change_value_and_gradient(x64, layout, garbage):
    problem = random_problem(OPTIONS["all"])
    ratings = problem.layout(LAYOUTS[layout])
    clean = compiled_value_and_gradient(problem.factors(), with_garbage(ratings, 0.0), **problem.strengths())
    spoilt = compiled_value_and_gradient(problem.factors(), with_garbage(ratings, garbage), **problem.strengths())
    assert_trees_close(spoilt, clean, rtol=0, atol=0)
    # Item 0 has no ratings, so its mu is not read.
    spoilt_mu = dataclasses.replace(problem.factors(), mu=problem.factors().mu.at[0].set(garbage))
    if layout in ("dense", "observed", "linked"):
        assert_trees_close(
            compiled_value_and_gradient(spoilt_mu, ratings, **problem.strengths()), clean, rtol=0, atol=0
        )


@every_layout
def test_value_and_gradient_without_ratings_and_penalty_are_zero(x64, layout):
    problem = random_problem(OPTIONS["all"])
    no_ratings = with_garbage(without_ratings(problem.layout(LAYOUTS[layout])), np.nan)
    zero = jax.tree.map(lambda strength: 0 * strength, problem.strengths())
    value, gradient = compiled_value_and_gradient(problem.factors(), no_ratings, **zero)
    assert float(value) == 0
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


@pytest.mark.parametrize("option", ["plain", "all"])
def test_gradients_of_minibatches_add_up_to_the_full_gradient(x64, option):
    problem = rated_everywhere(option)
    batches = [as_dtype(batch, jnp.float64) for batch in data.batches.minibatches(problem.ratings(), 7, rng=0)(0)]
    assert len(batches) > 1
    assert not batches[-1].where.all()
    for function in (compiled_value_and_gradient, closed_form_cost_and_gradient):
        parts = [function(problem.factors(), batch, **problem.strengths()) for batch in batches]
        value, gradient = jax.tree.map(lambda *leaves: sum(leaves), *parts)
        np.testing.assert_allclose(value, problem.reference(), rtol=1e-12)
        assert_trees_close(gradient, finite_differences(problem, reference.half_squared_error), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
@pytest.mark.parametrize("layout", ["dense", "observed padded", "linked padded"])
def test_extreme_logits_stay_finite(layout, logit):
    problem = random_problem(binary=True)
    factors = dataclasses.replace(problem.factors(jnp.float32), mu=jnp.float32(logit))
    factors = dataclasses.replace(factors, w=0 * factors.w, b=0 * factors.b)
    ratings = LAYOUTS[layout](problem.ratings())
    value, gradient = compiled_value_and_gradient(factors, ratings, l2=0.0, l2_bias=0.0, loss=losses.logistic)
    g = 1.0 if logit > 0 else 0.0
    assert float(value) == 1e4 * np.nansum(np.abs(g - problem.y), where=problem.where)
    np.testing.assert_array_equal(gradient.b, np.where(problem.where, g - problem.y, 0).sum(axis=0))


@pytest.mark.parametrize("layout", ["dense", "observed padded", "linked padded"])
def test_jit_equals_eager_and_traces_once_per_shape(layout):
    traces = []

    @jax.jit
    def gradient(factors, ratings, l2):
        traces.append(1)
        return closed_form.gradient(factors, ratings, l2=l2)

    for seed, l2 in ((0, 0.3), (0, 0.5)):
        problem = random_problem(OPTIONS["c"], seed=seed)
        problem = problem._replace(w=l2 * problem.w)
        f, ratings = problem.factors(jnp.float32), LAYOUTS[layout](problem.ratings())
        got = gradient(f, ratings, l2)
        assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float32")}
        assert_trees_close(got, closed_form.gradient(f, ratings, l2=l2), rtol=1e-5, atol=1e-5)
    assert len(traces) == 1


# closed_form.cost: losses.cost with the closed form as its reverse-mode derivative


@partial(jax.jit, static_argnames="loss")
def closed_form_cost_and_gradient(factors, ratings, *, l2, l2_bias, loss=losses.half_squared_error):
    return jax.value_and_grad(closed_form.cost)(factors, ratings, l2=l2, l2_bias=l2_bias, loss=loss)


def value_and_all_gradients(cost, factors, ratings, l2, l2_bias, scale=1.0, **keywords):
    """(value, gradients with respect to factors, value, weights, l2 and l2_bias) of scale * cost."""

    def scaled_cost(factors, value, weights, l2, l2_bias):
        changed = dataclasses.replace(ratings, value=value, weights=weights)
        return scale * cost(factors, changed, l2=l2, l2_bias=l2_bias, **keywords)

    arguments = (factors, ratings.value, ratings.weights, l2, l2_bias)
    return jax.value_and_grad(scaled_cost, argnums=(0, 1, 2, 3, 4))(*arguments)


plain_value_and_all_gradients = jax.jit(partial(value_and_all_gradients, losses.cost), static_argnames="loss")
closed_form_value_and_all_gradients = jax.jit(
    partial(value_and_all_gradients, closed_form.cost), static_argnames="loss"
)


@pytest.mark.parametrize(
    ("layout", "option"),
    [
        ("dense", "plain"),
        ("dense", "l2 per user, a number for items"),
        ("dense", "l2_bias without c"),
        ("linked padded", "c"),
        ("linked padded", "mu a number"),
        ("linked padded", "l2_bias a pair"),
        ("observed padded", "all"),
    ],
)
def test_closed_form_cost_has_the_gradients_of_the_plain_cost_in_every_argument(x64, layout, option):
    problem = random_problem(OPTIONS[option])
    arguments = problem.factors(), with_garbage(problem.layout(LAYOUTS[layout]), np.nan)
    value, gradients = closed_form_value_and_all_gradients(*arguments, **problem.strengths(), scale=2.5)
    np.testing.assert_allclose(value, 2.5 * problem.reference(), rtol=1e-12)
    assert_trees_close((value, gradients), plain_value_and_all_gradients(*arguments, **problem.strengths(), scale=2.5))
    assert np.isfinite(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradients)])).all()


@pytest.mark.parametrize(
    ("layout", "name"),
    [("dense", "logistic"), ("observed padded", "squared_error"), ("linked padded", "logistic")],
)
def test_closed_form_cost_has_the_gradients_of_the_plain_cost_for_every_loss(x64, layout, name):
    entry = SMOOTH[name]
    problem = random_problem(OPTIONS["all"], binary=entry.binary)
    arguments = problem.factors(), problem.layout(LAYOUTS[layout])
    got = closed_form_value_and_all_gradients(*arguments, **problem.strengths(), loss=entry.loss)
    assert_trees_close(got, plain_value_and_all_gradients(*arguments, **problem.strengths(), loss=entry.loss))
    assert_trees_close(got[1][0], finite_differences(problem, entry.oracle), rtol=1e-7, atol=1e-8)


def test_gradients_of_closed_form_cost_in_every_argument_equal_finite_differences(x64):
    problem = random_problem(OPTIONS["all"])
    ratings = problem.layout(LAYOUTS["dense"])
    _, (_, by_value, by_weights, by_l2, by_l2_bias) = closed_form_value_and_all_gradients(
        problem.factors(), ratings, **problem.strengths(), scale=1.0
    )
    where, differences = problem.where, reference.central_differences
    y, weights = np.where(where, problem.y, 0.0), np.where(where, problem.weights, 0.0)
    expected = differences(lambda y: problem.reference(y=y), y)
    np.testing.assert_allclose(by_value, expected, rtol=1e-7, atol=1e-8)
    expected = differences(lambda weights: problem.reference(weights=weights), weights)
    np.testing.assert_allclose(by_weights, expected, rtol=1e-7, atol=1e-8)
    users = differences(lambda users: problem.reference(l2=(users, PER_ITEM)), PER_USER)
    items = differences(lambda items: problem.reference(l2=(PER_USER, items)), PER_ITEM)
    assert_trees_close(by_l2, (users, items), rtol=1e-7, atol=1e-8)
    users = differences(lambda users: problem.reference(l2_bias=(users, PER_ITEM)), 0.2)
    items = differences(lambda items: problem.reference(l2_bias=(0.2, items)), PER_ITEM)
    assert_trees_close(by_l2_bias, (users, items), rtol=1e-7, atol=1e-8)


def test_closed_form_cost_of_a_minibatch_has_its_part_of_the_penalty(x64):
    problem = random_problem(OPTIONS["all"])
    batch = as_dtype(next(data.batches.minibatches(problem.ratings(), 5, rng=0)(0)), jnp.float64)
    arguments = problem.factors(), batch
    got = closed_form_value_and_all_gradients(*arguments, **problem.strengths())
    expected = plain_value_and_all_gradients(*arguments, **problem.strengths())
    assert_trees_close(got, expected)
    full_penalty = dataclasses.replace(batch, user_count=None, item_count=None)
    assert abs(float(got[0] - losses.cost(problem.factors(), full_penalty, **problem.strengths()))) > 0.1


def test_closed_form_cost_has_no_gradient_in_mu(x64):
    for option in ("mu a number", "mu per item"):
        problem = random_problem(OPTIONS[option])
        _, gradient = closed_form_cost_and_gradient(
            problem.factors(), problem.layout(LAYOUTS["linked padded"]), **problem.strengths()
        )
        np.testing.assert_array_equal(gradient.mu, np.zeros(np.shape(problem.mu)))


@pytest.mark.parametrize("layout", ["dense", "observed padded", "linked padded"])
def test_closed_form_cost_can_be_jitted_and_vmapped(x64, layout):
    problem = random_problem(OPTIONS["all"])
    ratings = problem.layout(LAYOUTS[layout])
    (l2_users, l2_items), l2_bias = problem.strengths()["l2"], problem.strengths()["l2_bias"]
    points = [problem, problem._replace(w=problem.w + 1, x=-problem.x, c=2 * problem.c)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p.factors() for p in points))
    scales = jnp.array([1.0, 3.0])  # of the users' l2

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 0))
    def values_and_gradients(factors, scale):
        cost = lambda f, scale: closed_form.cost(f, ratings, l2=(scale * l2_users, l2_items), l2_bias=l2_bias)
        return jax.value_and_grad(cost, argnums=(0, 1))(factors, scale)

    value, (by_factors, by_scale) = values_and_gradients(stacked, scales)
    for k, scale in enumerate((1.0, 3.0)):
        point = points[k]._replace(l2=(scale * PER_USER, PER_ITEM))
        np.testing.assert_allclose(value[k], point.reference(), rtol=1e-12)
        expected = finite_differences(point, reference.half_squared_error)
        assert_trees_close(jax.tree.map(lambda leaf, k=k: leaf[k], by_factors), expected, rtol=1e-7, atol=1e-8)
        norm = sum(PER_USER[j] * reference.half_squared_norm(point.w[j]) for j in range(N_USERS))
        np.testing.assert_allclose(by_scale[k], norm, rtol=1e-12)


def test_closed_form_cost_without_differentiation_is_the_cost(x64):
    problem = random_problem(OPTIONS["all"])
    for build in LAYOUTS.values():
        value = closed_form.cost(problem.factors(), problem.layout(build), **problem.strengths())
        np.testing.assert_allclose(value, problem.reference(), rtol=1e-12)


@pytest.mark.parametrize("strength", [1, 0])
def test_closed_form_cost_accepts_integer_strengths(strength):
    problem = random_problem(OPTIONS["c"])
    f, ratings = problem.factors(jnp.float32), LAYOUTS["dense"](problem.ratings())
    got = jax.grad(closed_form.cost)(f, ratings, l2=strength, l2_bias=strength)
    assert_trees_close(got, jax.grad(losses.cost)(f, ratings, l2=strength, l2_bias=strength), rtol=1e-5, atol=1e-5)


def test_closed_form_cost_differentiates_by_the_slope_of_the_loss(x64):
    """Not by autodiff of the loss: with a slope twice as steep the gradient of the data term doubles."""
    problem = random_problem(OPTIONS["no penalty"])
    arguments = problem.factors(), problem.layout(LAYOUTS["linked"])
    loss = losses.from_elementwise(lambda p, y: 0.5 * (p - y) ** 2, slope=lambda p, y: 2 * (p - y))
    steep = jax.grad(closed_form.cost)(*arguments, l2=0.0, loss=loss)
    assert_trees_close(steep, jax.tree.map(lambda leaf: 2 * leaf, jax.grad(losses.cost)(*arguments, l2=0.0)))


@pytest.mark.parametrize(
    "slope", [None, lambda p, y: (p - y) / jnp.sqrt(1 + (p - y) ** 2)], ids=["slope by autodiff", "own slope"]
)
def test_a_loss_from_an_element_wise_function_has_the_right_gradient(x64, slope):
    """Pseudo-Huber, sqrt(1 + e^2) - 1, with slope e / sqrt(1 + e^2)."""
    loss = losses.from_elementwise(lambda prediction, y: jnp.sqrt(1 + (prediction - y) ** 2) - 1, slope=slope)
    problem = random_problem(OPTIONS["c"])
    oracle = lambda prediction, target: math.sqrt(1 + (prediction - target) ** 2) - 1
    for layout in ("dense", "linked padded"):
        ratings = with_garbage(problem.layout(LAYOUTS[layout]), np.nan)
        got = jax.grad(closed_form.cost)(problem.factors(), ratings, l2=0.3, loss=loss)
        assert_trees_close(got, finite_differences(problem, oracle), rtol=1e-7, atol=1e-8)


def test_from_elementwise_of_the_same_function_is_the_same_loss():
    """Otherwise a program that was compiled for it would be compiled again."""
    assert losses.from_elementwise(jnp.subtract) is losses.from_elementwise(jnp.subtract)


def test_the_gradient_of_linked_ratings_has_no_scatter():
    """This is the purpose of Linked: the gradient consists of gathers and sums."""
    problem = random_problem(OPTIONS["c"])
    f = problem.factors(jnp.float32)
    run = jax.jit(lambda f, r: closed_form.gradient(f, r, l2=0.3))
    program = lambda build: run.trace(f, build(problem.ratings())).lower(lowering_platforms=("cpu",)).as_text()
    assert "scatter" in program(LAYOUTS["observed"])
    assert "scatter" not in program(LAYOUTS["linked"])


# Wrong arguments


@pytest.mark.parametrize("function", [closed_form.gradient, closed_form.value_and_gradient, closed_form.cost])
def test_one_array_of_strengths_in_place_of_a_pair_is_refused(function):
    problem = random_problem()
    f, ratings = problem.factors(jnp.float32), LAYOUTS["dense"](problem.ratings())
    with pytest.raises(ValueError, match=r"pair.*\(6,\)"):
        function(f, ratings, l2=jnp.ones(N_USERS))
    with pytest.raises(ValueError, match=r"pair.*\(6,\)"):
        function(f, ratings, l2=0.1, l2_bias=jnp.ones(N_USERS))


def test_arrays_of_different_shapes_are_refused_with_both_shapes(as_users_run):
    x, w, b, y, where = jnp.ones((N_ITEMS, RANK)), jnp.ones(RANK), jnp.array(0.0), jnp.ones(N_ITEMS), jnp.ones(5, bool)
    with pytest.raises(ValueError, match=r"\(5,\).*\(5, 1\)"):
        closed_form.user_gradient(w, b, x, y[:, None], where, l2=0.1)
    with pytest.raises(ValueError, match=r"\(5,\).*\(5, 1\)"):
        closed_form.user_gradient(w, b, x, y, where[:, None], l2=0.1)
    with pytest.raises(ValueError, match=r"\(5,\).*\(5, 1\)"):
        closed_form.item_gradient(w, x, jnp.zeros(5), y, where, l2=0.1, weights=jnp.ones((5, 1)))
    f = Factors(jnp.ones((6, 2)), jnp.ones(6), jnp.ones((5, 2)))
    users_first = Dense(jnp.ones((6, 5)), jnp.ones((6, 5), bool))
    for function in (closed_form.gradient, closed_form.value_and_gradient, closed_form.cost):
        with pytest.raises(ValueError, match=r"\(5, 6\).*\(6, 5\)"):
            function(f, users_first, l2=0.1)


def test_the_pointers_and_the_permutation_of_linked_ratings_are_correct():
    """The closed form does not check them. The ratings are padded, and the first and last rows are empty."""
    linked = LAYOUTS["linked padded"](random_problem().ratings())
    assert isinstance(linked, Linked)
    for ids, start in ((linked.user, linked.user_start), (linked.item[linked.by_item], linked.item_start)):
        assert (np.diff(ids) >= 0).all()
        assert (start[0], start[-1]) == (0, 16)
        for row in range(len(start) - 1):
            assert (ids[start[row] : start[row + 1]] == row).all()
    assert sorted(linked.by_item.tolist()) == list(range(16))


@pytest.mark.parametrize("loss", [losses.logistic, losses.squared_error])
def test_the_gradient_uses_the_slope_of_the_loss_that_is_passed(x64, loss):
    """It once used the residual for every loss: the value was right and the gradient wrong."""
    factors = models.init(3, 2, 2, key=jax.random.key(0), mu=0.1, dtype=jnp.float64)
    labels = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    ratings = Dense(labels, jnp.array([[True, True, False], [True, True, True]]))
    expected = jax.grad(losses.cost)(factors, ratings, l2=0.1, loss=loss)
    _, gradient = closed_form.value_and_gradient(factors, ratings, l2=0.1, loss=loss)
    for got in (gradient, jax.grad(closed_form.cost)(factors, ratings, l2=0.1, loss=loss)):
        chex.assert_trees_all_close(got, expected, rtol=1e-12)


@pytest.mark.parametrize("function", [closed_form.gradient, closed_form.value_and_gradient, jax.grad(closed_form.cost)])
def test_ratings_in_rows_are_refused(as_users_run, function):
    ratings = data.rows(Ratings([0, 1], [0, 1], [1.0, 2.0], 2, 2), "user")
    with pytest.raises(TypeError, match="expected ratings as Dense, Observed or Linked, got Rows"):
        function(models.init(2, 2, 2, key=jax.random.key(0)), ratings, l2=0.1)


def test_on_a_tpu_dense_ratings_without_weights_use_the_pallas_kernel():
    """For the two losses that it has. tests/kernels/test_tpu_cost.py checks its numbers."""
    factors = models.init(12, 9, 3, key=jax.random.key(0), mu=3.5)
    dense = Dense(value=jnp.ones((9, 12)), where=jnp.ones((9, 12), bool))
    weighted = dataclasses.replace(dense, weights=jnp.ones((9, 12)))

    def has_kernel(ratings, **options):
        run = jax.jit(lambda factors, ratings: closed_form.value_and_gradient(factors, ratings, l2=1.0, **options))
        return "tpu_custom_call" in run.trace(factors, ratings).lower(lowering_platforms=("tpu",)).as_text()

    assert has_kernel(dense)
    assert has_kernel(dense, loss=losses.logistic)
    assert not has_kernel(weighted)
    assert not has_kernel(dense, loss=losses.squared_error)
