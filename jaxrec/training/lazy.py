"""Embedding tables of millions of rows: a minibatch reads and writes the rows it names, and no others.

Every row has an optimizer of its own, which sees the steps in which the row stands in the batch and no others: its
moments and its step count rest in between. So a row's path is that of plain Adam on the batches that name it. (Dense
Adam goes on moving a row by its old momentum in every later step, and reads and writes the whole table for it;
TensorFlow's LazyAdam corrects the bias of a first step by the number of everybody's.) A row named several times in
a batch is moved once, by the sum of its gradients. A schedule counts the row's own steps; what an optimizer computes
across parameters, such as a global norm, it computes across one row.

>>> import jax, jax.numpy as jnp, optax
>>> cost = lambda params, rows, batch: jnp.sum((rows["word"] - params) ** 2)
>>> names = lambda batch: {"word": (batch, batch >= 0)}  # -1 is padding
>>> step = make_step(cost, optax.sgd(0.1), names)
>>> state = init_state(jnp.zeros(()), {"word": jnp.ones((1_000, 2))}, optax.sgd(0.1))
>>> state, _ = jax.jit(step)(state, jnp.array([3, 7, 3, -1]), key=jax.random.key(0))
>>> _, tables = state.params
>>> [round(float(tables["word"][row, 0]), 1) for row in (3, 7, 8)]  # 3 stood twice
[0.6, 0.8, 1.0]
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxrec import check
from jaxrec.training.step import Cost, TrainState, as_total, moved_by
from jaxrec.types import Total

__all__ = ["init_state", "make_step"]

# rows(batch) -> name of a table -> (ids [m], where [m])
Rows = Callable[[Any], Mapping[str, tuple[Array, Array]]]


def init_state(
    params: Any,
    tables: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    row_optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
    """The state before the first step; its `params` are the pair (params, tables).

    Args:
        params: a pytree of what every step moves, such as the towers.
        tables: name -> a pytree of arrays with one leading axis, the rows: {"user": {"w": w, "b": b}, "item": ...}.
        optimizer: for params.
        row_optimizer: for each row of the tables; None: the same.

    Raises:
        ValueError: a table whose arrays have no rows, or different numbers of them.
    """
    for name, table in tables.items():
        if len({leaf.shape[:1] for leaf in jax.tree.leaves(table)} | {()}) != 2:
            shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(table)]
            raise ValueError(f"table {name}: expected arrays with one leading axis, the rows, got shapes {shapes}.")
    strong = lambda tree: jax.tree.map(lambda p: jnp.asarray(p, jnp.asarray(p).dtype), tree)
    params, tables = strong(params), strong(dict(tables))
    row_init = jax.vmap((row_optimizer or optimizer).init)
    table_states = {name: row_init(table) for name, table in tables.items()}
    return TrainState((params, tables), (optimizer.init(params), table_states), jnp.zeros((), jnp.int32))


def make_step(
    cost: Cost,
    optimizer: optax.GradientTransformation,
    rows: Rows,
    *,
    row_optimizer: optax.GradientTransformation | None = None,
) -> Callable[..., tuple[TrainState, Total]]:
    """step(state, batch, *, key) -> (state, cost), like `training.make_step`, for params and tables.

    Jit it with donate_argnums=0, or scan it (`training.epochs`): a state that is kept must be copied, tables and all.

    Args:
        cost: cost(params, looked_up, batch) -> a scalar or a Total, with `key=` where it is random; looked_up is
            name -> the named rows, leaves [m, ...] in the batch's order. A row's penalty belongs in it, divided by how
            often the row is named in an epoch (`Observed.user_count`).
        optimizer: as in `init_state`.
        rows: rows(batch) -> name -> (ids [m], where [m]): the rows that the batch needs of each table. Ids are
            trusted under jit, and checked in a step that is not; where `where` is False the rows looked up are those
            of some id, and are not moved.
        row_optimizer: as in `init_state`.

    Raises:
        ValueError: (the step) a state that is not of `init_state`; rows of a table that is not there; ids and where
            that are no columns of one length; ids out of range.
    """
    total, move, move_rows = as_total(cost), moved_by(optimizer), jax.vmap(moved_by(row_optimizer or optimizer))

    def step(state: TrainState, batch: Any, *, key: Array) -> tuple[TrainState, Total]:
        key = jax.random.fold_in(key, state.step)
        if not (isinstance(state.params, tuple) and len(state.params) == 2 and isinstance(state.params[1], Mapping)):
            raise ValueError("state: expected that of training.lazy.init_state, whose params are (params, tables).")
        (params, tables), (optimizer_state, table_states) = state.params, state.optimizer
        named = {name: _unique(*_checked(name, pair, tables)) for name, pair in rows(batch).items()}
        # `clip`: an absent row (n_rows) reads the last one, and is dropped on the way back
        take = lambda tree, ids: jax.tree.map(lambda leaf: leaf.at[ids].get(mode="clip"), tree)
        put = lambda tree, ids, new: jax.tree.map(lambda leaf, n: leaf.at[ids].set(n, mode="drop"), tree, new)
        here = {name: take(tables[name], ids) for name, (ids, _) in named.items()}

        def of_these(both: tuple[Any, Any]) -> tuple[Array, Total]:
            params, here = both
            looked_up = {name: take(here[name], position) for name, (_, position) in named.items()}
            return total(params, looked_up, batch, key=key)

        (_, info), (gradient, of_here) = jax.value_and_grad(of_these, has_aux=True)((params, here))
        params, optimizer_state = move(gradient, optimizer_state, params)
        for name, (ids, _) in named.items():
            new, new_state = move_rows(of_here[name], take(table_states[name], ids), here[name])
            tables = tables | {name: put(tables[name], ids, new)}
            table_states = table_states | {name: put(table_states[name], ids, new_state)}
        return TrainState((params, tables), (optimizer_state, table_states), state.step + 1), info

    return step


def _rows_of(table: Any) -> int:
    return len(jax.tree.leaves(table)[0])


def _checked(name: str, pair: tuple[Array, Array], tables: Mapping[str, Any]) -> tuple[Array, Array, int]:
    """(ids, where, the table's rows), having checked what can be seen."""
    if name not in tables:
        raise ValueError(f"rows: no table {name!r}; the state has {', '.join(map(repr, tables)) or 'none'}.")
    ids, where = pair
    if np.ndim(ids) != 1 or np.shape(ids) != np.shape(where):
        raise ValueError(
            f"rows: of table {name}, expected ids [m] and where [m], got shapes {np.shape(ids)} and {np.shape(where)}."
        )
    if jnp.result_type(where) != jnp.bool_ or not jnp.issubdtype(jnp.result_type(ids), jnp.integer):
        raise ValueError(
            f"rows: of table {name}, expected whole numbers as ids and bools as where, got {jnp.result_type(ids)} and "
            f"{jnp.result_type(where)}."
        )
    n_rows = _rows_of(tables[name])
    return check.row_ids(f"rows of table {name}", ids, size=n_rows, where=where), where, n_rows


def _unique(ids: Array, where: Array, n_rows: int) -> tuple[Array, Array]:
    """(the different ids, filled up with n_rows to [m]; the place of each id among them)."""
    ids = jnp.where(where, ids, n_rows)
    return jnp.unique(ids, size=len(ids), fill_value=n_rows, return_inverse=True)
