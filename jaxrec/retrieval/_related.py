"""Related items: nearest neighbors by the squared distance of their features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Int, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.kernels.topk import two_pass
from jaxrec.retrieval.topk import negative_squared_distance

__all__ = ["Neighbors", "related_ids"]

# Floats of feature differences in memory at once, [queries, block, d]: 16 MiB.
DIFFERENCES = 2**22


class Neighbors(NamedTuple):
    """Nearest neighbors of items, nearest first.

    Attributes:
        distances: [..., k], squared.
        ids: int32 [..., k].
    """

    distances: Array
    ids: Array


def related_ids(
    x: Shaped[ArrayLike, "n_items d"], item: int | Int[ArrayLike, "*n"] | Sequence[int], k: int
) -> Neighbors:
    """The k items i' with the smallest ‖x(i') - x(i)‖^2, nearest first, excluding i itself.

    Ties go to the lowest id. The notes print the norm without its square; the distances here are squared.

    Args:
        x: the features of at least two items (or any vectors, such as the output of a tower).
        item: the item i, or several [n]; not checked if traced.
        k: the number of neighbors, at most n_items - 1.

    Raises:
        ValueError: fewer than two items; k or an item out of range; `item` or `x` of another rank; features that
            are not finite.

    >>> x = jnp.array([[0.9, 0.0], [1.0, 0.01], [0.99, 0.0], [0.1, 1.0], [0.0, 0.9]])  # the notes' films
    >>> related_ids(x, jnp.array([2, 3]), 1)[1].tolist()  # nearest to "Cute puppies of love", to "Nonstop car chases"
    [[1], [4]]
    """
    (x,) = check.as_floats(x=x)
    if x.ndim != 2 or np.ndim(item) > 1:
        raise ValueError(f"expected x [n_items, d] and item [] or [n], got shapes {x.shape} and {np.shape(item)}.")
    if len(x) < 2:
        raise ValueError(f"x: expected at least two items, because an item is not its own neighbor, got {len(x)}.")
    if not 1 <= k < len(x):
        raise ValueError(f"k: expected between 1 and {len(x) - 1}, the other items of the catalog, got {k}.")
    query_ids = jnp.atleast_1d(check.row_ids("item", item, size=len(x)))
    if not check.traced(x) and not bool(jnp.isfinite(x).all()):
        raise ValueError("x: expected finite features, got NaN or infinity. Has training diverged?")
    exclude = query_ids[:, None], jnp.ones((len(query_ids), 1), bool)
    block = max(1, min(len(x), DIFFERENCES // max(1, len(query_ids) * x.shape[1])))
    scores, ids = two_pass(gather(x, query_ids), x, exclude, None, score=negative_squared_distance, k=k, block=block)
    distances = jnp.abs(scores)  # -scores would turn a distance of 0 into -0
    return Neighbors(distances, ids) if np.ndim(item) else Neighbors(distances[0], ids[0])
