"""The costs of a user, an item, all users, all items, and the joint cost on every layout (cases.py has the cases)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import data, losses, models
from jaxrec.types import Dense, Factors, Observed
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
    POINTWISE,
    RANK,
    ROWS,
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

every_loss = pytest.mark.parametrize("name", POINTWISE)
every_option = pytest.mark.parametrize("option", OPTIONS)
# Every layout, and every loss on one layout of each kind that computes differently.
layouts_and_losses = pytest.mark.parametrize(
    ("layout", "name"),
    [
        *[(layout, "half_squared_error") for layout in LAYOUTS | ROWS],
        *[(layout, "logistic") for layout in ("dense", "linked padded", "rows of users")],
        ("dense", "squared_error"),
    ],
)
every_layout = pytest.mark.parametrize("layout", LAYOUTS | ROWS)
GARBAGE = [np.nan, np.inf, -1e300]


# The lecture notes' table: films x users (Alice, Bob, Carol, Dave). 0 is a rating; `_` is none.

_ = math.nan
Y = [
    [5, 5, 0, 0],  # Love at last           x = (0.9, 0)
    [5, _, _, 0],  # Romance forever        x = (1.0, 0.01)
    [_, 4, 0, _],  # Cute puppies of love   x = (0.99, 0)
    [0, 0, 5, 4],  # Nonstop car chases     x = (0.1, 1.0)
    [0, 0, 5, _],  # Swords vs. karate      x = (0, 0.9)
]
X = [[0.9, 0.0], [1.0, 0.01], [0.99, 0.0], [0.1, 1.0], [0.0, 0.9]]
W = [[5.0, 0.0], [5.0, 0.0], [0.0, 5.0], [0.0, 4.0]]
B = [0.5, 0.0, 0.5, 0.0]

# Residuals w . x + b - y of the films that each user rated.
ALICE = [5 * 0.9 + 0.5 - 5, 5 * 1.0 + 0.5 - 5, 5 * 0.1 + 0.5 - 0, 5 * 0.0 + 0.5 - 0]  # 0, 0.5, 1, 0.5
BOB = [5 * 0.9 - 5, 5 * 0.99 - 4, 5 * 0.1 - 0, 5 * 0.0 - 0]  # -0.5, 0.95, 0.5, 0
CAROL = [5 * 0.0 + 0.5 - 0, 5 * 0.0 + 0.5 - 0, 5 * 1.0 + 0.5 - 5, 5 * 0.9 + 0.5 - 5]  # 0.5, 0.5, 0.5, 0
DAVE = [4 * 0.0 - 0, 4 * 0.01 - 0, 4 * 1.0 - 4]  # 0, 0.04, 0
HALF_SQUARES = [
    (0 + 0.25 + 1 + 0.25) / 2,
    (0.25 + 0.95**2 + 0.25 + 0) / 2,
    (0.25 + 0.25 + 0.25 + 0) / 2,
    (0 + 0.04**2 + 0) / 2,
]


def lecture_notes_problem():
    """w, b, x, y, where as arrays; y is NaN where the lecture notes print a question mark."""
    y = jnp.array(Y)
    return jnp.array(W), jnp.array(B), jnp.array(X), y, ~jnp.isnan(y)


def test_the_half_squares_above_are_those_of_the_residuals():
    assert [sum(r**2 for r in residuals) / 2 for residuals in (ALICE, BOB, CAROL, DAVE)] == pytest.approx(HALF_SQUARES)
    assert sum(rating is not _ for row in Y for rating in row) == 4 + 4 + 4 + 3


@pytest.mark.parametrize("user", range(4))
def test_user_cost_equals_a_calculation_by_hand(x64, user):
    w, b, x, y, where = lecture_notes_problem()
    unpenalized = losses.user_cost(w[user], b[user], x, y[:, user], where[:, user], l2=0.0)
    penalized = losses.user_cost(w[user], b[user], x, y[:, user], where[:, user], l2=0.1)
    assert float(unpenalized) == pytest.approx(HALF_SQUARES[user], abs=1e-12)
    assert float(penalized) == pytest.approx(HALF_SQUARES[user] + 0.1 / 2 * [25, 25, 25, 16][user], rel=1e-12)


def test_user_gradient_equals_a_calculation_by_hand(x64):
    w, b, x, y, where = lecture_notes_problem()
    by_w, by_b = jax.grad(losses.user_cost, argnums=(0, 1))(w[1], b[1], x, y[:, 1], where[:, 1], l2=0.1)
    # Bob: the sum of residual * x over Love at last, Cute puppies, car chases and Swords, plus 0.1 * (5, 0).
    expected = [-0.5 * 0.9 + 0.95 * 0.99 + 0.5 * 0.1 + 0 * 0.0 + 0.1 * 5, 0.5 * 1.0 + 0.1 * 0]
    np.testing.assert_allclose(by_w, expected, rtol=1e-12)
    assert float(by_b) == pytest.approx(-0.5 + 0.95 + 0.5 + 0)


def test_item_cost_and_gradient_equal_a_calculation_by_hand(x64):
    w, b, x, y, where = lecture_notes_problem()
    film = 3  # Nonstop car chases: residuals 1 (Alice), 0.5 (Bob), 0.5 (Carol), 0 (Dave)
    cost = lambda x: losses.item_cost(x, w, b, y[film], where[film], l2=0.1)
    assert float(cost(x[film])) == pytest.approx((1 + 0.25 + 0.25 + 0) / 2 + 0.1 / 2 * (0.01 + 1))
    # The sum of residual * w, plus 0.1 * x.
    expected = [1 * 5 + 0.5 * 5 + 0.5 * 0 + 0 * 0 + 0.1 * 0.1, 1 * 0 + 0.5 * 0 + 0.5 * 5 + 0 * 4 + 0.1 * 1]
    np.testing.assert_allclose(jax.grad(cost)(x[film]), expected, rtol=1e-12)
    film = 2  # Cute puppies of love: 0.95 (Bob), 0.5 (Carol); Alice and Dave did not rate it
    unpenalized = losses.item_cost(x[film], w, b, y[film], where[film], l2=0.0)
    assert float(unpenalized) == pytest.approx((0.95**2 + 0.25) / 2)


def test_joint_cost_equals_a_calculation_by_hand(x64):
    w, b, x, y, where = lecture_notes_problem()
    factors, ratings = Factors(w, b, x), Dense(y, where)
    squares_of_x = 0.9**2 + (1 + 0.01**2) + 0.99**2 + (0.1**2 + 1) + 0.9**2
    expected = sum(HALF_SQUARES) + 0.1 / 2 * (25 + 25 + 25 + 16) + 0.1 / 2 * squares_of_x
    assert float(losses.cost(factors, ratings, l2=0.1)) == pytest.approx(expected, rel=1e-12)
    pair = losses.cost(factors, ratings, l2=(0.1, 0.3))
    assert float(pair) == pytest.approx(expected + 0.2 / 2 * squares_of_x, rel=1e-12)
    biases = losses.cost(factors, ratings, l2=0.1, l2_bias=0.2)
    assert float(biases) == pytest.approx(expected + 0.2 / 2 * (0.25 + 0.25), rel=1e-12)
    assert losses.data_term(factors, ratings).count == 15
    users = losses.users_cost(w, b, x, y, where, l2=0.1)
    assert float(users) == pytest.approx(sum(HALF_SQUARES) + 0.1 / 2 * (25 + 25 + 25 + 16), rel=1e-12)
    items = losses.items_cost(x, w, b, y, where, l2=0.1)
    assert float(items) == pytest.approx(sum(HALF_SQUARES) + 0.1 / 2 * squares_of_x, rel=1e-12)


def test_user_cost_of_binary_labels_equals_a_calculation_by_hand(x64):
    # The user liked the first item, did not like the second, and was not shown the third. Logits: 0, log 3, log 7.
    x = jnp.array([[0.0], [math.log(3)], [math.log(7)]])
    y, shown = jnp.array([1.0, 0.0, jnp.nan]), jnp.array([True, True, False])
    got = losses.user_cost(jnp.array([1.0]), jnp.array(0.0), x, y, shown, l2=0.4, loss=losses.logistic)
    assert float(got) == pytest.approx(-math.log(1 / 2) - math.log(1 - 3 / 4) + 0.4 / 2 * 1)


# One user or one item, with every option, against the slow loops


def one_user(name="half_squared_error", user=0):
    problem = random_problem(binary=POINTWISE[name].binary)
    return problem.w[user], problem.b[user], problem.x, problem.y[:, user], problem.where[:, user]


def one_item(name="half_squared_error", item=2):
    problem = random_problem(binary=POINTWISE[name].binary)
    return problem.x[item], problem.w, problem.b, problem.y[item], problem.where[item]


@every_loss
@pytest.mark.parametrize("options", ONE_USER)
def test_user_cost_and_its_gradient_equal_the_loops(x64, name, options):
    entry, arguments = POINTWISE[name], one_user(name)
    assert 0 < arguments[4].sum() < N_ITEMS

    def oracle(w, b, x):
        return reference.user_cost(w, b, x, *arguments[3:], l2=0.3, loss=entry.oracle, **ONE_USER[options])

    value, (by_w, by_b, by_x) = jax.value_and_grad(losses.user_cost, argnums=(0, 1, 2))(
        *map(jnp.asarray, arguments), l2=0.3, loss=entry.loss, **on_device(ONE_USER[options])
    )
    w, b, x = arguments[:3]
    np.testing.assert_allclose(value, oracle(w, b, x), rtol=1e-12)
    np.testing.assert_allclose(by_w, reference.central_differences(lambda w: oracle(w, b, x), w), rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(by_b, reference.central_differences(lambda b: oracle(w, b, x), b), rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(by_x, reference.central_differences(lambda x: oracle(w, b, x), x), rtol=1e-7, atol=1e-8)


@every_loss
@pytest.mark.parametrize("options", ONE_ITEM)
def test_item_cost_and_its_gradient_equal_the_loops(x64, name, options):
    entry, arguments = POINTWISE[name], one_item(name)
    assert 0 < arguments[4].sum() < N_USERS

    def oracle(x, **changes):
        return reference.item_cost(x, *arguments[1:], l2=0.3, loss=entry.oracle, **(ONE_ITEM[options] | changes))

    def cost(x, c):
        keywords = on_device(ONE_ITEM[options]) | {"c": c}
        return losses.item_cost(x, *map(jnp.asarray, arguments[1:]), l2=0.3, loss=entry.loss, **keywords)

    x, c = arguments[0], ONE_ITEM[options].get("c")
    value, (by_x, by_c) = jax.value_and_grad(cost, argnums=(0, 1))(
        jnp.asarray(x), None if c is None else jnp.asarray(c)
    )
    np.testing.assert_allclose(value, oracle(x), rtol=1e-12)
    np.testing.assert_allclose(by_x, reference.central_differences(oracle, x), rtol=1e-7, atol=1e-8)
    if c is None:
        assert by_c is None
    else:
        np.testing.assert_allclose(by_c, reference.central_differences(lambda c: oracle(x, c=c), c), rtol=1e-7)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_masked_garbage_does_not_change_the_cost_of_one_user(x64, garbage):
    w, b, x, y, where = map(jnp.asarray, one_user())
    arrays = {"y": y, "weights": jnp.arange(1.0, 1 + N_ITEMS), "offset": jnp.arange(0.0, N_ITEMS)}

    def cost(w, b, y, weights, offset):
        return losses.user_cost(w, b, x, y, where, l2=0.3, weights=weights, offset=offset, l2_bias=0.1)

    spoil = lambda value: {name: jnp.where(where, array, value) for name, array in arrays.items()}
    clean = jax.value_and_grad(cost, argnums=(0, 1))(w, b, **spoil(0.0))
    spoilt = jax.value_and_grad(cost, argnums=(0, 1))(w, b, **spoil(garbage))
    assert_trees_close(spoilt, clean, rtol=0, atol=0)


def test_the_cost_of_a_user_without_ratings_is_the_penalty(x64):
    w, b, x, y, where = map(jnp.asarray, one_user(user=1))
    assert not where.any()
    assert np.isnan(y).all()
    value, by_w = jax.value_and_grad(losses.user_cost)(w, b, x, y, where, l2=0.3)
    assert float(value) == pytest.approx(0.3 / 2 * float(w[0] ** 2 + w[1] ** 2))
    np.testing.assert_allclose(by_w, 0.3 * w)
    value, by_w = jax.value_and_grad(losses.user_cost)(w, b, x, y, where, l2=0.0)
    assert value == 0
    np.testing.assert_array_equal(by_w, np.zeros(RANK))


def test_vmap_of_user_cost_equals_a_loop_over_users(x64):
    problem = random_problem()
    w, b, x, y, where = map(jnp.asarray, (problem.w, problem.b, problem.x, problem.y, problem.where))
    cost = lambda w, b, y, where, l2: losses.user_cost(w, b, x, y, where, l2=l2)
    got = jax.vmap(cost, in_axes=(0, 0, 1, 1, 0))(w, b, y, where, jnp.asarray(PER_USER))
    expected = [
        reference.user_cost(problem.w[j], problem.b[j], problem.x, problem.y[:, j], problem.where[:, j], l2=PER_USER[j])
        for j in range(N_USERS)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


# All users or all items


@every_loss
@pytest.mark.parametrize("per_row", [False, True])
def test_users_cost_equals_the_sum_of_the_loops(x64, name, per_row):
    p, entry = random_problem(binary=POINTWISE[name].binary), POINTWISE[name]
    expected = sum(
        reference.user_cost(
            p.w[j], p.b[j], p.x, p.y[:, j], p.where[:, j], l2=PER_USER[j] if per_row else 0.3, loss=entry.oracle
        )
        for j in range(N_USERS)
    )
    arguments = map(jnp.asarray, (p.w, p.b, p.x, p.y, p.where))
    got = losses.users_cost(*arguments, l2=jnp.asarray(PER_USER) if per_row else 0.3, loss=entry.loss)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@every_loss
@pytest.mark.parametrize("per_row", [False, True])
def test_items_cost_equals_the_sum_of_the_loops(x64, name, per_row):
    p, entry = random_problem(binary=POINTWISE[name].binary), POINTWISE[name]
    expected = sum(
        reference.item_cost(p.x[i], p.w, p.b, p.y[i], p.where[i], l2=PER_ITEM[i] if per_row else 0.3, loss=entry.oracle)
        for i in range(N_ITEMS)
    )
    arguments = map(jnp.asarray, (p.x, p.w, p.b, p.y, p.where))
    got = losses.items_cost(*arguments, l2=jnp.asarray(PER_ITEM) if per_row else 0.3, loss=entry.loss)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_joint_cost_equals_the_users_costs_plus_the_items_penalty_and_vice_versa(x64):
    p = random_problem(OPTIONS["l2 per row"])
    w, b, x, y, where = map(jnp.asarray, (p.w, p.b, p.x, p.y, p.where))
    l2_users, l2_items = p.strengths()["l2"]
    joint = losses.cost(Factors(w, b, x), Dense(y, where), l2=(l2_users, l2_items))
    norms = lambda table, l2: sum(l2[k] * reference.half_squared_norm(table[k]) for k in range(len(table)))
    users = losses.users_cost(w, b, x, y, where, l2=l2_users) + norms(p.x, PER_ITEM)
    items = losses.items_cost(x, w, b, y, where, l2=l2_items) + norms(p.w, PER_USER)
    np.testing.assert_allclose([users, items], [joint, joint], rtol=1e-12)


# The joint cost, on every layout


@every_option
def test_joint_cost_with_every_option_equals_the_loop(x64, option):
    problem = random_problem(OPTIONS[option])
    got = losses.cost(problem.factors(), problem.layout(LAYOUTS["dense"]), **problem.strengths())
    np.testing.assert_allclose(got, problem.reference(), rtol=1e-12)


@every_option
def test_every_option_changes_the_cost(option):
    """Otherwise the test above would not notice an option that is ignored."""
    if option == "plain":
        return
    base = random_problem(OPTIONS["plain"])
    problem = random_problem(OPTIONS[option])
    assert abs(problem.reference() - base.reference()) > 1e-3


@layouts_and_losses
def test_cost_and_data_term_on_every_layout_equal_the_loop(x64, layout, name):
    entry = POINTWISE[name]
    problem = random_problem(OPTIONS["all"], binary=entry.binary)
    ratings = problem.layout((LAYOUTS | ROWS)[layout])
    got = losses.cost(problem.factors(), ratings, loss=entry.loss, **problem.strengths())
    np.testing.assert_allclose(got, problem.reference(entry.oracle), rtol=1e-12)
    total = losses.data_term(problem.factors(), ratings, loss=entry.loss)
    np.testing.assert_allclose(total.count, np.nansum(problem.weights), rtol=1e-12)
    unpenalized = problem._replace(l2=0.0, l2_bias=0.0)
    np.testing.assert_allclose(total.sum, unpenalized.reference(entry.oracle), rtol=1e-12)


@every_layout
def test_cost_and_data_term_without_weights_on_every_layout_equal_the_loop(x64, layout):
    problem = random_problem(OPTIONS["plain"])
    ratings = problem.layout((LAYOUTS | ROWS)[layout])
    np.testing.assert_allclose(losses.cost(problem.factors(), ratings, l2=0.3), problem.reference(), rtol=1e-12)
    assert float(losses.data_term(problem.factors(), ratings).count) == problem.where.sum()


def test_the_padded_layouts_have_padding():
    """Otherwise the other tests would not test it."""
    problem = random_problem()
    for name, build in (LAYOUTS | ROWS).items():
        layout = build(problem.ratings())
        where = [bucket.where for bucket in getattr(layout, "buckets", [layout])]
        n_masked = sum(mask.size - int(mask.sum()) for mask in where)
        assert (n_masked > 0) == (name not in ("observed", "linked")), name
        if "rows" in name and "padded" in name:
            assert len(layout.buckets) > 1
            assert all(len(bucket.row) % 4 == 0 for bucket in layout.buckets)
            assert sum(len(bucket.row) for bucket in layout.buckets) > len(layout.position)


@layouts_and_losses
def test_gradient_on_every_layout_equals_finite_differences(x64, layout, name):
    entry = SMOOTH[name]
    problem = random_problem(OPTIONS["all"], binary=entry.binary)
    ratings = problem.layout((LAYOUTS | ROWS)[layout])
    _, got = value_and_gradient(problem.factors(), ratings, loss=entry.loss, **problem.strengths())
    assert_trees_close(got, finite_differences(problem, entry.oracle), rtol=1e-7, atol=1e-8)


@every_layout
@pytest.mark.parametrize("garbage", GARBAGE)
def test_masked_garbage_does_not_change_value_and_gradient_on_any_layout(x64, layout, garbage):
    problem = random_problem(OPTIONS["all"])
    ratings = problem.layout((LAYOUTS | ROWS)[layout])
    clean = value_and_gradient(problem.factors(), with_garbage(ratings, 0.0), **problem.strengths())
    spoilt = value_and_gradient(problem.factors(), with_garbage(ratings, garbage), **problem.strengths())
    assert_trees_close(spoilt, clean, rtol=0, atol=0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(spoilt))


@every_layout
def test_mu_of_an_item_without_ratings_is_not_read(x64, layout):
    problem = random_problem(OPTIONS["all"])
    spoilt = dataclasses.replace(problem.factors(), mu=problem.factors().mu.at[0].set(np.nan))
    ratings = problem.layout((LAYOUTS | ROWS)[layout])
    clean = value_and_gradient(problem.factors(), ratings, **problem.strengths())
    assert_trees_close(value_and_gradient(spoilt, ratings, **problem.strengths()), clean, rtol=0, atol=0)


@layouts_and_losses
def test_the_cost_without_ratings_is_the_penalty(x64, layout, name):
    problem, loss = random_problem(OPTIONS["all"], binary=SMOOTH[name].binary), SMOOTH[name].loss
    no_ratings = with_garbage(without_ratings(problem.layout((LAYOUTS | ROWS)[layout])), np.nan)
    value, _ = value_and_gradient(problem.factors(), no_ratings, loss=loss, **problem.strengths())
    np.testing.assert_allclose(value, problem.reference(where=np.zeros_like(problem.where)), rtol=1e-12)
    no_penalty = jax.tree.map(lambda strength: 0 * strength, problem.strengths())
    value, gradient = value_and_gradient(problem.factors(), no_ratings, loss=loss, **no_penalty)
    assert float(value) == 0
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


@pytest.mark.parametrize("layout", ["dense", "observed padded", "rows of users"])
def test_the_data_term_without_ratings_is_zero(layout):
    problem = random_problem(OPTIONS["weights"])
    no_ratings = with_garbage(without_ratings((LAYOUTS | ROWS)[layout](problem.ratings())), np.nan)
    total = losses.data_term(problem.factors(jnp.float32), no_ratings)
    assert (float(total.sum), float(total.count)) == (0, 0)


@pytest.mark.parametrize("layout", ["observed", "linked", "rows of users"])
def test_masking_a_rating_equals_deleting_it(x64, layout):
    problem = random_problem(OPTIONS["all"])
    ratings = problem.ratings()
    masked_user, masked_item = int(ratings.user[3]), int(ratings.item[3])
    build = (LAYOUTS | ROWS)[layout]

    def mask_rating(part):
        if hasattr(part, "buckets"):
            return dataclasses.replace(part, buckets=tuple(mask_rating(bucket) for bucket in part.buckets))
        user, item = (part.user, part.item) if hasattr(part, "user") else (part.row[:, None], part.other)
        return dataclasses.replace(part, where=part.where & ~((user == masked_user) & (item == masked_item)))

    masked = mask_rating(problem.layout(build))
    where = problem.where.copy()
    where[masked_item, masked_user] = False
    assert where.sum() == problem.where.sum() - 1
    got = losses.cost(problem.factors(), masked, **problem.strengths())
    np.testing.assert_allclose(got, problem.reference(where=where), rtol=1e-12)


def test_the_order_of_observed_ratings_does_not_change_value_and_gradient(x64):
    problem = random_problem(OPTIONS["all"])
    ratings = problem.layout(LAYOUTS["observed padded"])
    order = np.random.default_rng(1).permutation(len(ratings.value))
    permuted = jax.tree.map(lambda column: column[order], ratings)
    cost = lambda ratings: value_and_gradient(problem.factors(), ratings, **problem.strengths())
    assert_trees_close(cost(permuted), cost(ratings))


def test_integer_weights_equal_repeated_ratings(x64):
    problem = random_problem(OPTIONS["weights"])
    ratings = problem.layout(LAYOUTS["observed"])
    times = np.random.default_rng(2).integers(0, 4, len(ratings.value))
    weighted = dataclasses.replace(ratings, weights=jnp.asarray(times * 1.0))
    repeated = jax.tree.map(lambda column: jnp.repeat(column, times), dataclasses.replace(ratings, weights=None))
    assert_trees_close(
        losses.data_term(problem.factors(), weighted), losses.data_term(problem.factors(), repeated), rtol=1e-12
    )


def test_data_terms_of_parts_in_different_layouts_add_up_to_the_full_data_term(x64):
    problem = random_problem(OPTIONS["weights"])
    ratings, f = problem.ratings(), problem.factors()
    expected = losses.data_term(f, problem.layout(LAYOUTS["dense"]), loss=losses.squared_error)
    builds = [LAYOUTS["dense"], LAYOUTS["observed padded"], LAYOUTS["linked padded"], ROWS["rows of items"]]
    parts = [
        losses.data_term(f, as_dtype(build(ratings.take(slice(k, None, 4))), jnp.float64), loss=losses.squared_error)
        for k, build in enumerate(builds)
    ]
    total = parts[0] + parts[1] + parts[2] + parts[3]
    assert_trees_close(total, expected)
    squares, count = problem._replace(l2=0.0).reference(reference.squared_error), np.nansum(problem.weights)
    np.testing.assert_allclose(total.mean(), squares / count, rtol=1e-12)


@pytest.mark.parametrize(
    "layout", ["dense", "observed padded", "linked padded", "rows of users", "rows of items padded"]
)
def test_vmap_over_factors_equals_the_loops(x64, layout):
    problems = [random_problem(OPTIONS["all"], seed=0), random_problem(OPTIONS["all"], seed=0)]
    problems[1] = problems[1]._replace(w=problems[1].w + 1, x=-problems[1].x, c=problems[1].c * 2)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p.factors() for p in problems))
    ratings = problems[0].layout((LAYOUTS | ROWS)[layout])
    got = jax.jit(jax.vmap(lambda f: losses.cost(f, ratings, **problems[0].strengths())))(stacked)
    np.testing.assert_allclose(got, [p.reference() for p in problems], rtol=1e-12)


@pytest.mark.parametrize(
    "layout", ["dense", "observed padded", "linked padded", "rows of users", "rows of items padded"]
)
def test_jit_equals_eager_and_traces_once_per_shape(layout):
    traces = []

    @jax.jit
    def cost(factors, ratings, l2):
        traces.append(1)
        return losses.cost(factors, ratings, l2=l2)

    problem = random_problem(OPTIONS["all"])
    for scale in (1.0, 0.5):
        # Other factors, ratings and strengths of the same shapes, in float32.
        changed = problem._replace(w=scale * problem.w, y=scale * problem.y)
        f, ratings = changed.factors(jnp.float32), (LAYOUTS | ROWS)[layout](changed.ratings())
        value, eager = cost(f, ratings, scale * 0.3), losses.cost(f, ratings, l2=scale * 0.3)
        assert value.dtype == eager.dtype == jnp.float32
        np.testing.assert_allclose(value, eager, rtol=1e-6)
        expected = changed._replace(l2=scale * 0.3, l2_bias=0.0).reference()
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert len(traces) == 1


@pytest.mark.parametrize("option", ["mu a number", "mu per item"])
@pytest.mark.parametrize("layout", ["dense", "observed", "rows of items"])
def test_the_cost_has_no_gradient_in_mu(x64, option, layout):
    problem = random_problem(OPTIONS[option])
    ratings = problem.layout((LAYOUTS | ROWS)[layout])
    _, gradient = value_and_gradient(problem.factors(), ratings, **problem.strengths())
    np.testing.assert_array_equal(gradient.mu, np.zeros(np.shape(problem.mu)))


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("dense", "half_squared_error"),
        ("dense", "logistic"),
        ("observed padded", "logistic"),
        ("linked padded", "logistic"),
        ("rows of users", "logistic"),
    ],
)
def test_forward_mode_and_hessian_vector_products_equal_finite_differences(x64, layout, name):
    entry = SMOOTH[name]
    problem = random_problem(OPTIONS["all"], binary=entry.binary)
    ratings, strengths = problem.layout((LAYOUTS | ROWS)[layout]), problem.strengths()
    rng = np.random.default_rng(6)
    direction = {k: rng.normal(size=getattr(problem, k).shape) for k in "wbxc"}
    moved = lambda step: problem._replace(**{k: getattr(problem, k) + step * direction[k] for k in "wbxc"})

    @jax.jit
    def directional_derivative_and_hessian_product(f, direction):
        cost = lambda f: losses.cost(f, ratings, loss=entry.loss, **strengths)
        return jax.jvp(cost, (f,), (direction,))[1], jax.jvp(jax.grad(cost), (f,), (direction,))[1]

    derivative, product = directional_derivative_and_hessian_product(
        problem.factors(), as_dtype(Factors(**direction, mu=np.zeros(N_ITEMS)), jnp.float64)
    )
    cost = lambda step: moved(step).reference(entry.oracle)
    np.testing.assert_allclose(derivative, (cost(1e-4) - cost(-1e-4)) / 2e-4, rtol=1e-6)
    gradient = lambda step: value_and_gradient(moved(step).factors(), ratings, loss=entry.loss, **strengths)[1]
    expected = jax.tree.map(lambda up, down: (up - down) / 2e-4, gradient(1e-4), gradient(-1e-4))
    assert_trees_close(product, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
@pytest.mark.parametrize("layout", ["dense", "observed padded", "linked padded", "rows of users"])
def test_value_and_gradient_of_extreme_logits_are_finite_and_exact(layout, logit):
    problem = random_problem(binary=True)
    ratings = (LAYOUTS | ROWS)[layout](problem.ratings())
    factors = dataclasses.replace(problem.factors(jnp.float32), mu=jnp.float32(logit))
    factors = dataclasses.replace(factors, w=0 * factors.w, b=0 * factors.b)
    value, gradient = value_and_gradient(factors, ratings, l2=0.0, l2_bias=0.0, loss=losses.logistic)
    wrong = np.nansum(problem.y == (logit < 0), where=problem.where)  # labels on the other side: each costs |logit|
    assert 0 < wrong < problem.where.sum()
    assert float(value) == wrong * 1e4
    np.testing.assert_array_equal(
        gradient.b, np.where(problem.where, (logit > 0) * 1.0 - problem.y, 0).sum(axis=0)
    )  # g - y


# Minibatches


@pytest.mark.parametrize(
    ("option", "size"),
    [
        ("plain", 7),
        ("l2 per user, a number for items", 7),
        ("l2_bias without c", 7),
        ("l2_bias a pair", 7),
        ("all", 7),
        ("all", 100),
    ],
)
def test_costs_of_minibatches_add_up_to_the_full_cost(x64, option, size):
    problem = rated_everywhere(option)
    assert len(problem.ratings()) % size != 0  # the last batch is padded
    batches = list(data.batches.minibatches(problem.ratings(), size, rng=0)(1))
    assert len(batches) == -(-len(problem.ratings()) // size)
    assert {len(batch.value) for batch in batches} == {size}  # one shape, so that one trace is enough
    cost = lambda batch: value_and_gradient(problem.factors(), as_dtype(batch, jnp.float64), **problem.strengths())
    parts = [cost(batch) for batch in batches]
    value, gradient = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    np.testing.assert_allclose(value, problem.reference(), rtol=1e-12)
    assert_trees_close(gradient, finite_differences(problem, reference.half_squared_error), rtol=1e-7, atol=1e-8)


def test_minibatches_do_not_penalize_rows_without_ratings(x64):
    """Such a row is in no batch, so no batch has a part of its penalty, and its gradient is 0."""
    problem = random_problem(OPTIONS["all"])
    (l2_users, l2_items), (bias_users, bias_items) = problem.l2, problem.l2_bias
    unrated = sum(l2_users[j] * reference.half_squared_norm(problem.w[j]) for j in (1, 5))
    unrated += sum(bias_users * problem.b[j] ** 2 / 2 for j in (1, 5))
    unrated += sum(l2_items[i] * reference.half_squared_norm(problem.x[i]) for i in (0, 4))
    unrated += sum(bias_items[i] * problem.c[i] ** 2 / 2 for i in (0, 4))
    assert unrated > 0.1
    cost = lambda f, r: value_and_gradient(f, r, **problem.strengths())
    batches = data.batches.minibatches(problem.ratings(), 7, rng=0)(0)
    parts = [cost(problem.factors(), as_dtype(batch, jnp.float64)) for batch in batches]
    value, gradient = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    np.testing.assert_allclose(value, problem.reference() - unrated, rtol=1e-12)
    full_gradient = finite_differences(problem, reference.half_squared_error)
    rated_users, rated_items = [0, 2, 3, 4], [1, 2, 3]
    for name, rated in (("w", rated_users), ("b", rated_users), ("x", rated_items), ("c", rated_items)):
        got, expected = np.asarray(getattr(gradient, name)), getattr(full_gradient, name)
        np.testing.assert_allclose(got[rated], expected[rated], rtol=1e-7, atol=1e-8)
        np.testing.assert_array_equal(np.delete(got, rated, axis=0), 0)


def test_garbage_in_the_padding_of_a_minibatch_changes_nothing(x64):
    problem = random_problem(OPTIONS["all"])
    *_, last = data.batches.minibatches(problem.ratings(), 7, rng=0)(0)
    last = as_dtype(last, jnp.float64)
    assert not last.where.all()
    cost = lambda f, r: value_and_gradient(f, r, **problem.strengths())
    clean = cost(problem.factors(), last)
    for garbage in (np.nan, np.inf, 0.0):
        spoil = lambda a, garbage=garbage: jnp.where(last.where, a, garbage)
        counts = {"user_count": spoil(last.user_count), "item_count": spoil(last.item_count)}
        spoilt = cost(problem.factors(), dataclasses.replace(with_garbage(last, garbage), **counts))
        assert_trees_close(spoilt, clean, rtol=0, atol=0)


def test_observed_ratings_without_counts_have_the_full_penalty(x64):
    problem = random_problem()
    one_rating = jax.tree.map(lambda column: column[:1], problem.layout(LAYOUTS["observed"]))
    assert one_rating.user_count is None
    j, i = int(one_rating.user[0]), int(one_rating.item[0])
    where = np.zeros_like(problem.where)
    where[i, j] = True
    got = losses.cost(problem.factors(), one_rating, l2=0.3)
    np.testing.assert_allclose(got, problem.reference(where=where), rtol=1e-12)


def test_the_cost_of_a_batch_of_one_rating_equals_a_calculation_by_hand(x64):
    """User 1 has 2 ratings in all and item 0 has 4, so the batch has 1/2 and 1/4 of their penalties."""
    factors = Factors(jnp.array([[9.0], [2.0]]), jnp.array([9.0, 0.5]), jnp.array([[3.0], [9.0]]))
    batch = Observed(
        user=jnp.array([1]),
        item=jnp.array([0]),
        value=jnp.array([5.0]),
        where=jnp.array([True]),
        user_count=jnp.array([2.0]),
        item_count=jnp.array([4.0]),
    )
    expected = (2 * 3 + 0.5 - 5) ** 2 / 2 + 0.1 / 2 * 2**2 / 2 + 0.3 / 2 * 3**2 / 4 + 0.7 / 2 * 0.5**2 / 2
    got = losses.cost(factors, batch, l2=(0.1, 0.3), l2_bias=0.7)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


# Wrong arguments


@pytest.mark.parametrize("option", ["l2", "l2_bias"])
def test_one_array_of_strengths_in_place_of_a_pair_is_refused(option):
    problem = random_problem()
    f, ratings = problem.factors(jnp.float32), LAYOUTS["dense"](problem.ratings())
    with pytest.raises(ValueError, match=r"pair.*\(6,\)"):
        losses.cost(f, ratings, **({"l2": 0.1} | {option: jnp.ones(N_USERS)}))


def test_arrays_of_different_shapes_are_refused_with_both_shapes(as_users_run):
    w, b, x, y, where = (jnp.nan_to_num(jnp.asarray(a)) if a.dtype != bool else jnp.asarray(a) for a in one_user())
    with pytest.raises(ValueError, match=r"\(5,\).*\(5, 1\)"):
        losses.user_cost(w, b, x, y[:, None], where, l2=0.1)
    with pytest.raises(ValueError, match=r"\(5,\).*\(5, 1\)"):
        losses.user_cost(w, b, x, y, where[:, None], l2=0.1)
    with pytest.raises(ValueError, match=r"\(5,\).*\(5, 1\)"):
        losses.user_cost(w, b, x, y, where, l2=0.1, offset=jnp.zeros((5, 1)))
    with pytest.raises(ValueError, match=r"\(5,\).*\(5, 1\)"):
        losses.user_cost(w, b, x, y, where, l2=0.1, weights=jnp.ones((5, 1)))
    x, w, b, y, where = (jnp.nan_to_num(jnp.asarray(a)) if a.dtype != bool else jnp.asarray(a) for a in one_item())
    with pytest.raises(ValueError, match=r"\(6,\).*\(6, 1\)"):
        losses.item_cost(x, w, b, y[:, None], where, l2=0.1)
    problem = random_problem()
    ratings = LAYOUTS["dense"](problem.ratings())
    with pytest.raises(ValueError, match=r"\(5, 6\).*\(6, 5\)"):  # a matrix with users first
        losses.cost(problem.factors(jnp.float32), Dense(ratings.value.T, ratings.where.T), l2=0.1)


@pytest.mark.parametrize("function", [losses.user_cost, losses.item_cost])
def test_features_of_unrated_items_and_users_change_nothing(x64, function):
    table = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    bias, y = jnp.array([0.1, 0.2, 0.3]), jnp.array([4.0, 2.0, 1.0])
    where, own = jnp.array([True, False, True]), jnp.array([0.5, -0.5])
    spoiled = table.at[1].set(jnp.nan)

    def cost(own, table):
        parameters = (own, bias[0], table) if function is losses.user_cost else (own, table, bias)
        return function(*parameters, y, where, l2=0.1)

    np.testing.assert_allclose(cost(own, spoiled), cost(own, table))
    np.testing.assert_allclose(jax.grad(cost)(own, spoiled), jax.grad(cost)(own, table))
    gradient = losses.closed_form.user_gradient if function is losses.user_cost else losses.closed_form.item_gradient
    parameters = (own, bias[0], spoiled) if function is losses.user_cost else (own, spoiled, bias)
    np.testing.assert_allclose(jax.tree.leaves(gradient(*parameters, y, where, l2=0.1))[0], jax.grad(cost)(own, table))


def test_strengths_of_another_length_than_the_rows_are_refused(as_users_run):
    factors = models.init(3, 2, 2, key=jax.random.key(0))
    ratings = Dense(jnp.ones((2, 3)), jnp.ones((2, 3), bool))
    for wrong in ((jnp.ones((3, 1)), 1.0), (jnp.ones(2), 1.0), (1.0, jnp.ones(3))):
        with pytest.raises(ValueError, match="l2: expected a number or one per row"):
            losses.cost(factors, ratings, l2=wrong)
