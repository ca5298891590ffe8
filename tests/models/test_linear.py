"""Linear scorers against dense products, as a scorer of `evaluate`, and their errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.evaluation import evaluate
from jaxrec.models import linear

N_USERS, N_ITEMS = 11, 7


def random_case(seed, *, weights=True):
    """Ratings with repeated pairs, a user and an item without any, and F."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, N_USERS - 1, 40), rng.integers(0, N_ITEMS - 1, 40)
    weight = rng.uniform(0.5, 2, 40).astype(np.float32) if weights else None
    train = Ratings(user, item, np.full(40, 5.0), N_USERS, N_ITEMS, weights=weight)
    x = np.zeros((N_USERS, N_ITEMS))
    np.add.at(x, (user, item), 1.0 if weight is None else weight)
    return train, x, rng.normal(size=(N_ITEMS, N_ITEMS)).astype(np.float32)


@pytest.mark.parametrize("weights", [True, False])
def test_scores_are_the_product_of_histories_and_the_matrix(weights):
    train, x, f = random_case(0, weights=weights)
    scorer = linear.linear_scorer(train, linear.Matrix(jnp.asarray(f)))
    assert (scorer.n_users, scorer.n_items) == (N_USERS, N_ITEMS)
    np.testing.assert_allclose(scorer(np.arange(N_USERS)), x @ f.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scorer(np.array([3, 3, 0])), (x @ f.T)[[3, 3, 0]], rtol=1e-5, atol=1e-5)


def test_a_new_user_is_scored_as_the_same_history_in_train():
    train, _, f = random_case(1)
    scorer = linear.linear_scorer(train, linear.Matrix(jnp.asarray(f)))
    of_user = train.user == 2
    items, weights = train.item[of_user], train.weights[of_user]
    padded, where = np.append(items, -1)[None], np.arange(len(items) + 1)[None] < len(items)
    found = scorer.scores(padded, where=where, weights=np.append(weights, np.float32(np.nan))[None])
    np.testing.assert_allclose(found, scorer(np.array([2])), rtol=1e-5, atol=1e-5)


def operators(train):
    """Name -> (operator, its dense matrix)."""
    rng = np.random.default_rng(7)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    _, x, f = random_case(0)
    f = f * (rng.random(f.shape) < 0.4)
    left, right, before, after, user_scale = (
        draw(N_ITEMS, 2),
        draw(2, N_ITEMS),
        draw(N_ITEMS),
        draw(N_ITEMS),
        draw(N_USERS),
    )
    rows, items = np.nonzero(f)
    sparse = linear.SparseMatrix(
        jnp.asarray(np.searchsorted(rows, np.arange(N_ITEMS + 1)).astype(np.int32)),
        jnp.asarray(items.astype(np.int32)),
        jnp.asarray(f[rows, items]),
    )
    history = linear.histories(train)
    hop, graph = linear.Hop(history, jnp.asarray(user_scale)), x.T @ np.diag(user_scale) @ x
    small = linear.Matrix(jnp.asarray(f / 3))
    powers = [np.linalg.matrix_power(f / 3, k) for k in range(3)]
    argument = np.eye(N_ITEMS) - 2 * f / 3
    terms = [np.eye(N_ITEMS), argument, 2 * argument @ argument - np.eye(N_ITEMS)]
    coefficients = draw(3)
    mix = lambda parts: sum(c * part for c, part in zip(coefficients, parts, strict=True))
    known = linear.LowRank(jnp.asarray(left), jnp.asarray(right), jnp.asarray((x @ right.T).astype(np.float32)))
    scaled_users = (x * before @ right.T).astype(np.float32)
    scaled = linear.Scaled(
        linear.LowRank(known.left, known.right, jnp.asarray(scaled_users)), jnp.asarray(before), jnp.asarray(after)
    )
    scaled_dense = after[:, None] * (left @ right) * before
    padded = jnp.pad(jnp.asarray(f), ((0, 0), (0, 2)))
    return {
        "Matrix": (linear.Matrix(padded), f),
        "SparseMatrix": (sparse, f),
        "Diagonal": (linear.Diagonal(jnp.asarray(before)), np.diag(before)),
        "LowRank": (linear.LowRank(known.left, known.right), left @ right),
        "LowRank of known users": (known, left @ right),
        "Hop": (hop, graph),
        "Hop without a scale": (linear.Hop(history), x.T @ x),
        "Polynomial": (linear.Polynomial(small, jnp.asarray(coefficients)), mix(powers)),
        "Chebyshev": (linear.Chebyshev(small, jnp.asarray(coefficients)), mix(terms)),
        "Scaled": (scaled, scaled_dense),
        "Sum": (linear.Sum((scaled, sparse, hop), jnp.asarray(coefficients)), mix([scaled_dense, f, graph])),
    }


@pytest.mark.parametrize("name", operators(random_case(0)[0]))
def test_an_operator_is_its_dense_matrix_for_train_and_for_new_users(name):
    train, x, _ = random_case(0)
    operator, f = operators(train)[name]
    scorer = linear.linear_scorer(train, operator)
    np.testing.assert_allclose(scorer(np.arange(N_USERS)), x @ f.T, rtol=1e-4, atol=1e-3)
    lists = np.array([[0, 3], [2, 2], [5, 1]])
    new = np.zeros((3, N_ITEMS))
    np.add.at(new, (np.arange(3)[:, None], lists), 1)
    np.testing.assert_allclose(scorer.scores(lists), new @ f.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["Polynomial", "Chebyshev", "Sum"])
def test_coefficients_of_operators_are_differentiable(name):
    """They enter linearly, so the derivative is what each one of them adds."""
    train, x, _ = random_case(0)
    operator, _ = operators(train)[name]
    field = "weights" if name == "Sum" else "coefficients"
    columns = jnp.asarray(x[:2].T.astype(np.float32))
    total = lambda values: jnp.sum(dataclasses.replace(operator, **{field: values})(columns))
    one_by_one = jax.vmap(total)(jnp.eye(3))
    np.testing.assert_allclose(jax.grad(total)(getattr(operator, field)), one_by_one, rtol=1e-4, atol=1e-3)


def test_transposed_exchanges_users_and_items():
    train, x, _ = random_case(2)
    by_item = linear.transposed(linear.histories(train))
    assert (by_item.n_users, by_item.n_items) == (N_ITEMS, N_USERS)
    np.testing.assert_allclose(linear.history_columns(by_item, jnp.arange(N_ITEMS)), x, rtol=1e-6)


def test_histories_hold_the_matrix_in_both_orders():
    train, x, _ = random_case(2)
    found = linear.histories(train)
    for start, ids, weight, matrix in (
        (found.user_start, found.item, found.weight, x),
        (found.item_start, found.user_by_item, found.weight_by_item, x.T),
    ):
        dense = np.zeros(matrix.shape)
        np.add.at(dense, (np.repeat(np.arange(len(matrix)), np.diff(start)), np.asarray(ids)), np.asarray(weight))
        np.testing.assert_allclose(dense, matrix, rtol=1e-6)


def test_evaluate_takes_it_as_it_takes_a_table_of_scores():
    train, x, f = random_case(3)
    scores = (x @ f.T).astype(np.float32)
    test = Ratings(np.arange(N_USERS), np.full(N_USERS, N_ITEMS - 1), np.ones(N_USERS), N_USERS, N_ITEMS)
    scorer = linear.linear_scorer(train, linear.Matrix(jnp.asarray(f)))
    by_table = evaluate(lambda table, users: table[users], train, test, k=3, state=jnp.asarray(scores))
    assert evaluate(scorer, train, test, k=3, batch_size=4).mean == pytest.approx(by_table.mean)


def test_evaluate_passes_the_tables_as_arguments_and_checks_the_sizes(compilations):
    train, _, f = random_case(4)
    test = Ratings([0], [N_ITEMS - 1], [1.0], N_USERS, N_ITEMS)
    scorer = linear.linear_scorer(train, linear.Matrix(jnp.asarray(f)))
    evaluate(scorer, train, test, k=3)
    other = linear.linear_scorer(train, linear.Matrix(jnp.asarray(2 * f)))
    before = compilations()
    evaluate(other, train, test, k=3)  # another table of the same shape
    assert compilations() == before
    wider = Ratings([0], [1], [1.0], N_USERS + 1, N_ITEMS)
    with pytest.raises(ValueError, match=f"expected ratings of {N_USERS} users"):
        evaluate(scorer, None, wider, k=3)


def test_other_users_are_scored_from_their_own_histories():
    train, _, _ = random_case(6)
    rng = np.random.default_rng(7)
    left, right = rng.normal(size=(N_ITEMS, 2)), rng.normal(size=(2, N_ITEMS))
    vectors = rng.normal(size=(N_USERS, 2))  # what the operator claims of the users of train: not to be used
    numbers = (jnp.asarray(each, jnp.float32) for each in (left, right, vectors))
    scorer = linear.for_users(linear.linear_scorer(train, linear.LowRank(*numbers)), train)
    others = Ratings([0, 1, 1], [2, 0, 5], [1.0, 1.0, 1.0], 2, N_ITEMS)
    x = np.zeros((2, N_ITEMS))
    x[others.user, others.item] = 1
    found = linear.for_users(scorer, others)(np.array([0, 1]))
    np.testing.assert_allclose(found, x @ (left @ right).T, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=f"ratings: expected {N_ITEMS} items"):
        linear.for_users(scorer, Ratings([0], [0], [1.0], 1, N_ITEMS + 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda scorer: scorer(np.array([N_USERS])), r"users: expected ids in \[0, 11\)"),
        (lambda scorer: scorer.scores(np.array([0, 1])), r"items: expected \[n, length\]"),
        (lambda scorer: scorer.scores(np.array([[N_ITEMS]])), r"items: expected ids in \[0, 7\)"),
        (lambda scorer: scorer.scores(np.array([[0, 1]]), where=np.array([[True]])), "where"),
        (lambda scorer: scorer.scores(np.array([[0]]), weights=np.array([[np.nan]])), "weights: expected finite"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_bad_input_is_named(call, message):
    train, _, f = random_case(5)
    with pytest.raises(ValueError, match=message):
        call(linear.linear_scorer(train, linear.Matrix(jnp.asarray(f))))


def test_no_interactions_give_zero_scores():
    empty = Ratings([], [], [], 2, 3)
    scorer = linear.linear_scorer(empty, linear.Matrix(jnp.ones((3, 3))))
    np.testing.assert_array_equal(scorer(np.array([0, 1])), np.zeros((2, 3)))
