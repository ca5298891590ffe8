"""The metrics beyond accuracy equal sets and loops on a thousand random cases each, and read nothing under a mask."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import metrics

CASES, K, H, N_ITEMS, N_CATEGORIES, N_USERS = 1000, 6, 5, 9, 3, 21
GARBAGE = 10**6  # the id at masked positions


def draw_lists(rng, length, repeated=False):
    """Ids [CASES, length] of 9 items and a mask of 80 %; the first cases are all empty, of one position and full."""
    ids = np.stack([rng.permutation(N_ITEMS)[:length] for _ in range(CASES)])
    if repeated:
        ids[CASES // 2 :, 2] = ids[CASES // 2 :, 0]
    where = rng.random((CASES, length)) < 0.8
    where[0], where[1], where[2] = False, np.arange(length) == 1, True
    where[3 : CASES // 4] = np.arange(length)[None, :] < rng.integers(0, length + 1, CASES // 4 - 3)[:, None]
    order = rng.permutation(CASES)
    # under the mask of every second case are ids that no table has, and under the others ids like the rest
    ids[::2] = np.where(where[::2], ids[::2], GARBAGE)
    return ids[order].astype(np.int32), where[order]


@pytest.fixture(scope="module")
def cases():
    """A thousand users of a thousand catalogs: lists, histories and tables of each, among them all that is empty."""
    rng = np.random.default_rng(24)
    drawn = {"ids": draw_lists(rng, K), "repeated": draw_lists(rng, K, repeated=True)}
    drawn |= {name: draw_lists(rng, length) for name, length in (("history", H), ("relevant", H), ("other", 4))}
    counts = rng.integers(0, N_USERS, (CASES, N_ITEMS)) * (rng.random((CASES, N_ITEMS)) < 0.8)
    has = rng.random((CASES, 8, N_ITEMS)) < 0.4  # 8 users x items, to count the users of pairs
    categories = (rng.random((CASES, N_ITEMS, N_CATEGORIES)) < 0.4) * rng.integers(1, 4, (CASES, N_ITEMS, 1))
    tables = {
        "counts": counts.astype(np.float32),
        "vectors": (rng.integers(-3, 4, (CASES, N_ITEMS, 4)) * (rng.random((CASES, N_ITEMS, 1)) < 0.9)).astype(
            np.float32
        ),
        "categories": categories.astype(np.float32),
        "has": has.astype(np.float32),
        "co_counts": np.einsum("nui,nuj->nij", has.astype(np.float32), has.astype(np.float32)),
        "rank": np.stack([rng.permutation(N_ITEMS) + 1 for _ in range(CASES)]).astype(np.float32),
    }
    return drawn, tables


# The definitions: a list is [(position, item)] of its filled positions, with positions from 1.


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers) if numbers else math.nan


def items(listed):
    return [item for _, item in listed]


def first_hits(listed, relevant):
    """The positions and items of the first occurrences of relevant items."""
    return [(r, i) for n, (r, i) in enumerate(listed) if i in items(relevant) and i not in items(listed[:n])]


def self_information(listed, counts):
    return mean(-math.log2(max(counts[i], 1) / N_USERS) for i in items(listed))


def mean_popularity(listed, counts):
    return mean(counts[i] for i in items(listed))


def popularity_lift(listed, history, counts):
    own = mean(counts[i] for i in items(history))
    return mean(counts[i] for i in items(listed)) / own - 1 if own > 0 else math.nan


def unexpectedness(listed, other):
    return mean(i not in items(other) for i in items(listed))


def serendipity(listed, relevant, other):
    if not listed or not relevant:
        return math.nan
    return len([i for _, i in first_hits(listed, relevant) if i not in items(other)]) / len(listed)


def rank_serendipity(listed, relevant, rank):
    if not listed or not relevant:
        return math.nan
    return sum(max(rank[i] - r, 0) for r, i in first_hits(listed, relevant)) / N_ITEMS / len(listed)


def pairs(listed):
    listed = items(listed)
    return [(a, b) for n, a in enumerate(listed) for b in listed[n + 1 :]]


def cosine(listed, vectors):
    norm = lambda v: math.sqrt(sum(v * v)) or 1
    return mean(1 - sum(vectors[a] * vectors[b]) / norm(vectors[a]) / norm(vectors[b]) for a, b in pairs(listed))


def jaccard_distance(listed, vectors):
    features = lambda i: {n for n, value in enumerate(vectors[i]) if value != 0}
    share = lambda a, b: len(a & b) / len(a | b) if a | b else 1
    return mean(1 - share(features(a), features(b)) for a, b in pairs(listed))


def hamming(listed, vectors):
    return mean(sum(vectors[a] != vectors[b]) for a, b in pairs(listed))


def co_cosine(listed, has):
    users = lambda i: set(np.flatnonzero(has[:, i]))
    share = lambda a, b: len(a & b) / math.sqrt(len(a) * len(b)) if a and b else 0
    return mean(1 - share(users(a), users(b)) for a, b in pairs(listed))


def co_jaccard(listed, has):
    users = lambda i: set(np.flatnonzero(has[:, i]))
    share = lambda a, b: len(a & b) / len(a | b) if a | b else 0
    return mean(1 - share(users(a), users(b)) for a, b in pairs(listed))


def distribution(listed, categories):
    """Steck's p(c), a list of numbers; NaN if no item has a category."""
    shares = [[value / sum(categories[i]) for value in categories[i]] for i in items(listed) if sum(categories[i]) > 0]
    return [mean(share[c] for share in shares) for c in range(N_CATEGORIES)]


def miscalibration(listed, history, categories):
    p, q = distribution(history, categories), distribution(listed, categories)
    if any(map(math.isnan, p + q)):
        return math.nan
    return sum(a * math.log(a / (0.99 * b + 0.01 * a)) for a, b in zip(p, q, strict=True) if a > 0)


def distinct(listed):
    """The items in order, each at its first position."""
    return list(dict.fromkeys(items(listed)))


def overlap(listed, other):
    a, b = set(items(listed)), set(items(other))
    return len(a & b) / len(a) if a else math.nan


def jaccard(listed, other):
    a, b = set(items(listed)), set(items(other))
    return len(a & b) / len(a | b) if a | b else math.nan


def rbo_normalized(listed, other, p=0.85):
    a, b = distinct(listed), distinct(other)
    if not a or not b:
        return math.nan
    depths = range(1, max(len(a), len(b)) + 1)
    agreement = sum(p ** (d - 1) * len(set(a[:d]) & set(b[:d])) / d for d in depths)
    return agreement / sum(p ** (d - 1) for d in depths)


def rbo_extrapolated(listed, other, p=0.9, far=500):
    """The infinite sum itself, by the source's assumption: what follows the lists' ends is made up, as fractions.

    After its end the shorter list goes on to agree at the rate X(s) / s; after the longer's end the agreement at depth
    d stays what it was at its end.
    """
    short, long = sorted((distinct(listed), distinct(other)), key=len)
    s, l_ = len(short), len(long)
    if s == 0:
        return math.nan
    X = lambda d: len(set(short[:d]) & set(long[:d]))
    total = 0
    for d in range(1, far):
        end = min(d, l_)
        agreement = (X(end) + max(end - s, 0) * X(s) / s) / end
        total += (1 - p) * p ** (d - 1) * agreement
    return total


# name -> (the metric of one user, the definition, the lists it takes, the table it takes)
PER_LIST = {
    "self_information": (
        lambda ids, counts, filled: metrics.self_information(ids, counts, n_users=N_USERS, filled=filled),
        self_information, ("ids",), "counts",
    ),
    "mean_popularity": (
        lambda ids, counts, filled: metrics.mean_popularity(ids, counts, filled=filled),
        mean_popularity, ("ids",), "counts",
    ),
    "popularity_lift": (
        lambda ids, history, counts, filled, where: metrics.popularity_lift(
            ids, history, counts, filled=filled, where=where
        ),
        popularity_lift, ("ids", "history"), "counts",
    ),
    "unexpectedness": (
        lambda ids, other, filled, where: metrics.unexpectedness(ids, other, filled=filled, where=where),
        unexpectedness, ("repeated", "other"), None,
    ),
    "serendipity": (
        lambda ids, relevant, other, filled, where, expected_where: metrics.serendipity(
            ids, relevant, other, filled=filled, where=where, expected_where=expected_where
        ),
        serendipity, ("repeated", "relevant", "other"), None,
    ),
    "rank_serendipity": (
        lambda ids, relevant, rank, filled, where: metrics.rank_serendipity(
            ids, relevant, rank, filled=filled, where=where
        ),
        rank_serendipity, ("repeated", "relevant"), "rank",
    ),
    **{
        f"intra_list_diversity {distance.__name__}": (
            lambda ids, vectors, filled, distance=distance: metrics.intra_list_diversity(
                ids, vectors, distance=distance, filled=filled
            ),
            definition, ("ids",), "vectors",
        )
        for distance, definition in (
            (metrics.cosine_distance, cosine),
            (metrics.jaccard_distance, jaccard_distance),
            (metrics.hamming_distance, hamming),
        )
    },
    "category_distribution": (
        lambda ids, categories, filled: metrics.category_distribution(ids, categories, filled=filled),
        distribution, ("ids",), "categories",
    ),
    "miscalibration": (
        lambda ids, history, categories, filled, where: metrics.miscalibration(
            ids, history, categories, filled=filled, where=where
        ),
        miscalibration, ("ids", "history"), "categories",
    ),
    "overlap": (
        lambda ids, other, filled, where: metrics.overlap(ids, other, filled=filled, where=where),
        overlap, ("repeated", "other"), None,
    ),
    "jaccard": (
        lambda ids, other, filled, where: metrics.jaccard(ids, other, filled=filled, where=where),
        jaccard, ("repeated", "other"), None,
    ),
    "rank_biased_overlap": (
        lambda ids, other, filled, where: metrics.rank_biased_overlap(ids, other, filled=filled, where=where),
        rbo_extrapolated, ("repeated", "other"), None,
    ),
    "rank_biased_overlap normalize": (
        lambda ids, other, filled, where: metrics.rank_biased_overlap(
            ids, other, p=0.85, tail="normalize", filled=filled, where=where
        ),
        rbo_normalized, ("repeated", "other"), None,
    ),
    **{
        f"co_occurrence_diversity {distance}": (
            lambda ids, co_counts, filled, distance=distance: metrics.co_occurrence_diversity(
                ids, co_counts, distance=distance, filled=filled
            ),
            definition, ("ids",), "co_counts",
        )
        for distance, definition in (("cosine", co_cosine), ("jaccard", co_jaccard))
    },
}  # fmt: skip


def arguments(cases, name):
    """The positional arrays of a metric, of all cases: lists, the table if it has one, masks."""
    drawn, tables = cases
    _, _, lists, table = PER_LIST[name]
    return [
        *(drawn[each][0] for each in lists),
        *([] if table is None else [tables[table]]),
        *(drawn[each][1] for each in lists),
    ]


def expected_of_case(cases, name, n):
    drawn, tables = cases
    _, definition, lists, table = PER_LIST[name]
    python = [
        [(r + 1, int(i)) for r, (i, full) in enumerate(zip(drawn[each][0][n], drawn[each][1][n], strict=True)) if full]
        for each in lists
    ]
    # the co-occurrences are counted from the users themselves
    read = "has" if table == "co_counts" else table
    return definition(*python, *([] if table is None else [tables[read][n].astype(float)]))


@pytest.mark.parametrize("name", PER_LIST)
def test_the_metrics_of_a_list_equal_sets_and_loops(name, cases):
    got = np.asarray(jax.jit(jax.vmap(PER_LIST[name][0]))(*arguments(cases, name)))
    expected = np.array([expected_of_case(cases, name, n) for n in range(CASES)])
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    undefined = np.isnan(expected).reshape(CASES, -1).any(axis=1)
    assert 1 <= undefined.sum() <= CASES // 2, "both kinds of cases were drawn"
    assert len(np.unique(expected[~undefined])) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", PER_LIST)
def test_one_list_and_many_lists_and_a_grid_of_lists_agree(name, cases):
    """With one table for all, called eagerly."""
    metric, _, lists, table = PER_LIST[name]
    several = arguments(cases, name)
    at = {len(lists)} if table else set()
    first = lambda n: [each[7] if at and position in at else each[n] for position, each in enumerate(several)]
    expected = np.stack([metric(*first(n)) for n in range(4)])
    many = [each[7] if position in at else each[:4] for position, each in enumerate(several)]
    np.testing.assert_allclose(metric(*many), expected, rtol=1e-6)
    grid = [each if n in at else each.reshape(2, 2, *each.shape[1:]) for n, each in enumerate(many)]
    np.testing.assert_allclose(metric(*grid), expected.reshape(2, 2, *expected.shape[1:]), rtol=1e-6)


@pytest.mark.parametrize("name", PER_LIST)
def test_masked_ids_change_nothing(name, cases):
    metric, _, lists, _ = PER_LIST[name]
    several = arguments(cases, name)
    masks = several[-len(lists) :]
    case = next(n for n in range(CASES) if all(1 < mask[n].sum() < mask.shape[1] for mask in masks))
    ids, rest = [each[case] for each in several[: len(lists)]], [each[case] for each in several[len(lists) :]]
    expected = metric(*ids, *rest)
    assert not np.isnan(expected).any()
    for garbage in (0, -1, N_ITEMS):
        changed = [np.where(mask[case], each, garbage) for each, mask in zip(ids, masks, strict=True)]
        for run in (metric, jax.jit(metric)):
            np.testing.assert_allclose(run(*changed, *rest), expected, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name, case in PER_LIST.items() if case[3]])
def test_rows_of_items_that_no_list_has_are_not_read(name, cases):
    """Under jit, where a NaN cannot be refused; item 0 stands in for masked ids."""
    metric, _, lists, _ = PER_LIST[name]
    several = arguments(cases, name)
    masks = several[-len(lists) :]
    listed = [
        {int(i) for ids, mask in zip(several, masks, strict=False) for i in ids[n][mask[n]]} for n in range(CASES)
    ]
    case = next(
        n for n in range(CASES) if 0 not in listed[n] and all(1 < mask[n].sum() < mask.shape[1] for mask in masks)
    )
    clean = [each[case] for each in several]
    table = clean[len(lists)].copy()
    table[[i for i in range(N_ITEMS) if i not in listed[case]]] = np.nan
    dirty = [*clean[: len(lists)], table, *clean[len(lists) + 1 :]]
    np.testing.assert_array_equal(jax.jit(metric)(*dirty), jax.jit(metric)(*clean))
    assert not np.isnan(jax.jit(metric)(*dirty)).any()


def test_a_vector_that_is_not_listed_does_not_reach_the_gradient():
    ids, filled = jnp.array([2, 1, 0]), jnp.array([True, True, False])
    vectors = jnp.array([[1.0, 2.0], [1.0, 0.0], [1.0, 1.0]])
    value = lambda vectors: metrics.intra_list_diversity(ids, vectors, filled=filled)
    expected, got = (jax.grad(value)(each) for each in (vectors, vectors.at[0].set(jnp.nan)))
    np.testing.assert_array_equal(got, expected)
    assert np.isfinite(got).all()
    assert np.any(got != 0)


# Catalog-level: a thousand recommenders, of five users each


def exposures(ids, where):
    counts = [0] * N_ITEMS
    for item in ids[where].tolist():
        counts[item] += 1
    return counts


def gini(counts):
    """The mean absolute difference of two random items, over twice the mean."""
    total = sum(counts)
    return sum(abs(a - b) for a in counts for b in counts) / (2 * N_ITEMS * total) if total else math.nan


def entropy(counts):
    total = sum(counts)
    return -sum(c / total * math.log(c / total) for c in counts if c) if total else math.nan


CATALOG = {
    "exposure": lambda counts: counts,
    "catalog_coverage": lambda counts: sum(c > 0 for c in counts) / N_ITEMS,
    "exposure_gini": gini,
    "exposure_entropy": entropy,
}


@pytest.fixture(scope="module")
def recommenders():
    rng = np.random.default_rng(5)
    ids = rng.integers(0, rng.integers(1, N_ITEMS + 1, (1000, 1, 1)), (1000, 5, 3))
    where = rng.random((1000, 5, 3)) < rng.random((1000, 1, 1))
    where[0], where[1] = False, True
    ids[1] = 4  # one item has all positions
    return np.where(where, ids, GARBAGE).astype(np.int32), where


@pytest.mark.parametrize("name", CATALOG)
def test_the_metrics_of_a_catalog_equal_loops(name, recommenders):
    ids, where = recommenders
    metric = lambda ids, where: getattr(metrics, name)(ids, n_items=N_ITEMS, filled=where)
    got = np.asarray(jax.jit(jax.vmap(metric))(ids, where))
    expected = np.array([CATALOG[name](exposures(*each)) for each in zip(ids, where, strict=True)])
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(metric(ids[7], where[7]), expected[7], rtol=1e-6, atol=1e-6)
    assert len(np.unique(expected)) > N_ITEMS - 2


def test_the_ends_of_the_scales_of_a_catalog():
    equal, one = jnp.arange(8).reshape(4, 2), jnp.full((4, 2), 3)
    value = lambda name, ids: float(getattr(metrics, name)(ids, n_items=8))
    assert [value("catalog_coverage", ids) for ids in (equal, one)] == [1, 1 / 8]
    assert [value("exposure_gini", ids) for ids in (equal, one)] == [0, 1 - 1 / 8]
    assert value("exposure_entropy", equal) == pytest.approx(math.log(8))
    assert value("exposure_entropy", one) == 0


# What is refused

IDS = np.array([[0, 1], [2, 3]])
TABLE = np.ones(4)
CALLS = {
    "exposure": lambda ids, **mask: metrics.exposure(ids, n_items=4, **mask),
    "catalog_coverage": lambda ids, **mask: metrics.catalog_coverage(ids, n_items=4, **mask),
    "exposure_gini": lambda ids, **mask: metrics.exposure_gini(ids, n_items=4, **mask),
    "exposure_entropy": lambda ids, **mask: metrics.exposure_entropy(ids, n_items=4, **mask),
    "self_information": lambda ids, **mask: metrics.self_information(ids, TABLE, n_users=3, **mask),
    "mean_popularity": lambda ids, **mask: metrics.mean_popularity(ids, TABLE, **mask),
    "popularity_lift": lambda ids, **mask: metrics.popularity_lift(ids, IDS, TABLE, **mask),
    "rank_serendipity": lambda ids, **mask: metrics.rank_serendipity(ids, IDS, TABLE, **mask),
    "intra_list_diversity": lambda ids, **mask: metrics.intra_list_diversity(ids, TABLE[:, None], **mask),
    "co_occurrence_diversity": lambda ids, **mask: metrics.co_occurrence_diversity(ids, np.eye(4), **mask),
    "category_distribution": lambda ids, **mask: metrics.category_distribution(ids, TABLE[:, None], **mask),
    "miscalibration": lambda ids, **mask: metrics.miscalibration(ids, IDS, TABLE[:, None], **mask),
}
COMPARES = {
    "unexpectedness": lambda ids, **mask: metrics.unexpectedness(ids, IDS, **mask),
    "serendipity": lambda ids, **mask: metrics.serendipity(ids, IDS, IDS, **mask),
    "overlap": lambda ids, **mask: metrics.overlap(ids, IDS, **mask),
    "jaccard": lambda ids, **mask: metrics.jaccard(ids, IDS, **mask),
    "rank_biased_overlap": lambda ids, **mask: metrics.rank_biased_overlap(ids, IDS, **mask),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.usefixtures("as_users_run")
def test_ids_that_are_no_items_are_refused_unless_they_are_masked(name):
    for wrong in (4, -1, 2**31 + 1, 2**40):
        ids = np.array([[0, 1], [wrong, 3]])
        with pytest.raises(ValueError, match=rf"ids: expected ids in \[0, 4\), got {wrong}"):
            CALLS[name](ids)
        filled = np.array([[True, True], [False, True]])
        np.testing.assert_array_equal(
            CALLS[name](ids, filled=filled), CALLS[name](np.array([[0, 1], [2, 3]]), filled=filled)
        )
    with pytest.raises(ValueError, match="expected integer ids"):
        CALLS[name](np.array([[0.0, 1.0], [2.0, 3.0]]))


@pytest.mark.parametrize("name", CALLS | COMPARES)
@pytest.mark.usefixtures("as_users_run")
def test_masks_of_another_shape_and_positions_as_masks_are_refused(name):
    for mask in (np.ones((2, 1), bool), np.ones(2, bool), np.ones((2, 2), int)):
        with pytest.raises(ValueError, match="the mask of ids: expected a mask of bools of shape"):
            (CALLS | COMPARES)[name](IDS, filled=mask)


@pytest.mark.parametrize("name", COMPARES)
@pytest.mark.usefixtures("as_users_run")
def test_ids_that_are_only_compared_may_have_64_bits(name):
    ids = np.array([[0, 3], [2, 9]])
    shifted = {
        "unexpectedness": lambda: metrics.unexpectedness(ids + 2**40, IDS + 2**40),
        "serendipity": lambda: metrics.serendipity(ids + 2**40, IDS + 2**40, IDS + 2**40),
        "overlap": lambda: metrics.overlap(ids + 2**40, IDS + 2**40),
        "jaccard": lambda: metrics.jaccard(ids + 2**40, IDS + 2**40),
        "rank_biased_overlap": lambda: metrics.rank_biased_overlap(ids + 2**40, IDS + 2**40),
    }
    np.testing.assert_array_equal(shifted[name](), COMPARES[name](ids))
    with pytest.raises(ValueError, match=r"expected lists \[\*n, length\] of the same n users"):
        COMPARES[name](np.array([[0, 3]]))


BAD = {
    "negative counts": (lambda: metrics.self_information(IDS, -TABLE, n_users=3), "user_counts: expected finite numb"),
    "NaN popularity": (lambda: metrics.mean_popularity(IDS, TABLE * np.nan), "popularity: expected finite numbers"),
    "no users": (lambda: metrics.self_information(IDS, TABLE, n_users=0), "n_users: expected a whole number >= 1"),
    "a matrix as counts": (lambda: metrics.mean_popularity(IDS, np.eye(4)), "one number for each item"),
    "histories of others": (lambda: metrics.popularity_lift(IDS, IDS[:1], TABLE), "expected arrays of one shape"),
    "a vector as vectors": (lambda: metrics.intra_list_diversity(IDS, TABLE), "one vector for each item"),
    "a distance of a number": (
        lambda: metrics.intra_list_diversity(IDS, TABLE[:, None], distance=lambda a, b: a.sum()),
        "distance: expected a function",
    ),
    "counts that are not square": (
        lambda: metrics.co_occurrence_diversity(IDS, np.ones((4, 3))),
        r"expected a matrix \[n_items, n_items\]",
    ),
    "an unknown distance": (
        lambda: metrics.co_occurrence_diversity(IDS, np.eye(4), distance="euclidean"),
        "expected one of 'cosine', 'jaccard'",
    ),
    "no mixture": (lambda: metrics.miscalibration(IDS, IDS, TABLE[:, None], mixture=0), r"mixture: .* in \(0, 1\)"),
    "negative categories": (lambda: metrics.category_distribution(IDS, -TABLE[:, None]), "categories: expected fin"),
    "p = 1": (lambda: metrics.rank_biased_overlap(IDS, IDS, p=1), r"p: expected a number in \(0, 1\)"),
    "an unknown tail": (lambda: metrics.rank_biased_overlap(IDS, IDS, tail="cut"), "tail: expected one of"),
    "a number as list": (lambda: metrics.mean_popularity(np.array(1), TABLE), "expected a list of ids"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("as_users_run")
def test_bad_input_is_refused_with_what_was_expected(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_diversity_by_co_occurrence_is_that_of_the_columns_of_users(cases):
    """The equality that its docstring states, for items that all have users."""
    has = cases[1]["has"][0].copy()
    has[0] = 1
    ids = jnp.array([[0, 1, 2], [3, 4, 5]])
    for distance, of_columns in (("cosine", metrics.cosine_distance), ("jaccard", metrics.jaccard_distance)):
        got = metrics.co_occurrence_diversity(ids, has.T @ has, distance=distance)
        expected = metrics.intra_list_diversity(ids, has.T, distance=of_columns)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_equal_lists_agree_fully_and_disjoint_lists_not_at_all():
    ids = jnp.array([[3, 1, 2], [5, 0, 4]])
    for metric in (metrics.overlap, metrics.jaccard, metrics.rank_biased_overlap):
        np.testing.assert_allclose(metric(ids, ids), [1, 1], rtol=1e-6)
        np.testing.assert_array_equal(metric(ids, ids[::-1]), [0, 0])
