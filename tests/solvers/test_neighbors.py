"""Nearest neighbors against dense NumPy loops written from the formulas, and their errors."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.data import weighting
from jaxrec.solvers import _nearest, neighbors
from jaxrec.solvers.neighbors import item_knn, rp3beta, similar, user_knn

N_USERS, N_ITEMS = 19, 26


def random_case(seed, *, weights=True, n=150):
    """Ratings with repeated pairs, and a user and an item without any; the histories as a matrix."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, N_USERS - 1, n), rng.integers(0, N_ITEMS - 1, n)
    weight = rng.uniform(0.5, 2, n).astype(np.float32) if weights else None
    train = Ratings(user, item, np.full(n, 5.0), N_USERS, N_ITEMS, weights=weight)
    x = np.zeros((N_USERS, N_ITEMS))
    np.add.at(x, (user, item), 1.0 if weight is None else weight)
    return train, x


def cosine(x, y, shrinkage):
    return x @ y / (np.linalg.norm(x) * np.linalg.norm(y) + shrinkage)


def jaccard(x, y, shrinkage):
    return x @ y / (x @ x + y @ y - x @ y + shrinkage)


FUNCTIONS = {"cosine": (neighbors.cosine_similarity, cosine), "jaccard": (neighbors.jaccard_similarity, jaccard)}


def k_largest(row, k, but):
    """Positions of the k largest positive numbers, ties to the lowest; in float32, as the solver has them."""
    ranked = sorted((-np.float32(value), i) for i, value in enumerate(row) if i != but and value > 0)
    return [i for _, i in ranked[:k]]


def neighbor_matrix(x, k, shrinkage, function):
    """s(i, h) of every column i with its k most similar columns h, 0 elsewhere."""
    n = x.shape[1]
    out = np.zeros((n, n))
    for i in range(n):
        row = [function(x[:, i], x[:, h], shrinkage) if x[:, i] @ x[:, h] > 0 else 0.0 for h in range(n)]
        kept = k_largest(row, k, i)
        out[i, kept] = np.array(row)[kept]
    return out


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("k", "shrinkage", "batch_size"), [(1, 0.0, 8), (4, 3.0, 5), (N_ITEMS - 1, 0.5, None)])
def test_item_knn_adds_the_similarities_of_the_items_in_the_history(name, k, shrinkage, batch_size):
    function, oracle = FUNCTIONS[name]
    train, x = random_case(0)
    scorer = item_knn(train, k=k, shrinkage=shrinkage, similarity=function, batch_size=batch_size)
    expected = x @ neighbor_matrix(x, k, shrinkage, oracle).T
    np.testing.assert_allclose(scorer(np.arange(N_USERS)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("k", "shrinkage"), [(2, 0.0), (N_USERS - 1, 1.5)])
def test_user_knn_adds_the_histories_of_similar_users(name, k, shrinkage):
    function, oracle = FUNCTIONS[name]
    train, x = random_case(1)
    scorer = user_knn(train, k=k, shrinkage=shrinkage, similarity=function)
    expected = neighbor_matrix(x.T, k, shrinkage, oracle) @ x
    np.testing.assert_allclose(scorer(np.arange(N_USERS)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_new_user_has_neighbors_among_all_users(name):
    function, oracle = FUNCTIONS[name]
    train, x = random_case(2)
    scorer = user_knn(train, k=4, shrinkage=0.5, similarity=function)
    items, weights = np.array([[3, 3, 7, 0]]), np.array([[1.0, 0.5, 2.0, np.nan]])
    new = np.zeros(N_ITEMS)
    np.add.at(new, [3, 3, 7], [1.0, 0.5, 2.0])
    row = [oracle(new, x[j], 0.5) if new @ x[j] > 0 else 0.0 for j in range(N_USERS)]
    kept = k_largest(row, 4, None)
    found = scorer.scores(items, where=np.isfinite(weights), weights=weights)
    np.testing.assert_allclose(found[0], np.array(row)[kept] @ x[kept], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.6, 0.3), (0.0, 1.0)])
def test_rp3beta_is_the_walk_of_three_steps(alpha, beta):
    train, x = random_case(3)
    degree = lambda x: np.maximum(x.sum(axis=1, keepdims=True), 1e-9)
    power = lambda p: np.where(p > 0, np.where(p > 0, p, 1) ** alpha, 0)
    to_item, to_user = power(x / degree(x)), power(x.T / degree(x.T))
    f = to_user @ to_item / degree(x.T).T ** beta
    kept = np.zeros((N_ITEMS, N_ITEMS))
    for h in range(N_ITEMS):
        largest = k_largest(f[h], 6, h)
        kept[h, largest] = f[h, largest]
    scorer = rp3beta(train, k=6, alpha=alpha, beta=beta)
    found = scorer(np.arange(N_USERS))
    if alpha:
        np.testing.assert_allclose(found, x @ kept, rtol=1e-5, atol=1e-6)
    else:  # float32 sees other ties: the sums of what is kept are the same
        np.testing.assert_allclose(found.sum(), (x @ kept).sum(), rtol=1e-5)
    np.testing.assert_allclose(
        rp3beta(train, k=N_ITEMS - 1, alpha=alpha, beta=beta)(np.arange(N_USERS)),
        x @ (f - np.diag(np.diag(f))),
        rtol=1e-5,
        atol=1e-6,
    )


def test_equal_similarities_go_to_the_lowest_id():
    train = Ratings([0] * 5, [4, 3, 2, 1, 0], np.ones(5), 1, 6)  # all pairs of the five items are alike
    found = similar(train, "item", k=3, batch_size=2)
    np.testing.assert_array_equal(found.ids[:5], [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2]])
    np.testing.assert_array_equal(found.similarity, [[1.0] * 3] * 5 + [[0.0] * 3])


def test_neighbors_are_nearest_first_and_padded_with_zeros():
    train = Ratings([0, 0, 1, 1, 2, 2, 3], [0, 1, 0, 1, 1, 2, 3], np.ones(7), 4, 4)
    found = similar(train, "item", k=3)
    np.testing.assert_array_equal(found.ids, [[1, 0, 0], [0, 2, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(
        found.similarity, [[2 / 6**0.5, 0, 0], [2 / 6**0.5, 1 / 3**0.5, 0], [1 / 3**0.5, 0, 0], [0, 0, 0]], rtol=1e-6
    )


def test_scikit_learn_has_the_same_neighbors():
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    train, x = random_case(4)
    s = pairwise.cosine_similarity(x.T)
    np.fill_diagonal(s, 0)
    found = similar(train, "item", k=5)
    np.testing.assert_allclose(found.similarity, -np.sort(-s, axis=1)[:, :5], rtol=1e-5, atol=1e-6)
    s_found = np.take_along_axis(s, np.asarray(found.ids), axis=1)
    np.testing.assert_allclose(np.where(found.similarity > 0, s_found, 0), found.similarity, rtol=1e-5, atol=1e-6)


def test_blocks_of_any_size_give_the_same():
    train, _ = random_case(5)
    expected = similar(train, "item", k=6, shrinkage=1.0, batch_size=N_ITEMS)
    for batch_size in (1, 7, 100):
        found = similar(train, "item", k=6, shrinkage=1.0, batch_size=batch_size)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.similarity, expected.similarity, rtol=1e-6)


def test_many_blocks_by_their_products_and_many_lengths_give_the_same(monkeypatch):
    train, _ = random_case(5)
    expected = similar(train, "item", k=6, shrinkage=1.0)
    monkeypatch.setattr(_nearest, "BLOCK_PRODUCTS", 40)  # fewer than one item takes, and more than another
    monkeypatch.setattr(_nearest, "LEAST", 2)
    found = similar(train, "item", k=6, shrinkage=1.0)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.similarity, expected.similarity, rtol=1e-6)


def test_weights_of_bm25_reach_similarities_and_histories():
    train, _ = random_case(6, weights=False)
    weighted = weighting.bm25(train)
    x = np.zeros((N_USERS, N_ITEMS))
    x[weighted.user, weighted.item] = weighted.weights
    expected = x @ neighbor_matrix(x, 5, 0.0, cosine).T
    np.testing.assert_allclose(item_knn(weighted, k=5)(np.arange(N_USERS)), expected, rtol=1e-4, atol=1e-5)


def test_an_item_of_all_users_and_users_of_all_items_have_finite_scores():
    user, item = np.nonzero(np.ones((4, 5)))
    train = Ratings(user, item, np.ones(20), 5, 6)  # a user and an item without any
    for scorer in (item_knn(train, k=2), user_knn(train, k=2), rp3beta(train, k=2, beta=0.5)):
        scores = np.asarray(scorer(np.arange(5)))
        assert np.isfinite(scores).all()
        assert (scores[:4].sum(axis=1) > 0).all()
        np.testing.assert_array_equal(scores[4], 0)
        np.testing.assert_array_equal(scores[:, 5], 0)
    for weigh in (weighting.tf_idf, weighting.bm25):
        assert np.isfinite(np.asarray(item_knn(weigh(train), k=2)(np.arange(5)))).all()


@pytest.mark.parametrize("solver", [item_knn, user_knn, rp3beta])
def test_no_pairs_and_pairs_of_weight_zero_give_zero_scores(solver):
    for train in (Ratings([], [], [], 3, 4), Ratings([0, 0], [0, 1], [1, 1], 3, 4, weights=[0, 0])):
        scorer = solver(train, k=2)
        np.testing.assert_array_equal(scorer(np.arange(3)), np.zeros((3, 4)))
        np.testing.assert_array_equal(scorer.scores(np.array([[0, 1]])), np.zeros((1, 4)))


def test_similarities_at_or_below_zero_are_no_neighbors_and_nan_is_refused():
    train, _ = random_case(7)
    negative = lambda products, rows, columns, shrinkage: jnp.where(products > 2, products - 5, -products)
    x = np.asarray(similar(train, "item", k=5, similarity=negative).similarity)
    assert x.min() == 0 < x.max()
    for wrong in (jnp.nan, jnp.inf):
        with pytest.raises(ValueError, match="similarity: expected finite numbers"):
            similar(train, "item", k=5, similarity=lambda products, *_, wrong=wrong: products * wrong)


@pytest.mark.parametrize("solver", [item_knn, rp3beta])
def test_a_second_fit_compiles_nothing(solver, compilations):
    train, _ = random_case(8)
    solver(train, k=3)
    before = compilations()
    solver(train, k=3)
    assert compilations() == before


TRAIN = random_case(9)[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: item_knn(TRAIN, k=0), r"k: expected between 1 and 25, the other items, got 0"),
        (lambda: item_knn(TRAIN, k=N_ITEMS), r"k: expected between 1 and 25, the other items, got 26"),
        (lambda: user_knn(TRAIN, k=N_USERS), r"k: expected between 1 and 18, the other users, got 19"),
        (lambda: rp3beta(TRAIN, k=N_ITEMS), r"k: expected between 1 and 25"),
        (lambda: item_knn(TRAIN, k=2.5), "k: expected a whole number"),
        (lambda: item_knn(TRAIN, k=2, shrinkage=-1.0), "shrinkage: expected a finite number >= 0"),
        (lambda: user_knn(TRAIN, k=2, shrinkage=np.nan), "shrinkage: expected a finite number >= 0"),
        (lambda: rp3beta(TRAIN, k=2, alpha=-0.5), "alpha: expected a finite number >= 0"),
        (lambda: rp3beta(TRAIN, k=2, beta=-0.5), "beta: expected a finite number >= 0"),
        (lambda: rp3beta(TRAIN, k=2, beta=np.inf), "beta: expected a finite number >= 0"),
        (lambda: rp3beta(TRAIN, k=2, beta=1000.0), "beta: expected powers of the popularity that fit float32"),
        (lambda: item_knn(TRAIN, k=2, batch_size=0), "batch_size: expected a whole number >= 1"),
        (lambda: similar(TRAIN, "film", k=2), "side: expected one of 'item', 'user'"),
        (lambda: Ratings([0], [0], [1], 1, 2, weights=[np.nan]), "weights: expected finite"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
