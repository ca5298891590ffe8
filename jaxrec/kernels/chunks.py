"""Rows worked on some at a time: so that what each step gathers stays in the cache, and memory is bounded."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = ["by_chunks", "each_by_chunks"]


def by_chunks(f: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """f(rows) where f works row by row: called with `size` rows at a time, one compilation, results laid end to end.

    Slices, and no padded copy of the rows: the last chunk begins early, and what it gives of rows that the one before
    it had is the same. The results are written where they stay, for those of a sweep of ALS are gigabytes. The
    derivative computes f again, chunk by chunk, so that it too holds no more than one chunk's.

    Args:
        f: a pytree of arrays with one leading axis -> another one.
        rows: the pytree.
        size: rows at a time, >= 1.
    """
    n = _length(rows)
    if n <= size:
        return f(rows)
    some = jax.checkpoint(lambda first: f(_slice(rows, first, size=size)))

    def chunk(number: Array, out: Any) -> Any:
        first = jnp.minimum(number * size, n - size)
        return _put(out, some(first), first)

    return jax.lax.fori_loop(0, -(-n // size), chunk, _empty(n, some))


def each_by_chunks(f: Callable[[Any], Any], then: Callable[[Any], Any], parts: Sequence[Any], size: int) -> list[Any]:
    """[then(f(rows)) for rows in parts], where both work row by row, in one loop over chunks of all the parts.

    f is compiled for each part's shape, `then` once: for one that compiles slowly and whose input is large, as a solve
    and its matrices are. What f gives is never there for more than `size` rows: of an exact sweep of ALS (20M ratings,
    d = 64) 2.2 GB on one device and then 60 MB; a quarter of the time went to the kernel, for the pages of those.

    Parts of few rows are taken together, up to `size`. The derivative computes f again, chunk by chunk: a switch would
    keep what every part's needs for each chunk of any.

    Args:
        f: of a part's rows, a pytree of arrays with one leading axis -> another one, of one shape but for that axis.
        then: of f's results -> what is wanted.
        parts: pytrees.
        size: rows at a time, >= 1.
    """
    if not parts:
        return []
    groups: list[list[Any]] = []
    for part in parts:
        if not groups or sum(map(_length, (*groups[-1], part))) > size:
            groups.append([])
        groups[-1].append(part)
    lengths = [sum(map(_length, group)) for group in groups]
    together = lambda results: jax.tree.map(lambda *each: jnp.concatenate(each), *results)
    if len(groups) == 1 and lengths[0] <= size:
        return _split(then(together(map(f, parts))), parts)

    def some(group: list[Any], length: int, first: Array) -> Any:
        if length > size:
            return f(_slice(group[0], first, size=size))  # one part alone
        found = together(map(f, group))  # its last row again, up to the size: zeros might be solved for NaN
        return jax.tree.map(lambda a: jnp.pad(a, [(0, size - length), *[(0, 0)] * (a.ndim - 1)], mode="edge"), found)

    # of each chunk: its group, its first row there, its first row of all
    ends = np.cumsum([max(length, size) for length in lengths])
    chunks = [
        (number, first, ends[number] - max(length, size) + first)
        for number, length in enumerate(lengths)
        for first in (min(first, max(0, length - size)) for first in range(0, length, size))
    ]
    which, firsts, places = (jnp.asarray(np.array(each, np.int32)) for each in zip(*chunks, strict=True))
    branches = [partial(some, group, length) for group, length in zip(groups, lengths, strict=True)]
    solve = jax.checkpoint(lambda k: then(jax.lax.switch(which[k], branches, firsts[k])))
    loop = lambda k, out: _put(out, solve(k), places[k])
    out = jax.lax.fori_loop(0, len(chunks), loop, _empty(int(ends[-1]), solve))
    of_groups = [
        jax.tree.map(lambda a, end=end, length=length: a[end - max(length, size) :][:length], out)
        for end, length in zip(ends.tolist(), lengths, strict=True)
    ]
    return [each for found, group in zip(of_groups, groups, strict=True) for each in _split(found, group)]


def _length(rows: Any) -> int:
    return len(jax.tree.leaves(rows)[0])


def _slice(rows: Any, first: Array, *, size: int) -> Any:
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, size), rows)


def _put(out: Any, part: Any, first: Array) -> Any:
    return jax.tree.map(lambda out, part: jax.lax.dynamic_update_slice_in_dim(out, part, first, 0), out, part)


def _empty(n: int, f: Callable[[Any], Any]) -> Any:
    """Zeros of n rows, like those of f(a number)."""
    return jax.tree.map(lambda a: jnp.zeros((n, *a.shape[1:]), a.dtype), jax.eval_shape(f, jnp.int32(0)))


def _split(rows: Any, like: Sequence[Any]) -> list[Any]:
    """The rows of each."""
    ends = np.cumsum([_length(each) for each in like])
    return [jax.tree.map(lambda a, b=b, e=e: a[b:e], rows) for b, e in zip([0, *ends[:-1]], ends, strict=True)]
