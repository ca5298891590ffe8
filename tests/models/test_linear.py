"""Linear scorers against dense products, as a scorer of `evaluate`, and their errors."""

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
    padded, where = np.append(items, 5)[None], np.arange(len(items) + 1)[None] < len(items)
    found = scorer.scores(padded, where=where, weights=np.append(weights, np.float32(np.nan))[None])
    np.testing.assert_allclose(found, scorer(np.array([2])), rtol=1e-5, atol=1e-5)


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
