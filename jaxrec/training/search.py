"""A grid of hyper-parameters: whole trainings side by side, compiled once."""

import itertools
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from jaxrec import check
from jaxrec.training.step import whole_number

__all__ = ["grid", "grid_points"]

logger = logging.getLogger("jaxrec")


def grid_points(**choices: Iterable[Any]) -> dict[str, Array]:
    """Every combination of the choices as a grid's members: name -> [n], the last name fastest.

    >>> grid_points(l2=(1.0, 3.0), seed=(0, 1))
    {'l2': Array([1., 1., 3., 3.], dtype=float32), 'seed': Array([0, 1, 0, 1], dtype=int32)}

    Raises:
        ValueError: no choices, one without values, or values that are no numbers (or do not fit 32 bits).
    """
    if not choices:
        raise ValueError("choices: expected at least one name with its values, such as l2=(1.0, 3.0), got none.")
    values = {name: _values(name, choice) for name, choice in choices.items()}
    columns = zip(*itertools.product(*values.values()), strict=True)
    return {name: check.as_array(name, np.array(column)) for name, column in zip(values, columns, strict=True)}


def _values(name: str, choice: Iterable[Any]) -> list[Any]:
    if isinstance(choice, str) or not isinstance(choice, Iterable):
        raise ValueError(f"{name}: expected a list of numbers, got {choice!r}.")
    values = list(choice)
    if any(np.ndim(value) for value in values):
        raise ValueError(f"{name}: expected a list of numbers, got {values!r}.")
    if not values:
        raise ValueError(f"{name}: expected at least one value: without any there is no combination.")
    return values


def grid(run: Callable[..., Any], members: Any, *data: Any, batch_size: int = 1, progress: bool = True) -> Any:
    """run(member, *data) for every member of a grid of hyper-parameters: one compilation, results stacked.

    `run` is pure and does the whole training: builds parameters from a seed, trains by `descend` or a scan of
    `solvers.als.sweep`, and returns what is wanted, a validation error or the parameters. Whatever is traced can
    differ between members: l2, learning rate, initial scale, seed, and the fold that a mask leaves out.

    One after the other (batch_size=1) each result is, bit for bit, what its run alone gives. vmapped (batch_size > 1)
    it is that up to rounding. Which is faster depends: on 2 CPU cores (experiments.grid_search prints both for its
    cases) sequential is, except for ALS of small rank; on an accelerator that small problems leave idle, try the whole
    grid at once.

    Args:
        run: run(member, *data) -> a pytree of arrays. Hand data over as `data`: what is closed over becomes constants.
        members: a pytree of arrays with one leading axis, such as `grid_points` makes.
        data: passed on, the same for all.
        batch_size: how many members are vmapped; the memory is theirs together.
        progress: show a bar.

    Returns:
        What `run` returns, with the members' axis in front. A member that diverged has its NaN there: it is named in a
        warning, and leaves the others as they are; choose by `numpy.nanargmin`.

    Raises:
        ValueError: members of different lengths, or none, or NaN among them; batch_size < 1.

    >>> square = lambda member: member["a"] ** 2
    >>> grid(square, grid_points(a=(1.0, 2.0, 3.0)), progress=False)
    Array([1., 4., 9.], dtype=float32)
    """
    members = jax.tree.map(partial(check.as_array, "members"), members)
    lengths = {len(leaf) if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(members)}
    if len(lengths) != 1 or (n := lengths.pop()) == 0:
        raise ValueError(f"members: expected arrays of one length > 0, got lengths {sorted(lengths) or [0]}.")
    if whole_number("batch_size", batch_size) < 1:
        raise ValueError(f"batch_size: expected a number of members >= 1, got {batch_size}.")
    for position, leaf in jax.tree_util.tree_flatten_with_path(members)[0]:
        if (
            jnp.issubdtype(leaf.dtype, jnp.inexact)
            and (wrong := np.isnan(np.asarray(leaf)).reshape(n, -1).any(1)).any()
        ):
            raise ValueError(
                f"members{jax.tree_util.keystr(position)}: expected numbers, got NaN in member {wrong.argmax()}."
            )
    batch_size = min(batch_size, n)
    results = []
    with tqdm(total=n, desc="grid", unit="member", disable=not progress) as bar:
        for first in range(0, n, batch_size):
            # The last part is filled up with its last member: one shape, one compilation.
            part = np.minimum(np.arange(first, first + batch_size), n - 1)
            if batch_size == 1:
                one = _run(_pick(members, first), data, run=run)
                result = jax.tree.map(lambda leaf: leaf[None], one)
            else:
                result = _run_many(_pick(members, part), data, run=run)
            results.append(jax.tree.map(np.asarray, result))  # waits, so that the bar tells the truth
            bar.update(min(batch_size, n - first))
    stacked = jax.tree.map(lambda *parts: jnp.asarray(np.concatenate(parts)[:n]), *results)
    _warn_of_nan(stacked, members, n)
    return stacked


def _pick(members: Any, which: Any) -> Any:
    """On the host (keys apart), for on the device every operation of an index is a small program to compile: .3 s."""
    on_host = lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)
    return jax.tree.map(lambda leaf: on_host(jnp.asarray(leaf))[which], members)


@partial(jax.jit, static_argnames="run")
def _run(member: Any, data: Any, *, run: Callable[..., Any]) -> Any:
    return run(member, *data)


@partial(jax.jit, static_argnames="run")
def _run_many(members: Any, data: Any, *, run: Callable[..., Any]) -> Any:
    return jax.vmap(lambda member: run(member, *data))(members)


def _warn_of_nan(stacked: Any, members: Any, n: int) -> None:
    bad = np.zeros(n, bool)
    for leaf in jax.tree.leaves(stacked):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            bad |= ~np.isfinite(np.asarray(leaf)).reshape(n, -1).all(axis=1)
    for k in np.flatnonzero(bad):
        member = jax.tree.map(lambda leaf, k=k: leaf[k].item() if leaf[k].ndim == 0 else leaf[k], members)
        logger.warning("grid: member %d of %d, %s, has results that are not finite", k, n, member)
