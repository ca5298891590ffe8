"""Scorers of neighbors against dense products, as scorers of `evaluate`, and their errors."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, data, storage
from jaxrec.evaluation import evaluate
from jaxrec.kernels import sparse_rows as kernel
from jaxrec.kernels.sparse_rows import SparseRows
from jaxrec.models import neighbors
from jaxrec.solvers.neighbors import item_knn, user_knn

N_USERS, N_ITEMS = 23, 40


def random_case(seed, *, weights=True, n=200):
    """Ratings with repeated pairs, and a user and an item without any; the histories as a matrix."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, N_USERS - 1, n), rng.integers(0, N_ITEMS - 1, n)
    weight = rng.uniform(0.5, 2, n).astype(np.float32) if weights else None
    train = Ratings(user, item, np.full(n, 5.0), N_USERS, N_ITEMS, weights=weight)
    x = np.zeros((N_USERS, N_ITEMS))
    np.add.at(x, (user, item), 1.0 if weight is None else weight)
    return train, x


def random_rows(seed, n_rows=N_ITEMS, density=0.5):
    """A sparse matrix with rows of very different lengths, some of them empty; the same dense."""
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((n_rows, N_ITEMS)) < density * rng.random((n_rows, 1)) ** 2, 1.0, 0.0)
    dense[::5] = 0
    dense[1] = 1
    dense *= rng.normal(size=dense.shape)
    row, item = np.nonzero(dense)
    return neighbors.sparse_rows(row, item, dense[row, item], n_rows=n_rows, n_items=N_ITEMS), dense


@pytest.mark.parametrize("weights", [True, False])
def test_scores_are_sums_of_the_rows_of_the_items_in_the_history(weights):
    train, x = random_case(0, weights=weights)
    rows, f = random_rows(0)
    scorer = neighbors.item_scorer(train, rows)
    assert (scorer.n_users, scorer.n_items) == (N_USERS, N_ITEMS)
    np.testing.assert_allclose(scorer(np.arange(N_USERS)), x @ f, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scorer(np.array([3, 3, 0])), (x @ f)[[3, 3, 0]], rtol=1e-5, atol=1e-5)


def test_many_pieces_and_small_chunks_of_lists_give_the_same_sums(monkeypatch):
    rows, f = random_rows(1, density=1.0)
    rng = np.random.default_rng(1)
    ids, where = rng.integers(0, N_ITEMS, (9, 12)), rng.random((9, 12)) < 0.7
    weights = rng.normal(size=(9, 12)).astype(np.float32)
    expected = np.einsum("nl,nli->ni", np.where(where, weights, 0), f[ids])
    lists = jnp.asarray(ids), jnp.asarray(np.where(where, weights, np.nan)), jnp.asarray(where)
    np.testing.assert_allclose(kernel.add_rows(rows, *lists), expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(kernel, "PIECES", 3)
    np.testing.assert_allclose(kernel.add_rows(rows, *lists), expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(kernel, "MAX_NUMBER", 2 * 12 * rows.longest + 3)  # two lists at once
    np.testing.assert_allclose(kernel.add_rows(rows, *lists), expected, rtol=1e-4, atol=1e-4)


def test_repeated_entries_add_up_and_no_entries_are_zero():
    rows = neighbors.sparse_rows([1, 1, 1], [2, 0, 2], [1.0, 4.0, 2.0], n_rows=2, n_items=3)
    lists = jnp.array([[1], [0]]), jnp.array([[2.0], [1.0]]), jnp.array([[True], [True]])
    np.testing.assert_array_equal(kernel.add_rows(rows, *lists), [[8.0, 0.0, 6.0], [0.0, 0.0, 0.0]])
    empty = neighbors.sparse_rows([], [], [], n_rows=2, n_items=3)
    np.testing.assert_array_equal(kernel.add_rows(empty, *lists), np.zeros((2, 3)))
    nothing = Ratings([], [], [], 2, 2)
    scorer = neighbors.item_scorer(nothing, neighbors.sparse_rows([0], [1], [1.0], n_rows=2, n_items=2))
    np.testing.assert_array_equal(scorer(np.array([0, 1])), np.zeros((2, 2)))
    assert scorer.scores(np.zeros((2, 0), int)).shape == (2, 2)


def test_a_new_user_is_scored_as_the_same_history_in_train():
    train, _ = random_case(2)
    scorer = neighbors.item_scorer(train, random_rows(2)[0])
    of_user = train.user == 2
    items, weights = train.item[of_user], train.weights[of_user]
    padded, where = np.append(items, 5)[None], np.arange(len(items) + 1)[None] < len(items)
    found = scorer.scores(padded, where=where, weights=np.append(weights, np.float32(np.nan))[None])
    np.testing.assert_allclose(found, scorer(np.array([2])), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", [item_knn, user_knn])
def test_evaluate_takes_it_as_it_takes_a_table_of_scores(solver):
    train, _ = random_case(3)
    rng = np.random.default_rng(3)
    seen = set(zip(train.user.tolist(), train.item.tolist(), strict=True))
    pairs = [(j, i) for j in range(N_USERS) for i in rng.permutation(N_ITEMS)[:4].tolist() if (j, i) not in seen]
    test = Ratings(*np.array(pairs).T, np.ones(len(pairs)), N_USERS, N_ITEMS)
    scorer = solver(train, k=7, shrinkage=1.0)
    scores = np.asarray(scorer(np.arange(N_USERS)))
    by_table = evaluate(lambda table, users: table[users], train, test, k=3, state=jnp.asarray(scores))
    assert evaluate(scorer, train, test, k=3, batch_size=4).mean == pytest.approx(by_table.mean)


@pytest.mark.parametrize("solver", [item_knn, user_knn])
def test_evaluate_passes_the_tables_as_arguments_and_checks_the_sizes(solver, compilations):
    train, _ = random_case(4, n=120)
    test = Ratings([0], [N_ITEMS - 1], [1.0], N_USERS, N_ITEMS)
    scorer = solver(train, k=3)
    evaluate(scorer, train, test, k=3)
    other = solver(train, k=3, shrinkage=0.5)
    before = compilations()
    evaluate(other, train, test, k=3)  # other tables of the same shape
    assert compilations() == before
    wider = Ratings([0], [1], [1.0], N_USERS + 1, N_ITEMS)
    with pytest.raises(ValueError, match=f"expected ratings of {N_USERS} users"):
        evaluate(scorer, None, wider, k=3)


def test_histories_may_be_others_than_those_of_the_neighbors():
    rng = np.random.default_rng(5)
    pair = rng.permutation(N_USERS * N_ITEMS)[:300]
    train = Ratings(pair // N_ITEMS, pair % N_ITEMS, np.ones(300), N_USERS, N_ITEMS, time=rng.permutation(300))
    knn = item_knn(train, k=5)
    found = neighbors.item_scorer(data.last_items(train, 2), knn.rows)(np.arange(N_USERS))
    for j in range(N_USERS):
        rows = np.flatnonzero(train.user == j)
        last = train.item[rows[np.argsort(train.time[rows])[-2:]]]
        np.testing.assert_allclose(found[j], knn.scores(last[None])[0], rtol=1e-5, atol=1e-6)


def test_rows_are_saved_and_read_as_named_arrays(tmp_path):
    train, _ = random_case(8)
    knn = item_knn(train, k=5)
    arrays = {name: getattr(knn.rows, name) for name in ("start", "item", "weight")}
    meta = {"n_items": knn.rows.n_items, "longest": knn.rows.longest}
    storage.write(tmp_path / "knn.jaxrec", "item_knn", arrays, meta)
    arrays, meta = storage.read(tmp_path / "knn.jaxrec", "item_knn")
    rows = SparseRows(**{name: jnp.asarray(array) for name, array in arrays.items()}, **meta)
    users = np.arange(N_USERS)
    np.testing.assert_array_equal(neighbors.item_scorer(train, rows)(users), knn(users))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda scorer: scorer(np.array([N_USERS])), r"users: expected ids in \[0, 23\)"),
        (lambda scorer: scorer.scores(np.array([0, 1])), r"items: expected \[n, length\]"),
        (lambda scorer: scorer.scores(np.array([[N_ITEMS]])), r"items: expected ids in \[0, 40\)"),
        (lambda scorer: scorer.scores(np.array([[0, 1]]), where=np.array([[True]])), "where"),
        (lambda scorer: scorer.scores(np.array([[0]]), weights=np.array([[np.nan]])), "weights: expected finite"),
    ],
)
@pytest.mark.parametrize("solver", [item_knn, user_knn])
@pytest.mark.usefixtures("as_users_run")
def test_bad_input_is_named(solver, call, message):
    train, _ = random_case(6)
    with pytest.raises(ValueError, match=message):
        call(solver(train, k=2))


@pytest.mark.parametrize(
    ("row", "weight", "message"),
    [([2], [1.0], "ids"), ([0], [np.nan], "weights: expected finite"), ([0, 1], [1.0], "one length")],
)
def test_bad_rows_are_named(row, weight, message):
    with pytest.raises(ValueError, match=message):
        neighbors.sparse_rows(row, [0], weight, n_rows=2, n_items=2)


def test_rows_of_other_items_are_refused():
    train, _ = random_case(7)
    rows = neighbors.sparse_rows([0], [1], [1.0], n_rows=2, n_items=2)
    with pytest.raises(ValueError, match="rows: expected a matrix of train's 40 items"):
        neighbors.item_scorer(train, rows)
