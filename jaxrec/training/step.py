"""One step of gradient descent by any Optax optimizer, and many of them as one pure function."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.tree_util import register_dataclass

from jaxrec.types import Total

__all__ = ["Cost", "State", "descend", "init", "make_step"]

# cost(params, batch) or cost(params, batch, key=key) -> a scalar, or a Total whose mean is minimized
Cost = Callable[..., Any]


@register_dataclass
@dataclass(frozen=True)
class State:
    """What the next step needs: parameters, the optimizer's state, and the number of steps taken."""

    params: Any
    optimizer: Any
    step: Array


def init(params: Any, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step; weak types are made strong, or the second step would compile again."""
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.asarray(p).dtype), params)
    return State(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_step(cost: Cost, optimizer: optax.GradientTransformation) -> Callable[..., tuple[State, Total]]:
    """step(state, batch, *, key) -> (state, cost), pure and bare: to be jitted, scanned or vmapped.

    The cost comes as a Total, of count 0 where it was a scalar.
    The per-step key is fold_in(key, state.step); it is passed on where the cost takes a `key`. All parameters move
    at once, by gradients taken at the same point, as the notes' simultaneous update demands.
    """
    takes_key = "key" in inspect.signature(cost).parameters

    def total(params: Any, batch: Any, key: Array) -> tuple[Array, Total]:
        value = cost(params, batch, key=key) if takes_key else cost(params, batch)
        if isinstance(value, Total):
            return value.mean(), value
        return value, Total(value, jnp.zeros_like(value))  # count 0: a part of one cost, which adds up

    optimizer = optax.with_extra_args_support(optimizer)

    def step(state: State, batch: Any, *, key: Array) -> tuple[State, Total]:
        key = jax.random.fold_in(key, state.step)
        (value, info), gradient = jax.value_and_grad(total, has_aux=True)(state.params, batch, key)
        # What line searches (optax.lbfgs) and plateau schedules ask for; all others ignore it.
        extra = {"value": value, "grad": gradient, "value_fn": lambda params: total(params, batch, key)[0]}
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction is float ** int32: not strict
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params, **extra)
            params = optax.apply_updates(state.params, updates)
        return State(params, optimizer_state, state.step + 1), info

    return step


def descend(
    cost: Cost, params: Any, batches: Any, *, optimizer: optax.GradientTransformation, key: Array, steps: int
) -> tuple[Any, Array]:
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

    Returns:
        (params, losses [steps]): each step's cost before it, the mean where the cost is a Total.
    """
    step = make_step(cost, optimizer)
    n_batches = len(jax.tree.leaves(batches)[0])

    def body(state: State, k: Array) -> tuple[State, Array]:
        batch = jax.tree.map(
            lambda stacked: jax.lax.dynamic_index_in_dim(stacked, k % n_batches, keepdims=False), batches
        )
        state, info = step(state, batch, key=key)
        return state, info.sum / jnp.where(info.count > 0, info.count, 1)

    state, losses = jax.lax.scan(body, init(params, optimizer), jnp.arange(steps))
    return state.params, losses
