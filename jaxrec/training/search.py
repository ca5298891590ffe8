"""Grid search over hyper-parameters: complete training runs, compiled once."""

import itertools
import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from jaxrec import check
from jaxrec.checkpoints import Checkpoint, checkpointed

__all__ = ["grid", "grid_points"]

logger = logging.getLogger("jaxrec")


def grid_points(**choices: Iterable[Any]) -> dict[str, Array]:
    """Every combination of the choices, as members of a grid: name -> [n], the last name varying fastest.

    >>> grid_points(l2=(1.0, 3.0), seed=(0, 1))
    {'l2': Array([1., 1., 3., 3.], dtype=float32), 'seed': Array([0, 1, 0, 1], dtype=int32)}

    Raises:
        ValueError: no choices, a choice without values, or values that are not numbers (or do not fit 32 bits).
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
        raise ValueError(f"{name}: expected at least one value, got none: there would be no combinations.")
    return values


def grid(
    run: Callable[..., Any],
    members: Any,
    *data: Any,
    batch_size: int = 1,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Any:
    """Computes run(member, *data) for every member of a hyper-parameter grid, with one compilation; stacks the results.

    `run` is a pure function of the complete training: it initializes parameters from a seed, trains by `descend` or a
    scan of `solvers.sweep`, and returns a validation error or the parameters. Anything that can be traced can differ
    between members: l2, learning rate, initial scale, seed, and the fold that a mask leaves out.

    With batch_size=1 the members run sequentially, and each result is bit for bit that of the member run alone. With
    batch_size > 1 they are vmapped, and results agree up to rounding. Which is faster depends on the problem: on 2 CPU
    cores (experiments.grid_search prints both for its cases) sequential runs are, except for ALS of small rank; on an
    accelerator that small problems leave idle, try the full grid as one batch.

    Args:
        run: run(member, *data) -> a pytree of arrays. Pass data as `data`: arrays closed over become constants.
        members: a pytree of arrays with one leading axis, such as `grid_points` makes.
        data: passed to every run.
        batch_size: members vmapped at once; all of them must fit in memory together.
        checkpoint: a folder, or a `Checkpoint`, where the results are saved after some members. The same call continues
            from there after the process was killed; on a CPU with the same bits as without the interruption. Other
            members, data or batch_size are refused; `run` cannot be compared.
        progress: show a bar.

    Returns:
        The results of `run`, stacked along a leading axis of members. A member that diverged has NaN in its entry,
        which a warning names, and does not affect the others; choose by `numpy.nanargmin`.

    Raises:
        ValueError: members of different lengths, no members, or NaN among them; batch_size < 1; a
            checkpoint of another run.

    >>> square = lambda member: member["a"] ** 2
    >>> grid(square, grid_points(a=(1.0, 2.0, 3.0)), progress=False)
    Array([1., 4., 9.], dtype=float32)
    """
    members = jax.tree.map(partial(check.as_array, "members"), members)
    lengths = {len(leaf) if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(members)}
    if len(lengths) != 1 or (n := lengths.pop()) == 0:
        raise ValueError(f"members: expected arrays of one length > 0, got lengths {sorted(lengths) or [0]}.")
    if check.whole_number("batch_size", batch_size) < 1:
        raise ValueError(f"batch_size: expected a number of members >= 1, got {batch_size}.")
    for path, leaf in jax.tree_util.tree_flatten_with_path(members)[0]:
        if (
            jnp.issubdtype(leaf.dtype, jnp.inexact)
            and (wrong := np.isnan(np.asarray(leaf)).reshape(n, -1).any(1)).any()
        ):
            raise ValueError(
                f"members{jax.tree_util.keystr(path)}: expected numbers, got NaN in member {wrong.argmax()}."
            )
    batch_size = min(batch_size, n)
    settings = {"run": "grid", "members": members, "data": data, "batch_size": batch_size}
    member = _pick(members, 0)
    shapes = jax.eval_shape(partial(_run, run=run), member, data)
    results = jax.tree.map(lambda leaf: np.zeros((n, *leaf.shape), leaf.dtype), shapes)
    with (
        checkpointed(checkpoint, settings=settings, like=results) as saver,
        tqdm(total=n, desc="grid", unit="member", disable=not progress) as bar,
    ):
        done = 0
        if saver.saved is not None:
            done, results = saver.saved.step, saver.saved.state
            bar.update(done)
        for first in range(done, n, batch_size):
            # The last batch is padded with the last member: one shape, one compilation.
            batch = np.minimum(np.arange(first, first + batch_size), n - 1)
            if batch_size == 1:
                result = _run(_pick(members, first), data, run=run)
                result = jax.tree.map(lambda leaf: leaf[None], result)
            else:
                result = _run_many(_pick(members, batch), data, run=run)
            done = min(first + batch_size, n)
            for rows, new in zip(jax.tree.leaves(results), jax.tree.leaves(result), strict=True):
                rows[first:done] = np.asarray(new)[: done - first]  # blocks until computed: the bar is accurate
            bar.update(done - first)
            if done == n or saver.due(done):
                saver.save(done, results, {})
    stacked = jax.tree.map(jnp.asarray, results)
    _warn_of_nan(stacked, members, n)
    return stacked


def _pick(members: Any, index: Any) -> Any:
    """Indexes members on the host (except random keys): on the device every such operation compiles for 0.3 s."""
    on_host = lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)
    return jax.tree.map(lambda leaf: on_host(jnp.asarray(leaf))[index], members)


@partial(jax.jit, static_argnames="run")
def _run(member: Any, data: Any, *, run: Callable[..., Any]) -> Any:
    return run(member, *data)


@partial(jax.jit, static_argnames="run")
def _run_many(members: Any, data: Any, *, run: Callable[..., Any]) -> Any:
    return jax.vmap(lambda member: run(member, *data))(members)


def _warn_of_nan(stacked: Any, members: Any, n: int) -> None:
    nonfinite = np.zeros(n, bool)
    for leaf in jax.tree.leaves(stacked):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            nonfinite |= ~np.isfinite(np.asarray(leaf)).reshape(n, -1).all(axis=1)
    for k in np.flatnonzero(nonfinite):
        member = jax.tree.map(lambda leaf, k=k: leaf[k].item() if leaf[k].ndim == 0 else leaf[k], members)
        logger.warning("grid: member %d of %d, %s, has results that are not finite", k, n, member)
