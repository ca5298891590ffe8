"""Training steps with any Optax optimizer, and scans of many steps as one pure function."""

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
from jaxtyping import PRNGKeyArray

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.pytree import register_dataclass
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
]

# cost(params, batch) or cost(params, batch, key=key) -> a scalar, or a Total whose mean is minimized
Cost = Callable[..., Any]


@register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Training state: the parameters, the optimizer's state, and the number of steps taken."""

    params: Any
    optimizer: Any
    step: Array


class Epochs(NamedTuple):
    """Result of `epochs`.

    Attributes:
        state: the state after the last step.
        cost: [epochs], the cost of each epoch: the sum over its steps of the cost before each step.
    """

    state: TrainState
    cost: Total


class Descent(NamedTuple):
    """Result of `descend`.

    Attributes:
        params: the parameters after the last step.
        losses: [steps], the cost before each step; its mean if the cost is a Total.
    """

    params: Any
    losses: Array


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Initial training state. Converts weakly typed leaves to strong types; otherwise the second step would retrace."""
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.asarray(p).dtype), params)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_step(cost: Cost, optimizer: optax.GradientTransformation) -> Callable[..., tuple[TrainState, Total]]:
    """Returns a pure step function, step(state, batch, *, key) -> (state, cost), to be jitted, scanned or vmapped.

    The cost is returned as a Total, with count 0 if it was a scalar. The per-step key is fold_in(key, state.step); it
    is passed on if the cost takes a `key`. All parameters are updated simultaneously, by gradients taken at the same
    point, as in the notes.
    """
    total, update = as_total(cost), moved_by(optimizer)

    def step(state: TrainState, batch: Any, *, key: PRNGKeyArray) -> tuple[TrainState, Total]:
        key = jax.random.fold_in(key, state.step)
        (value, info), gradient = jax.value_and_grad(total, has_aux=True)(state.params, batch, key=key)
        # Line searches (optax.lbfgs) and plateau schedules need these; other optimizers ignore them.
        extra = {"value": value, "grad": gradient, "value_fn": lambda params: total(params, batch, key=key)[0]}
        params, optimizer_state = update(gradient, state.optimizer, state.params, **extra)
        return TrainState(params, optimizer_state, state.step + 1), info

    return step


def as_total(cost: Cost) -> Callable[..., tuple[Array, Total]]:
    """Wraps a cost as f(*args, key=) -> (the scalar to minimize, the cost as a Total)."""
    takes_key = "key" in inspect.signature(cost).parameters

    def total(*args: Any, key: PRNGKeyArray) -> tuple[Array, Total]:
        value = cost(*args, key=key) if takes_key else cost(*args)
        if isinstance(value, Total):
            return value.mean(), value
        return value, Total(value, jnp.zeros_like(value))  # count 0 marks a term of a sum, not of a mean

    return total


def moved_by(optimizer: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    """Returns f(gradient, optimizer's state, params, **extra) -> (params, state), which applies one update."""
    optimizer = optax.with_extra_args_support(optimizer)

    def update(gradient: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # Adam computes float ** int32
            updates, state = optimizer.update(gradient, state, params, **extra)
            return optax.apply_updates(params, updates), state

    return update


def check_ids(params: Any, batch: Any) -> None:
    """Checks that the ids of an `Observed` batch are rows of `Factors`; inside a step they are traced and not checked.

    Raises:
        ValueError: an id out of range.
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
    """Runs complete epochs on the device: a scan of steps over minibatches, reshuffled each epoch; a pure function.

    Nothing is transferred to the host between steps, so small batches do not wait for it. Each epoch uses every row of
    the data in exactly one batch; the last batch is padded with rows whose `where` [n, ...] is False.

    Args:
        step: a step function of `training.make_step` or `training.lazy.make_step`.
        state: the initial state, or the state of an earlier call to continue from it (then fold `key` yourself).
        data: columns, a pytree of arrays [n, ...], such as `data.observed(ratings, counts=True)`.
        batch_size: rows per step; static.
        key: random key of the shuffling and of the steps.
        epochs: the number of epochs; static.

    Raises:
        ValueError: columns of different lengths; epochs < 1; batch_size out of range, or not a divisor of n if the
            data have no `where` to mask the padding of the last batch.
    """
    check.random_key(key)
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"data: expected columns [n, ...] of one length, got lengths {sorted(lengths)}.")
    ((n,),) = lengths
    check_ids(getattr(state, "params", None), data)
    check.whole_number("epochs", epochs, least=1)
    if check.whole_number("batch_size", batch_size) < 1 or batch_size > n:
        raise ValueError(f"batch_size: expected between 1 and the data's {n} rows, got {batch_size}.")
    if n % batch_size and not hasattr(data, "where"):
        raise ValueError(
            f"batch_size: expected a divisor of n, because the data have no `where` to mask padding, got {batch_size}, "
            f"which does not divide the {n} rows."
        )
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
    n_padding = -n % batch_size
    key_order, key_step = jax.random.split(key)

    def run_epoch(state: TrainState, epoch: Array) -> tuple[TrainState, Total]:
        order = jax.random.permutation(jax.random.fold_in(key_order, epoch), n)
        order = jnp.pad(order, (0, n_padding)).reshape(-1, batch_size)
        valid = (jnp.arange(n + n_padding) < n).reshape(-1, batch_size)

        def run_step(state: TrainState, rows: tuple[Array, Array]) -> tuple[TrainState, Total]:
            batch = jax.tree.map(lambda column: gather(column, rows[0]), data)
            if n_padding:
                row_valid = rows[1].reshape(-1, *[1] * (batch.where.ndim - 1))
                batch = dataclasses.replace(batch, where=batch.where & row_valid)
            return step(state, batch, key=key_step)

        state, costs = jax.lax.scan(run_step, state, (order, valid))
        return state, jax.tree.map(lambda cost: jnp.sum(cost, axis=0), costs)

    return jax.lax.scan(run_epoch, state, jnp.arange(epochs))


_epochs_jit = jax.jit(_epochs, static_argnames=("step", "batch_size", "epochs"))


def descend(
    cost: Cost, params: Any, batches: Any, *, optimizer: optax.GradientTransformation, key: PRNGKeyArray, steps: int
) -> Descent:
    """Trains as one pure function, a scan of `make_step`, which can be vmapped, differentiated or used in a grid.

    The parameters equal those of `fit` with the same list of batches, which are used in turn. There is no validation
    and no progress bar, and a loss that is not finite is returned instead of raising an error.

    Args:
        cost: as in `fit`.
        params: as in `fit`.
        batches: one pytree of all batches, stacked along a leading axis [n_batches]; one full batch has length 1.
        optimizer: from Optax; its learning rate may be traced: optax.adam(member["rate"]).
        key: as in `fit`.
        steps: the number of steps; static.

    Raises:
        ValueError: steps < 1; batches without a common leading axis.
    """
    check.random_key(key)
    check.whole_number("steps", steps, least=1)
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
