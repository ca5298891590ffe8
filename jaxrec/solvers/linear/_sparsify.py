"""Sparse weights, as of SLIM: those of a dense fit that matter, the others dropped.

Weights are chosen by their absolute values, all above a threshold or the largest of each item that is predicted. They
are not fitted again. A product with them is a sparse one: 100 weights of each of 40,000 items are 32 MB for 6.4 GB.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrec import check
from jaxrec.kernels.chunks import by_chunks
from jaxrec.models.linear import LinearScorer, Matrix, Scaled, SparseMatrix, check_linear

__all__ = ["sparsify"]

# Rows of the weights that are sorted, or read by the host, at once.
ROWS = 256


def sparsify(scorer: LinearScorer, *, keep: int | None = None, threshold: float | None = None) -> LinearScorer:
    """The scorer with the largest weights only, as a sparse operator.

    Args:
        scorer: of dense weights, such as `ease` in the primal form.
        keep: how many weights are kept for each item that is predicted, those of largest absolute value.
        threshold: the smallest absolute value that is kept; with `keep` too, both hold.

    Raises:
        ValueError: a scorer of another operator than a matrix; neither or invalid numbers; weights that are not finite.

    >>> from jaxrec import Ratings
    >>> from jaxrec.solvers.linear import ease
    >>> train = Ratings([0, 0, 1, 1, 2], [0, 1, 0, 1, 2], [1, 1, 1, 1, 1], n_users=3, n_items=3)
    >>> sparsify(ease(train, l2=1.0), threshold=0.1).operator.item.tolist()  # items 0 and 1 predict one another
    [1, 0]
    """
    check_linear(scorer)
    operator = scorer.operator
    if isinstance(operator, Scaled):
        inner = sparsify(dataclasses.replace(scorer, operator=operator.operator), keep=keep, threshold=threshold)
        return dataclasses.replace(scorer, operator=dataclasses.replace(operator, operator=inner.operator))
    if not isinstance(operator, Matrix):
        raise ValueError(
            f"scorer: expected one of dense weights, such as ease(train, l2=..., form='primal'), got the operator "
            f"{type(operator).__name__}."
        )
    if keep is None and threshold is None:
        raise ValueError("keep, threshold: expected at least one of the two, got neither.")
    weight = operator.weight[:, : scorer.n_items]
    check.all_finite("scorer: weight", weight)
    if threshold is not None:
        check.positive("threshold", threshold, zero=True)
    if keep is None:
        return dataclasses.replace(scorer, operator=_above(weight, float(threshold or 0)))
    count = min(check.whole_number("keep", keep, least=1), scorer.n_items)
    items, values = _largest(weight, count=count)
    # ascending items, so that the products read histories in order
    valid = np.abs(np.asarray(values)) >= max(threshold or 0, np.finfo(np.float32).tiny)
    start = np.concatenate([[0], np.cumsum(valid.sum(axis=1))])
    flat = lambda each: jnp.asarray(np.asarray(each)[valid])
    return dataclasses.replace(
        scorer, operator=SparseMatrix(jnp.asarray(start.astype(np.int32)), flat(items), flat(values))
    )


def _above(weight: Array, threshold: float) -> SparseMatrix:
    """The entries of at least this absolute value, but for zeros."""
    counts, items, values = [np.zeros(1, np.int64)], [], []
    for first in range(0, len(weight), ROWS):
        rows = np.asarray(weight[first : first + ROWS])
        valid = (np.abs(rows) >= threshold) & (rows != 0)
        counts.append(valid.sum(axis=1))
        items.append(np.nonzero(valid)[1].astype(np.int32))
        values.append(rows[valid])
    start = np.cumsum(np.concatenate(counts))
    check.size_of_table("entries of at least the threshold", int(start[-1]) + 1)
    return SparseMatrix(
        jnp.asarray(start.astype(np.int32)), jnp.asarray(np.concatenate(items)), jnp.asarray(np.concatenate(values))
    )


@partial(jax.jit, static_argnames="count")
def _largest(weight: Array, *, count: int) -> tuple[Array, Array]:
    """(items, weights) of the `count` largest absolute values of each row, in the order of their items."""

    def of_rows(rows: Array) -> tuple[Array, Array]:
        items = jnp.sort(jax.lax.top_k(jnp.abs(rows).astype(jnp.float32), count)[1], axis=1)
        return items, jnp.take_along_axis(rows, items, axis=1)

    return by_chunks(of_rows, weight, ROWS)
