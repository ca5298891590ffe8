"""How different the items of one list are from one another: the mean distance of its pairs, one number for each list.

    diversity of a list = mean over the pairs of filled positions r < s of distance(item at r, item at s)

by the items' feature vectors, with a distance that is passed (`cosine_distance`, `jaccard_distance`,
`hamming_distance`, or the user's), or by how often the same users have both items. `ids` are [*n, k] rows of the tables
and `filled` is False at empty positions, as in `metrics.ranking`. A list with fewer than two items has no pair: NaN
(0 in RecTools, which would count it among the most uniform).

>>> import jax.numpy as jnp
>>> genres = jnp.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]])
>>> ids, filled = jnp.array([[0, 1, 3], [1, 2, 0]]), jnp.array([[True, True, True], [True, True, False]])
>>> intra_list_diversity(ids, genres, distance=jaccard_distance, filled=filled).tolist()  # (1/2 + 1 + 1) / 3 and 2/3
[0.833333..., 0.666666...]
>>> both = jnp.array([[4, 2, 0, 1], [2, 4, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]])  # the users who have item i and item j
>>> co_occurrence_diversity(ids, both, filled=filled).tolist()  # 1 - (2 / 4 + 1 / 2 + 0) / 3, 1 - 1 / 2
[0.666666..., 0.5]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.metrics._lists import Ids, each_list, mean_where, rows_of_lists
from jaxrec.numerics import product, unit_vectors

__all__ = [
    "co_occurrence_diversity",
    "cosine_distance",
    "hamming_distance",
    "intra_list_diversity",
    "jaccard_distance",
]

# distance(a [n, d], b [m, d]) -> [n, m], such as `cosine_distance`
Distance = Callable[[Array, Array], Array]


def cosine_distance(a: Shaped[ArrayLike, "n d"], b: Shaped[ArrayLike, "m d"]) -> Float[Array, "n m"]:
    """1 - cosine of every vector of a with every vector of b: from 0 to 2; 1 for a vector of zeros."""
    a, b = check.as_floats(a=a, b=b)
    return 1 - product(unit_vectors(a), unit_vectors(b).T)


def jaccard_distance(a: Shaped[ArrayLike, "n d"], b: Shaped[ArrayLike, "m d"]) -> Float[Array, "n m"]:
    """1 - (features of both) / (features of either), where a feature is a number that is not 0; 0 for two without any.

    As SciPy's and scikit-learn's distance of bools.
    """
    a, b = (check.as_array(name, each) != 0 for name, each in (("a", a), ("b", b)))
    has_a, has_b = a.astype(jnp.float32), b.astype(jnp.float32)
    both = product(has_a, has_b.T)
    either = jnp.sum(has_a, axis=1)[:, None] + jnp.sum(has_b, axis=1)[None, :] - both
    return (either - both) / jnp.maximum(either, 1)


def hamming_distance(a: Shaped[ArrayLike, "n d"], b: Shaped[ArrayLike, "m d"]) -> Float[Array, "n m"]:
    """The number of features that differ, as in RecTools; SciPy and scikit-learn divide it by their number d."""
    a, b = (check.as_array(name, each) for name, each in (("a", a), ("b", b)))
    return jnp.sum(a[:, None, :] != b[None, :, :], axis=-1).astype(jnp.float32)


def intra_list_diversity(
    ids: Ids,
    vectors: Shaped[ArrayLike, "n_items d"],
    *,
    distance: Distance = cosine_distance,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """The mean distance between the feature vectors of a list's items, over its pairs of positions.

    Memory: k (d + k) numbers for each list; pass many lists in batches.

    Args:
        ids: the lists.
        vectors: the features of each item: a learned vector, or numbers and bools such as genres.
        distance: a function of vectors [n, d] and [m, d] that returns [n, m], such as those of this module. Vectors at
            empty positions are 0.
        filled: False at empty positions of `ids`.

    Raises:
        ValueError: ids that are not rows of the table (not checked under jit); a table or a mask of another shape; a
            distance that does not return one number for each pair.

    Source: Smyth and McClave 2001, Similarity vs. diversity; Ziegler et al. 2005, Improving recommendation lists
    through topic diversification (the similarity of pairs, not divided by their number).
    """
    table = check.as_array("vectors", vectors)
    if table.ndim != 2 or len(table) == 0:
        raise ValueError(f"vectors: expected one vector for each item [n_items, d], got shape {table.shape}.")
    rows, filled = rows_of_lists("ids", ids, filled, size=len(table))

    def one_list(rows: Array, filled: Array) -> Array:
        listed = gather(table, rows)
        listed = jnp.where(filled[:, None], listed, jnp.zeros_like(listed))
        distances = distance(listed, listed)
        if distances.shape != 2 * rows.shape:
            raise ValueError(
                "distance: expected a function of vectors [n, d] and [m, d] that returns [n, m], got "
                f"{distances.shape} from {listed.shape} twice."
            )
        (distances,) = check.as_floats(distances=distances)
        return _mean_of_pairs(distances, filled)

    return each_list(one_list, rows.shape[:-1], rows, filled)


def co_occurrence_diversity(
    ids: Ids,
    co_counts: Shaped[ArrayLike, "n_items n_items"],
    *,
    distance: Literal["cosine", "jaccard"] = "cosine",
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """The mean distance between a list's items, over its pairs of positions, by the users whom they have in common.

    With C(i, j) the number of users who have both items, and C(i, i) who have the one::

        cosine   1 - C(i, j) / sqrt(C(i, i) C(j, j))
        jaccard  1 - C(i, j) / (C(i, i) + C(j, j) - C(i, j))

    which are `cosine_distance` and `jaccard_distance` of the items' columns of the users x items matrix of 0 and 1, but
    that an item without users has the distance 1 from all.

    Args:
        ids: the lists.
        co_counts: C, symmetric: X'X of the users x items matrix. For a large catalog, only of the items that are
            listed: `listed, ids = numpy.unique(ids, return_inverse=True)`, and C of X[:, listed].
        distance: 'cosine' or 'jaccard'.
        filled: False at empty positions of `ids`.

    Raises:
        ValueError: ids that are not rows of the table (not checked under jit); a table that is not square; a mask of
            another shape; another distance.
    """
    check.choice("distance", distance, ("cosine", "jaccard"))
    (table,) = check.as_floats(co_counts=co_counts)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) == 0:
        raise ValueError(f"co_counts: expected a matrix [n_items, n_items], got shape {table.shape}.")
    rows, filled = rows_of_lists("ids", ids, filled, size=len(table))

    def one_list(rows: Array, filled: Array) -> Array:
        pair = filled[:, None] & filled[None, :]
        both = jnp.where(pair, table[rows[:, None], rows[None, :]], 0)
        own = jnp.where(filled, table[rows, rows], 0)
        if distance == "jaccard":
            of_pair = own[:, None] + own[None, :] - both
        else:
            of_pair = jnp.sqrt(jnp.where(pair, own[:, None] * own[None, :], 1))
        return _mean_of_pairs(1 - jnp.where(of_pair > 0, both / jnp.where(of_pair > 0, of_pair, 1), 0), filled)

    return each_list(one_list, rows.shape[:-1], rows, filled)


def _mean_of_pairs(distances: Array, filled: Array) -> Array:
    """The mean of distances [k, k] over the pairs r < s of filled positions; NaN without a pair."""
    position = jnp.arange(len(filled))
    pairs = filled[:, None] & filled[None, :] & (position[:, None] < position[None, :])
    return mean_where(distances.reshape(-1), pairs.reshape(-1))
