"""Approximate search behind the call of the exact one: `top_k(queries, index, k)`, by FAISS, which builds the index.

The index names candidates; they are scored again by the items' own vectors, so that scores are exact and only the
choice may miss an item. How much it misses is to be measured: `measure_recall`.

>>> import jax, jax.numpy as jnp
>>> from jaxrec.retrieval import top_k
>>> items = jax.random.normal(jax.random.key(0), (500, 8))
>>> found = build_index(items, "HNSW16", "efSearch=64")  # FAISS's own words for kind and effort
>>> scores, ids = top_k(items[:2], found, 3)
>>> bool(jnp.allclose(scores, top_k(items[:2], items, 3)[0], atol=1e-5)), measure_recall(found, items[:20], 10) > 0.9
(True, True)
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from jaxrec import check
from jaxrec.kernels.topk import Exclude
from jaxrec.retrieval import rerank
from jaxrec.retrieval.topk import top_k
from jaxrec.types import TopK

__all__ = ["Index", "build_index", "measure_recall"]


@dataclass(frozen=True)
class Index:
    """A FAISS index of inner products over a catalogue, and the catalogue.

    Attributes:
        items: [m, d], by which candidates are scored.
        faiss: the index, with one entry for each item, in their order.
    """

    items: Float[Array, "m d"]
    faiss: Any

    def __len__(self) -> int:
        """How many items there are."""
        return len(self.items)

    def top_k(
        self,
        queries: Float[Array, "n d"],
        k: int,
        *,
        exclude: Exclude | None = None,
        allowed: Bool[Array, " m"] | None = None,
    ) -> TopK:
        """As `retrieval.top_k`, less what the index misses; on the host, so not under jit.

        The index is asked for more than k where some of what it names is excluded or not allowed, and for four times
        as many again while that leaves a query short and the index has more to name.

        Raises:
            ValueError: under jit or vmap; queries that are not finite.
        """
        if isinstance(queries, jax.core.Tracer):
            raise ValueError("an approximate index is searched on the host: call top_k outside jit and vmap.")
        if not bool(jnp.isfinite(queries).all()):
            raise ValueError("queries: expected finite vectors, got NaN or infinity. Has training diverged?")
        m = len(self.items)
        asked = np.ascontiguousarray(queries, np.float32)
        fetch = min(m, k + (0 if exclude is None else exclude[0].shape[1]))
        while True:
            ids = self.faiss.search(asked, fetch)[1]
            found = ids >= 0
            if allowed is not None:
                found &= np.asarray(allowed)[ids]
            if exclude is not None:
                for row, (not_these, where) in enumerate(zip(*map(np.asarray, exclude), strict=True)):
                    found[row] &= ~np.isin(ids[row], not_these[where])
            short = (found.sum(axis=1) < k) & (ids >= 0).all(axis=1)
            if fetch == m or not short.any():
                break
            fetch = min(m, 4 * fetch)
        # in the order of their ids, so that ties go to the lowest
        ids = np.sort(np.where(found, ids, m), axis=1)[:, : max(k, int(found.sum(axis=1).max(initial=0)))]
        found = ids < m
        return _rescore(queries, self.items, jnp.asarray(np.where(found, ids, 0), jnp.int32), jnp.asarray(found), k)


def build_index(items: Shaped[ArrayLike, "m d"], kind: str = "HNSW32", effort: str = "efSearch=64") -> Index:
    """Trains and fills an index; `Index(items, faiss_index)` takes one of your own.

    Args:
        items: the catalogue; for the cosine, of length 1. No NaN or infinity.
        kind: FAISS's index_factory string: 'HNSW32', 'IVF4096,Flat', 'IVF4096,PQ16', ...
        effort: FAISS's parameters of a search: 'efSearch=64' for HNSW, 'nprobe=16' for IVF. More is slower, and misses
            less.

    Raises:
        ImportError: without FAISS (pip install 'jaxrec[ann]').
        ValueError: items that are no table of finite numbers; what FAISS does not know.
    """
    faiss: Any
    try:
        import faiss
    except ImportError as error:
        raise ImportError("approximate search needs FAISS: pip install 'jaxrec[ann]'.") from error
    items = check.as_array("items", items)
    if items.ndim != 2 or len(items) == 0 or not bool(jnp.isfinite(items).all()):
        raise ValueError(f"items: expected a table [m, d] of finite numbers, got {items.dtype}{list(items.shape)}.")
    vectors = np.ascontiguousarray(items, np.float32)
    try:
        index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        faiss.ParameterSpace().set_index_parameters(index, effort)
    except RuntimeError as error:
        raise ValueError(f"kind {kind!r}, effort {effort!r}: {error}") from error
    index.train(vectors)
    index.add(vectors)
    return Index(items, index)


def measure_recall(index: Index, queries: Shaped[ArrayLike, "n d"], k: int, *, block: int | None = None) -> float:
    """The share of the exact k best of each query that the index finds; raises as `top_k` of the index."""
    queries = check.as_array("queries", queries)
    _, exact = top_k(queries, index.items, k, block=block)
    scores, found = top_k(queries, index, k)
    found = jnp.where(scores > -jnp.inf, found, -1)
    return float(jnp.mean((exact[:, :, None] == found[:, None, :]).any(axis=2).astype(jnp.float32)))


@jax.jit(static_argnums=4)
def _rescore(queries: Array, items: Array, ids: Array, where: Array, k: int) -> TopK:
    one = lambda query, ids, where: rerank.rank(query, items, ids, where, k=k)
    return jax.vmap(one)(queries, ids, where)
