"""Lazy row-wise optimizers for embedding tables of millions of rows: a step reads and writes only the batch's rows.

Every row has its own optimizer state, which is updated only in steps whose batch names the row; in between, its moments
and its step count do not change. A row's trajectory is therefore that of plain Adam on the batches that name it. (Dense
Adam keeps moving a row by its old momentum in every later step, and reads and writes the full table to do so;
TensorFlow's LazyAdam corrects the bias of a row's first step with the global step count.) A row that is named several
times in a batch is updated once, by the sum of its gradients. A schedule counts the row's own steps, and what an
optimizer computes across parameters, such as a global norm, is computed across one row.

>>> import jax, jax.numpy as jnp, optax
>>> cost = lambda params, rows, batch: jnp.sum((rows["word"] - params) ** 2)
>>> names = lambda batch: {"word": (batch, batch >= 0)}  # -1 is padding
>>> step = make_step(cost, optax.sgd(0.1), names)
>>> state = init_state(jnp.zeros(()), {"word": jnp.ones((1_000, 2))}, optax.sgd(0.1))
>>> state, _ = jax.jit(step)(state, jnp.array([3, 7, 3, -1]), key=jax.random.key(0))
>>> _, tables = state.params
>>> [round(float(tables["word"][row, 0]), 1) for row in (3, 7, 8)]  # row 3 is named twice
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
NamedRows = Callable[[Any], Mapping[str, tuple[Array, Array]]]


def init_state(
    params: Any,
    tables: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    row_optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
    """Initial training state, whose `params` are the pair (params, tables).

    Args:
        params: a pytree of the parameters that every step updates, such as the towers.
        tables: name -> a pytree of arrays whose leading axis is the rows: {"user": {"w": w, "b": b}, "item": ...}.
        optimizer: the optimizer of `params`.
        row_optimizer: the optimizer of each row of the tables; None uses `optimizer`.

    Raises:
        ValueError: a table whose arrays have no rows, or different numbers of rows.
    """
    for name, table in tables.items():
        if len({leaf.shape[:1] for leaf in jax.tree.leaves(table)} | {()}) != 2:
            shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(table)]
            raise ValueError(f"table {name}: expected arrays with one leading axis (the rows), got shapes {shapes}.")
    to_strong_types = lambda tree: jax.tree.map(lambda p: jnp.asarray(p, jnp.asarray(p).dtype), tree)
    params, tables = to_strong_types(params), to_strong_types(dict(tables))
    row_init = jax.vmap((row_optimizer or optimizer).init)
    table_states = {name: row_init(table) for name, table in tables.items()}
    return TrainState((params, tables), (optimizer.init(params), table_states), jnp.zeros((), jnp.int32))


def make_step(
    cost: Cost,
    optimizer: optax.GradientTransformation,
    rows: NamedRows,
    *,
    row_optimizer: optax.GradientTransformation | None = None,
) -> Callable[..., tuple[TrainState, Total]]:
    """Returns step(state, batch, *, key) -> (state, cost), like `training.make_step`, for params and tables.

    Jit the step with donate_argnums=0 or scan it (`training.epochs`): without donation every step copies the state,
    including the tables.

    Args:
        cost: cost(params, looked_up, batch) -> a scalar or a Total, with `key=` if it is random; looked_up is
            name -> the named rows, leaves [m, ...] in the batch's order. Include a row's penalty in the cost, divided
            by how often the row is named in an epoch (`Observed.user_count`).
        optimizer: as in `init_state`.
        rows: rows(batch) -> name -> (ids [m], where [m]): the rows of each table that the batch needs. Ids are checked
            only outside jit; where `where` is False, the row looked up is arbitrary and is not updated.
        row_optimizer: as in `init_state`.

    Raises:
        ValueError: (raised by the step) a state that does not come from `init_state`; an unknown table; ids and where
            that are not columns of one length; ids out of range.
    """
    total, update, update_rows = as_total(cost), moved_by(optimizer), jax.vmap(moved_by(row_optimizer or optimizer))

    def step(state: TrainState, batch: Any, *, key: Array) -> tuple[TrainState, Total]:
        key = jax.random.fold_in(key, state.step)
        if not (isinstance(state.params, tuple) and len(state.params) == 2 and isinstance(state.params[1], Mapping)):
            raise ValueError("state: expected one made by training.lazy.init_state, whose params are (params, tables).")
        (params, tables), (optimizer_state, table_states) = state.params, state.optimizer
        lookups = {name: _unique(*_check_lookup(name, pair, tables)) for name, pair in rows(batch).items()}
        # Padding ids are n_rows: `clip` makes them read the last row, and `drop` does not write them.
        take = lambda tree, ids: jax.tree.map(lambda leaf: leaf.at[ids].get(mode="clip"), tree)
        put = lambda tree, ids, new: jax.tree.map(lambda leaf, n: leaf.at[ids].set(n, mode="drop"), tree, new)
        unique_rows = {name: take(tables[name], ids) for name, (ids, _) in lookups.items()}

        def batch_cost(variables: tuple[Any, Any]) -> tuple[Array, Total]:
            params, unique_rows = variables
            looked_up = {name: take(unique_rows[name], position) for name, (_, position) in lookups.items()}
            return total(params, looked_up, batch, key=key)

        (_, info), (gradient, row_gradients) = jax.value_and_grad(batch_cost, has_aux=True)((params, unique_rows))
        params, optimizer_state = update(gradient, optimizer_state, params)
        for name, (ids, _) in lookups.items():
            new_rows, new_state = update_rows(row_gradients[name], take(table_states[name], ids), unique_rows[name])
            tables = tables | {name: put(tables[name], ids, new_rows)}
            table_states = table_states | {name: put(table_states[name], ids, new_state)}
        return TrainState((params, tables), (optimizer_state, table_states), state.step + 1), info

    return step


def _n_rows(table: Any) -> int:
    return len(jax.tree.leaves(table)[0])


def _check_lookup(name: str, pair: tuple[Array, Array], tables: Mapping[str, Any]) -> tuple[Array, Array, int]:
    """Returns (ids, where, number of rows of the table), after checking shapes, types and concrete ids."""
    if name not in tables:
        raise ValueError(
            f"rows: expected a table of the state ({', '.join(map(repr, tables)) or 'none'}), got {name!r}."
        )
    ids, where = pair
    if np.ndim(ids) != 1 or np.shape(ids) != np.shape(where):
        raise ValueError(
            f"rows: for table {name}, expected ids [m] and where [m], got shapes {np.shape(ids)} and {np.shape(where)}."
        )
    if jnp.result_type(where) != jnp.bool_ or not jnp.issubdtype(jnp.result_type(ids), jnp.integer):
        raise ValueError(
            f"rows: for table {name}, expected integer ids and boolean where, got {jnp.result_type(ids)} and "
            f"{jnp.result_type(where)}."
        )
    n_rows = _n_rows(tables[name])
    return check.row_ids(f"rows of table {name}", ids, size=n_rows, where=where), where, n_rows


def _unique(ids: Array, where: Array, n_rows: int) -> tuple[Array, Array]:
    """Returns (the unique ids, padded with n_rows to [m]; the position of each id among them)."""
    ids = jnp.where(where, ids, n_rows)
    return jnp.unique(ids, size=len(ids), fill_value=n_rows, return_inverse=True)
