"""How the lists of all users share out the catalog: one number for a recommender, not one for each user.

With e(i) = the number of positions, of all lists, that hold item i, and p(i) = e(i) / sum e:

| metric | value | equal shares | one item only | the same in |
| --- | --- | --- | --- | --- |
| catalog_coverage | items with e(i) > 0 / n_items | 1 | 1 / n_items | RecTools with normalize=True |
| exposure_gini | sum_r (2 r - n_items - 1) p(r-th smallest) / n_items | 0 | 1 - 1 / n_items | LensKit's ListGini |
| exposure_entropy | - sum p(i) log p(i), in nats | log n_items | 0 | SciPy's entropy; divide by log 2 for bits |

`ids` are the recommended items of all users, [*n, k] rows of the catalog, and `filled` is False at the empty positions
of the lists, as in `metrics.ranking`. Items that are never recommended count, and so the catalog's size is an argument.
Without any filled position there is nothing to share: the coverage is 0, the others are NaN.

>>> import jax.numpy as jnp
>>> ids = jnp.array([[0, 1], [0, 2], [0, 0]])  # of three users and four items
>>> filled = jnp.array([[True, True], [True, True], [True, False]])
>>> exposure(ids, n_items=4, filled=filled).tolist()
[3, 1, 1, 0]
>>> float(catalog_coverage(ids, n_items=4, filled=filled))
0.75
>>> float(exposure_gini(ids, n_items=4, filled=filled))  # (-3 * 0 - 1 * 1 + 1 * 1 + 3 * 3) / 5 / 4
0.45000...
>>> float(exposure_entropy(ids, n_items=4, filled=filled))  # -(0.6 log 0.6 + 0.2 log 0.2 + 0.2 log 0.2)
0.950270...
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from jaxrec import check
from jaxrec.metrics._lists import Ids, rows_of_lists

__all__ = ["catalog_coverage", "exposure", "exposure_entropy", "exposure_gini"]


def exposure(ids: Ids, *, n_items: int, filled: Bool[ArrayLike, "*n k"] | None = None) -> Int[Array, " n_items"]:
    """How many filled positions hold each item: int32 [n_items].

    To pool batches of users, add up their exposures.

    Args:
        ids: the lists of all users.
        n_items: the size of the catalog.
        filled: False at empty positions of `ids`.

    Raises:
        ValueError: ids that are not in [0, n_items) (not checked under jit); a mask of another shape.
    """
    size = check.size_of_table("n_items", n_items)
    rows, filled = rows_of_lists("ids", ids, filled, size=size)
    return jnp.zeros(size, jnp.int32).at[rows.reshape(-1)].add(filled.reshape(-1).astype(jnp.int32))


def catalog_coverage(ids: Ids, *, n_items: int, filled: Bool[ArrayLike, "*n k"] | None = None) -> Float[Array, ""]:
    """The fraction of the catalog that is in any list. Arguments and errors as `exposure`.

    Source: Ge, Delgado-Battenfeld and Jannach 2010, Beyond accuracy: evaluating recommender systems by coverage and
    serendipity.
    """
    return jnp.mean((exposure(ids, n_items=n_items, filled=filled) > 0).astype(jnp.float32))


def exposure_gini(ids: Ids, *, n_items: int, filled: Bool[ArrayLike, "*n k"] | None = None) -> Float[Array, ""]:
    """The Gini coefficient of the items' exposures: 0 if all are equal, 1 - 1 / n_items if one item has every position.

    G = sum_r (2 r - n_items - 1) p(r) / n_items, with the shares p sorted from the smallest, r = 1, to the largest.
    Arguments and errors as `exposure`. LensKit's ExposureGini weights the positions of a list, which this does not.

    Source: Fleder and Hosanagar 2009, Blockbuster culture's next rise or fall.
    """
    share = jax.lax.sort(_shares(exposure(ids, n_items=n_items, filled=filled)))
    n = len(share)
    return jnp.sum(jnp.arange(1 - n, n, 2).astype(share.dtype) * share) / n


def exposure_entropy(ids: Ids, *, n_items: int, filled: Bool[ArrayLike, "*n k"] | None = None) -> Float[Array, ""]:
    """Shannon entropy of the items' shares of all positions, -sum p(i) log p(i), in nats; from 0 to log n_items.

    exp of it is an effective number of recommended items. Arguments and errors as `exposure`.

    Source: Shannon 1948, A mathematical theory of communication.
    """
    share = _shares(exposure(ids, n_items=n_items, filled=filled))
    return -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1)))  # NaN is not > 0 and stays in the first factor


def _shares(count: Array) -> Array:
    """Count / sum(count); NaN if all are 0."""
    total = jnp.sum(count, dtype=jnp.int32)
    return jnp.where(total > 0, count.astype(jnp.float32) / jnp.maximum(total, 1).astype(jnp.float32), jnp.nan)
