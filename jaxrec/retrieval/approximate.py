"""Approximate top-k search with a FAISS index, through the same call as exact search: `top_k(queries, index, k)`.

The index proposes candidates, which are rescored with the items' own vectors: scores are exact, and only the selection
may miss items. `measure_recall` measures how many it misses.

>>> import jax, jax.numpy as jnp
>>> from jaxrec.retrieval import top_k
>>> items = jax.random.normal(jax.random.key(0), (500, 8))
>>> found = build_index(items, "HNSW16", "efSearch=64")  # kind and effort as FAISS spells them
>>> scores, ids = top_k(items[:2], found, 3)
>>> bool(jnp.allclose(scores, top_k(items[:2], items, 3)[0], atol=1e-5)), measure_recall(found, items[:20], 10) > 0.9
(True, True)
"""

from __future__ import annotations

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
    """A FAISS inner-product index over a catalog, and the catalog.

    Attributes:
        items: [m, d], the vectors by which candidates are scored.
        faiss: the index, with one entry per item, in the same order.
    """

    items: Float[Array, "m d"]
    faiss: Any

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    def top_k(
        self,
        queries: Float[Array, "n d"],
        k: int,
        *,
        exclude: Exclude | None = None,
        allowed: Bool[Array, " m"] | None = None,
    ) -> TopK:
        """Like `retrieval.top_k`, but may miss items; runs on the host, so not under jit.

        The search fetches k candidates plus one per exclusion, and four times as many again while some query has fewer
        than k valid ones and the index has more.

        Raises:
            ValueError: under jit or vmap; queries that are not finite.
        """
        if isinstance(queries, jax.core.Tracer):
            raise ValueError(
                "queries: expected concrete arrays, because an approximate index is searched on the host, got traced "
                "ones. Call top_k outside jit and vmap."
            )
        if not bool(jnp.isfinite(queries).all()):
            raise ValueError("queries: expected finite vectors, got NaN or infinity. Has training diverged?")
        m = len(self.items)
        vectors = np.ascontiguousarray(queries, np.float32)
        fetch = min(m, k + (0 if exclude is None else exclude[0].shape[1]))
        while True:
            ids = self.faiss.search(vectors, fetch)[1]
            valid = ids >= 0
            if allowed is not None:
                valid &= np.asarray(allowed)[ids]
            if exclude is not None:
                for row, (excluded, where) in enumerate(zip(*map(np.asarray, exclude), strict=True)):
                    valid[row] &= ~np.isin(ids[row], excluded[where])
            incomplete = (valid.sum(axis=1) < k) & (ids >= 0).all(axis=1)
            if fetch == m or not incomplete.any():
                break
            fetch = min(m, 4 * fetch)
        # Sorted by id, so that ties go to the lowest id.
        ids = np.sort(np.where(valid, ids, m), axis=1)[:, : max(k, int(valid.sum(axis=1).max(initial=0)))]
        valid = ids < m
        return _rescore(queries, self.items, jnp.asarray(np.where(valid, ids, 0), jnp.int32), jnp.asarray(valid), k)


def build_index(items: Shaped[ArrayLike, "m d"], kind: str = "HNSW32", effort: str = "efSearch=64") -> Index:
    """Trains and fills an index. To use an existing FAISS index, call `Index(items, faiss_index)`.

    Args:
        items: the catalog, finite; normalized to length 1 for cosine similarity.
        kind: FAISS's index_factory string: 'HNSW32', 'IVF4096,Flat', 'IVF4096,PQ16', ...
        effort: FAISS's search parameters: 'efSearch=64' for HNSW, 'nprobe=16' for IVF. More effort is slower and misses
            less.

    Raises:
        ImportError: FAISS is not installed (pip install 'jaxrec[ann]').
        ValueError: items that are not a table of finite numbers; a kind or effort that FAISS does not know.
    """
    faiss: Any
    try:
        import faiss
    except ImportError as error:
        raise ImportError("Approximate search needs FAISS: pip install 'jaxrec[ann]'.") from error
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
    """Mean fraction of each query's exact k best items that the index finds. Raises like `top_k` of the index."""
    queries = check.as_array("queries", queries)
    _, exact_ids = top_k(queries, index.items, k, block=block)
    scores, ids = top_k(queries, index, k)
    ids = jnp.where(scores > -jnp.inf, ids, -1)
    return float(jnp.mean((exact_ids[:, :, None] == ids[:, None, :]).any(axis=2).astype(jnp.float32)))


@jax.jit(static_argnums=4)
def _rescore(queries: Array, items: Array, ids: Array, where: Array, k: int) -> TopK:
    rescore_query = lambda query, ids, where: rerank.rank(query, items, ids, where, k=k)
    return jax.vmap(rescore_query)(queries, ids, where)
