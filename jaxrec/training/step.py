"""One step of gradient descent by any Optax optimizer, and many of them as one pure function."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.tree_util import register_dataclass
from jaxtyping import PRNGKeyArray

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.types import Factors, Observed, Total

__all__ = [
    "Cost",
    "Descent",
    "Epochs",
    "TrainState",
    "as_total",
    "check_ids",
    "descend",
    "epochs",
    "init_state",
    "make_step",
    "moved_by",
    "whole_number",
]

# cost(params, batch) or cost(params, batch, key=key) -> a scalar, or a Total whose mean is minimized
Cost = Callable[..., Any]


@register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What the next step needs: parameters, the optimizer's state, and the number of steps taken."""

    params: Any
    optimizer: Any
    step: Array


class Epochs(NamedTuple):
    """What `epochs` returns.

    Attributes:
        state: the state after the last step.
        cost: [epochs], each epoch's cost, summed over its steps and computed before each of them.
    """

    state: TrainState
    cost: Total


class Descent(NamedTuple):
    """What `descend` returns.

    Attributes:
        params: the parameters after the last step.
        losses: [steps], the cost before each step, the mean where the cost is a Total.
    """

    params: Any
    losses: Array


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; weak types are made strong, or the second step would compile again."""
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.asarray(p).dtype), params)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_step(cost: Cost, optimizer: optax.GradientTransformation) -> Callable[..., tuple[TrainState, Total]]:
    """step(state, batch, *, key) -> (state, cost), pure and bare: to be jitted, scanned or vmapped.

    The cost comes as a Total, of count 0 where it was a scalar.
    The per-step key is fold_in(key, state.step); it is passed on where the cost takes a `key`. All parameters move
    at once, by gradients taken at the same point, as the notes' simultaneous update demands.
    """
    total, move = as_total(cost), moved_by(optimizer)

    def step(state: TrainState, batch: Any, *, key: PRNGKeyArray) -> tuple[TrainState, Total]:
        key = jax.random.fold_in(key, state.step)
        (value, info), gradient = jax.value_and_grad(total, has_aux=True)(state.params, batch, key=key)
        # What line searches (optax.lbfgs) and plateau schedules ask for; all others ignore it.
        extra = {"value": value, "grad": gradient, "value_fn": lambda params: total(params, batch, key=key)[0]}
        params, optimizer_state = move(gradient, state.optimizer, state.params, **extra)
        return TrainState(params, optimizer_state, state.step + 1), info

    return step


def as_total(cost: Cost) -> Callable[..., tuple[Array, Total]]:
    """What is minimized and what is reported: f(*cost's arguments, key=) -> (a scalar, the cost as a Total)."""
    takes_key = "key" in inspect.signature(cost).parameters

    def total(*given: Any, key: PRNGKeyArray) -> tuple[Array, Total]:
        value = cost(*given, key=key) if takes_key else cost(*given)
        if isinstance(value, Total):
            return value.mean(), value
        return value, Total(value, jnp.zeros_like(value))  # count 0: a part of one cost, which adds up

    return total


def moved_by(optimizer: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    """f(gradient, optimizer's state, params, **extra) -> (params, state), one step on."""
    optimizer = optax.with_extra_args_support(optimizer)

    def move(gradient: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction is float ** int32: not strict
            updates, state = optimizer.update(gradient, state, params, **extra)
            return optax.apply_updates(params, updates), state

    return move


def check_ids(params: Any, batch: Any) -> None:
    """Of `Factors` on `Observed`, ids that the tables have: within a step they are traced, and nobody can look.

    Raises:
        ValueError: otherwise.
    """
    if isinstance(params, Factors) and isinstance(batch, Observed):
        check.row_ids("user", batch.user, size=len(params.w))
        check.row_ids("item", batch.item, size=len(params.x))


def epochs(
    step: Callable[..., tuple[TrainState, Total]],
    state: TrainState,
    data: Any,
    *,
    batch_size: int,
    key: PRNGKeyArray,
    epochs: int,
) -> Epochs:
    """Whole epochs on the device: a scan of steps over minibatches, shuffled anew each epoch; pure.

    Nothing goes to the host between steps, so that small batches are not held up by it. Every row of the data stands in
    one batch of each epoch; the last batch is filled up with rows whose `where` [n, ...] is False.

    Args:
        step: `training.make_step`'s or `training.lazy.make_step`'s.
        state: their first, or that of an earlier call: with `key` folded by you, it goes on.
        data: columns, a pytree of arrays [n, ...], such as `data.observed(ratings, counts=True)`.
        batch_size: rows in a step; static.
        key: for the order, and for the steps.
        epochs: how many; static.

    Raises:
        ValueError: columns of different lengths; epochs < 1; batch_size out of range, or not a divisor of n where the
            data have no `where` to close the rows that fill up the last batch.
    """
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"data: expected columns [n, ...] of one length, got lengths {sorted(lengths)}.")
    ((n,),) = lengths
    check_ids(getattr(state, "params", None), data)
    whole_number("epochs", epochs, least=1)
    if whole_number("batch_size", batch_size) < 1 or batch_size > n:
        raise ValueError(f"batch_size: expected between 1 and the data's {n} rows, got {batch_size}.")
    if n % batch_size and not hasattr(data, "where"):
        raise ValueError(f"batch_size: {batch_size} does not divide the {n} rows, and the data have no `where`.")
    run = _epochs if check.traced(state, data, key) else _epochs_jit
    return Epochs(*run(state, data, key, step=step, batch_size=batch_size, epochs=epochs))


def _epochs(
    state: TrainState,
    data: Any,
    key: PRNGKeyArray,
    *,
    step: Callable[..., tuple[TrainState, Total]],
    batch_size: int,
    epochs: int,
) -> tuple[TrainState, Total]:
    n = len(jax.tree.leaves(data)[0])
    fill = -n % batch_size
    key_order, key_step = jax.random.split(key)

    def epoch(state: TrainState, number: Array) -> tuple[TrainState, Total]:
        order = jax.random.permutation(jax.random.fold_in(key_order, number), n)
        order = jnp.pad(order, (0, fill)).reshape(-1, batch_size)
        there = (jnp.arange(n + fill) < n).reshape(-1, batch_size)

        def one(state: TrainState, rows: tuple[Array, Array]) -> tuple[TrainState, Total]:
            batch = jax.tree.map(lambda column: gather(column, rows[0]), data)
            if fill:
                real = rows[1].reshape(-1, *[1] * (batch.where.ndim - 1))
                batch = dataclasses.replace(batch, where=batch.where & real)
            return step(state, batch, key=key_step)

        state, costs = jax.lax.scan(one, state, (order, there))
        return state, jax.tree.map(lambda each: jnp.sum(each, axis=0), costs)

    return jax.lax.scan(epoch, state, jnp.arange(epochs))


_epochs_jit = jax.jit(_epochs, static_argnames=("step", "batch_size", "epochs"))


def descend(
    cost: Cost, params: Any, batches: Any, *, optimizer: optax.GradientTransformation, key: PRNGKeyArray, steps: int
) -> Descent:
    """Training as one pure function, a scan of `make_step`: to be vmapped, differentiated, or put in a grid.

    The parameters are those of `fit` with the same list of batches, which it takes in turn; there is no validation and
    no progress in it, and a loss that is not finite shows in what it returns.

    Args:
        cost: as in `fit`.
        params: as in `fit`.
        batches: one pytree, every batch stacked: leading axis [n_batches]; a full batch has length 1.
        optimizer: from Optax; its learning rate may be traced: optax.adam(member["rate"]).
        key: as in `fit`.
        steps: how many; static.

    Raises:
        ValueError: steps < 1; batches without a common leading axis.
    """
    whole_number("steps", steps, least=1)
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
    if len(lengths) != 1 or not lengths.isdisjoint({(), (0,)}):
        raise ValueError(
            f"batches: expected arrays [n_batches, ...] of one length > 0, got lengths {sorted(lengths)}. One full "
            "batch has a leading axis of 1: jax.tree.map(lambda a: a[None], batch)."
        )
    run = _descend if check.traced(params, batches, key) else _descend_jit
    return Descent(*run(params, batches, key, cost=cost, optimizer=optimizer, steps=steps))


def _descend(
    params: Any, batches: Any, key: PRNGKeyArray, *, cost: Cost, optimizer: optax.GradientTransformation, steps: int
) -> tuple[Any, Array]:
    step = make_step(cost, optimizer)
    n_batches = len(jax.tree.leaves(batches)[0])

    def body(state: TrainState, k: Array) -> tuple[TrainState, Array]:
        batch = jax.tree.map(
            lambda stacked: jax.lax.dynamic_index_in_dim(stacked, k % n_batches, keepdims=False), batches
        )
        state, info = step(state, batch, key=key)
        return state, info.sum / jnp.where(info.count > 0, info.count, 1)

    state, losses = jax.lax.scan(body, init_state(params, optimizer), jnp.arange(steps))
    return state.params, losses


_descend_jit = jax.jit(_descend, static_argnames=("cost", "optimizer", "steps"))


def whole_number(name: str, value: Any, *, least: int | None = None) -> int:
    """Returns a whole number, having checked that it is one, and not less than the least."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or (least is not None and value < least):
        at_least = "" if least is None else f" >= {least}"
        raise ValueError(f"{name}: expected a whole number{at_least}, got {value!r}.")
    return int(value)
