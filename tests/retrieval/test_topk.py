"""top_k equals a full sort for every block size, also with ties, and never returns excluded items."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import retrieval
from jaxrec.kernels.topk import two_pass
from jaxrec.retrieval import top_k, topk

M = 23
BLOCKS = pytest.mark.parametrize("block", [1, 3, 7, M, 64])


def draw(seed, n=6, m=M, d=3):
    """Vectors of small integers, so that products are exact and many scores are equal."""
    rng = np.random.default_rng(seed)
    return np.float32(rng.integers(-2, 3, size=(n, d))), np.float32(rng.integers(-2, 3, size=(m, d)))


def full_sort(scores, k):
    """The k best by a full sort, ties to the lowest id; positions that cannot be filled have score -inf and id 0."""
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, ids, axis=1)
    return best, np.where(best == -np.inf, 0, ids)


def assert_equal(got, expected):
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


@BLOCKS
@pytest.mark.parametrize("k", [1, 5, M])
@pytest.mark.parametrize("seed", range(2))
def test_top_k_equals_a_full_sort_with_many_ties(seed, k, block):
    queries, items = draw(seed)
    scores = queries @ items.T
    assert len(np.unique(scores)) < scores.size / 5, "the test needs ties"
    assert_equal(top_k(jnp.asarray(queries), jnp.asarray(items), k, block=block), full_sort(scores, k))


@pytest.mark.parametrize("block", [1, 2, 5, 8])
def test_with_equal_scores_the_lowest_ids_win(block):
    scores, ids = top_k(jnp.ones((2, 3)), jnp.ones((5, 3)), 4, block=block)
    assert ids.tolist() == [[0, 1, 2, 3]] * 2
    assert scores.tolist() == [[3.0] * 4] * 2


@pytest.mark.parametrize("block", [1, 2, 3])
def test_minus_zero_ties_with_zero(block):
    scores, ids = top_k(jnp.ones((1, 1)), jnp.array([[-0.0], [0.0], [-0.0]]), 3, block=block)
    assert scores.tolist() == [[0, 0, 0]]
    assert ids.tolist() == [[0, 1, 2]]


@BLOCKS
def test_the_padding_of_blocks_does_not_beat_negative_scores(block):
    queries, items = np.ones((1, 1), np.float32), -np.arange(1.0, M + 1, dtype=np.float32)[:, None]
    assert_equal(top_k(jnp.asarray(queries), jnp.asarray(items), M, block=block), full_sort(queries @ items.T, M))


def exclusions(seed, n, m, e=9):
    """(ids, where) with repeated ids, and arbitrary ids where `where` is False."""
    rng = np.random.default_rng(seed)
    ids, where = rng.integers(m, size=(n, e)), rng.random((n, e)) < 0.5
    garbage = rng.choice([-1, -7, m, m + 1, m + 40, 2**31 - 1, -(2**31), 0, 1], size=(n, e))
    ids = np.where(where, ids, garbage).astype(np.int32)
    where[0] = False  # one query excludes nothing
    return ids, where


def with_exclusions(scores, ids, where):
    scores = scores.copy()
    for query, (row, flags) in enumerate(zip(ids, where, strict=True)):
        for item, flag in zip(row, flags, strict=True):
            if flag:
                scores[query, item] = -np.inf
    return scores


@BLOCKS
@pytest.mark.parametrize("seed", range(3))
def test_exclusions_equal_a_full_sort_without_these_items(seed, block):
    queries, items = draw(seed)
    ids, where = exclusions(seed, len(queries), M)
    got = top_k(
        jnp.asarray(queries), jnp.asarray(items), 12, exclude=(jnp.asarray(ids), jnp.asarray(where)), block=block
    )
    assert_equal(got, full_sort(with_exclusions(queries @ items.T, ids, where), 12))
    for query, best in enumerate(np.asarray(got[1])):
        assert not set(best) & set(ids[query][where[query]]), "seen items are never returned"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [4, 100])
def test_seen_items_are_never_returned_even_if_all_items_are_requested(seed, block):
    rng = np.random.default_rng(seed)
    queries, items = rng.normal(size=(4, 3)), rng.normal(size=(M, 3))
    ids, where = exclusions(seed + 100, 4, M, e=30)
    exclude = jnp.asarray(ids), jnp.asarray(where)
    scores, best = (
        np.asarray(part) for part in top_k(jnp.float32(queries), jnp.float32(items), M, exclude=exclude, block=block)
    )
    for query in range(4):
        seen = set(ids[query][where[query]])
        filled = scores[query] > -np.inf
        assert set(best[query][filled]) == set(range(M)) - seen
        assert filled.sum() == M - len(seen)
        assert (best[query][~filled] == 0).all()


def test_an_empty_list_of_exclusions_excludes_nothing():
    queries, items = draw(0)
    no_exclusions = jnp.zeros((len(queries), 0), jnp.int32), jnp.zeros((len(queries), 0), bool)
    got = top_k(jnp.asarray(queries), jnp.asarray(items), 5, exclude=no_exclusions)
    assert_equal(got, full_sort(queries @ items.T, 5))


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint32, jnp.int32])
def test_excluded_ids_may_have_any_integer_type(dtype):
    exclude = jnp.array([[4, 2]], dtype), jnp.array([[True, True]])
    assert top_k(jnp.ones((1, 2)), jnp.ones((5, 2)), 3, exclude=exclude, block=2)[1].tolist() == [[0, 1, 3]]


@BLOCKS
def test_allowed_items_equal_a_full_sort_of_these(block):
    queries, items = draw(3)
    allowed = np.random.default_rng(0).random(M) < 0.6
    got = top_k(jnp.asarray(queries), jnp.asarray(items), 10, allowed=jnp.asarray(allowed), block=block)
    assert_equal(got, full_sort(np.where(allowed, queries @ items.T, -np.inf), 10))


@BLOCKS
def test_positions_that_cannot_be_filled_are_empty(block):
    queries, items = draw(4, n=2)
    allowed = np.isin(np.arange(M), [3, 8, 9, 22])
    exclude = jnp.array([[22, 3, 7], [5, 8, 9]], jnp.int32), jnp.array([[True, True, True], [False, True, False]])
    scores, ids = top_k(
        jnp.asarray(queries), jnp.asarray(items), 6, exclude=exclude, allowed=jnp.asarray(allowed), block=block
    )
    assert sorted(ids[0, :2].tolist()) == [8, 9]
    assert sorted(ids[1, :3].tolist()) == [3, 9, 22]
    assert np.isfinite(scores).sum(1).tolist() == [2, 3]
    assert (scores[0, 2:].tolist(), ids[0, 2:].tolist()) == ([-np.inf] * 4, [0] * 4)
    assert (scores[1, 3:].tolist(), ids[1, 3:].tolist()) == ([-np.inf] * 3, [0] * 3)


def test_without_allowed_items_all_positions_are_empty():
    scores, ids = top_k(jnp.ones((2, 1)), jnp.ones((4, 1)), 3, allowed=jnp.zeros(4, bool), block=3)
    assert (np.asarray(scores) == -np.inf).all()
    assert ids.tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize("block", [1, 2])
def test_a_catalog_of_one_item_returns_it(block):
    scores, ids = top_k(jnp.array([[2.0], [-3.0]]), jnp.array([[5.0]]), 1, block=block)
    assert (scores.tolist(), ids.tolist()) == ([[10.0], [-15.0]], [[0], [0]])


@pytest.mark.parametrize("block", [2, 64])
def test_vectors_of_dimension_zero_score_zero(block):
    assert top_k(jnp.zeros((2, 0)), jnp.zeros((5, 0)), 3, block=block)[1].tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("block", [4, 64])
def test_one_query_gives_its_row_of_the_result_for_several(block):
    queries, items = draw(5)
    ids, where = exclusions(5, len(queries), M)
    allowed = jnp.arange(M) % 4 > 0
    many = top_k(
        jnp.asarray(queries),
        jnp.asarray(items),
        6,
        exclude=(jnp.asarray(ids), jnp.asarray(where)),
        allowed=allowed,
        block=block,
    )
    for n in (0, 3):
        exclude = jnp.asarray(ids[n]), jnp.asarray(where[n])
        one = top_k(jnp.asarray(queries[n]), jnp.asarray(items), 6, exclude=exclude, allowed=allowed, block=block)
        assert_equal(one, (many[0][n], many[1][n]))
    assert_equal(top_k(jnp.asarray(queries[0]), jnp.asarray(items), 6), [a[0] for a in full_sort(queries @ items.T, 6)])


# Refused arguments


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=rf"^k: expected between 1 and the catalog's 5 items, got {k}"):
        top_k(jnp.ones((2, 3)), jnp.ones((5, 3)), k)


@pytest.mark.parametrize("block", [0, -1])
def test_a_block_out_of_range_is_refused(block):
    with pytest.raises(ValueError, match=rf"^block: expected at least 1, got {block}"):
        top_k(jnp.ones((2, 3)), jnp.ones((5, 3)), 1, block=block)


@pytest.mark.parametrize("shapes", [((2, 3), (5, 4)), ((2,), (5, 3)), ((1, 2, 3), (5, 3)), ((2, 3), (3,))], ids=str)
@pytest.mark.usefixtures("as_users_run")
def test_queries_and_items_of_wrong_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match=r"^expected queries \[n, d\] and items \[m, d\] of one dimension d, got"):
        top_k(jnp.ones(shapes[0]), jnp.ones(shapes[1]), 1)


@pytest.mark.parametrize("shapes", [((2, 4), (2, 3)), ((3, 4), (3, 4)), ((1, 4), (1, 4)), ((2, 4), (2, 1))], ids=str)
@pytest.mark.usefixtures("as_users_run")
def test_exclusions_of_wrong_shapes_are_refused(shapes):
    exclude = jnp.zeros(shapes[0], jnp.int32), jnp.ones(shapes[1], bool)
    with pytest.raises(ValueError, match=r"^exclude: expected ids and where of one shape \[2, e\], one row per query"):
        top_k(jnp.ones((2, 3)), jnp.ones((5, 3)), 1, exclude=exclude)


@pytest.mark.parametrize("shape", [(4,), (1,), (2, 5)], ids=str)
@pytest.mark.usefixtures("as_users_run")
def test_a_mask_of_allowed_items_of_a_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"^allowed: expected one flag per item, shape \(5,\), got"):
        top_k(jnp.ones((2, 3)), jnp.ones((5, 3)), 1, allowed=jnp.ones(shape, bool))


# Transformations, and other types


def test_top_k_works_under_jit():
    queries, items = draw(1)
    ids, where = exclusions(1, len(queries), M)
    searched = jax.jit(lambda q, x, e, a: top_k(q, x, 5, exclude=e, allowed=a, block=4))
    allowed = np.arange(M) % 3 > 0
    arguments = jnp.asarray(queries), jnp.asarray(items), (jnp.asarray(ids), jnp.asarray(where)), jnp.asarray(allowed)
    expected = with_exclusions(np.where(allowed, queries @ items.T, -np.inf), ids, where)
    assert_equal(searched(*arguments), full_sort(expected, 5))


def test_the_same_shapes_are_traced_once():
    traces = 0

    def counted(queries, items):
        nonlocal traces
        traces += 1
        return queries @ items.T

    for seed in range(4):
        queries, items = draw(seed)
        top_k(jnp.asarray(queries), jnp.asarray(items), 5, score=counted, block=7)
        if seed == 0:
            first = traces
    assert traces == first > 0
    top_k(jnp.asarray(queries), jnp.asarray(items), 4, score=counted, block=7)
    assert traces > first, "another shape is traced again"


def test_float64_scores_are_compared_in_float64():
    with jax.enable_x64(True):
        items = jnp.array([[1.0], [1 + 1e-12], [1 - 1e-12]], jnp.float64)
        exclude = jnp.array([[1]]), jnp.array([[True]])  # int64 ids
        scores, ids = top_k(jnp.ones((1, 1), jnp.float64), items, 2, block=2)
        assert scores.dtype == jnp.float64
        assert ids.tolist() == [[1, 0]]
        assert top_k(jnp.ones((1, 1), jnp.float64), items, 2, exclude=exclude, block=2)[1].tolist() == [[0, 2]]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_vectors_of_half_precision_are_exact_where_their_products_are(dtype):
    queries, items = draw(2)  # products and sums of these are exact in bfloat16, with its eight bits
    ids, where = exclusions(2, len(queries), M)
    exclude = jnp.asarray(ids), jnp.asarray(where)
    scores, best = top_k(jnp.asarray(queries, dtype), jnp.asarray(items, dtype), 7, exclude=exclude, block=5)
    assert scores.dtype == jnp.float32
    assert_equal((scores, best), full_sort(with_exclusions(queries @ items.T, ids, where), 7))


def test_products_of_half_precision_are_summed_in_float32():
    queries, items = jnp.ones((1, 2), jnp.bfloat16), jnp.array([[256, 0], [256, 1], [255, 0]], jnp.bfloat16)
    scores, ids = top_k(queries, items, 2)  # 257 does not fit into the eight bits of bfloat16
    assert (scores.tolist(), ids.tolist()) == ([[257, 256]], [[1, 0]])


def test_the_package_exports_top_k():
    assert retrieval.top_k is top_k


@BLOCKS
@pytest.mark.parametrize("score", [retrieval.cosine, retrieval.negative_squared_distance])
def test_other_scores_equal_a_full_sort(block, score):
    queries, items = draw(3)
    items[4] = 0
    distance = ((queries[:, None] - items[None]) ** 2).sum(-1)
    norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(items, axis=1)[None]
    expected = (
        -distance if score is retrieval.negative_squared_distance else (queries @ items.T) / np.maximum(norms, 1e-9)
    )
    scores, ids = top_k(jnp.asarray(queries), jnp.asarray(items), 5, score=score, block=block)
    np.testing.assert_allclose(scores, full_sort(expected, 5)[0], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(expected, np.asarray(ids), axis=1), scores, atol=1e-6)
    one = top_k(jnp.asarray(queries[0]), jnp.asarray(items), 5, score=score, block=block)
    np.testing.assert_array_equal(one[1], ids[0])


def test_the_catalog_is_not_copied():
    """The compiled search allocates memory for the scores of a block, independent of the size of the catalog."""
    queries, items = jnp.ones((4, 8)), jnp.ones((100_003, 8))
    compiled = two_pass.lower(queries, items, None, None, score=topk.dot, k=10, block=1024).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * items.nbytes
