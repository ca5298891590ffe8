"""Histories of training runs, and fingerprints by which resuming detects that key, optimizer or batches changed.

>>> import optax
>>> params = {"w": jnp.ones((3, 2))}
>>> then, now = (fingerprint(params, optax.adam(rate), jax.random.key(0)) for rate in (0.1, 0.2))
>>> check_same(then, now)
Traceback (most recent call last):
...
ValueError: resume: the optimizer changed: its update of a fixed gradient is -0.2, was -0.1 (step 0). Pass ...
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxrec.checkpoints import digest, shapes
from jaxrec.training.step import TrainState

__all__ = [
    "Batches",
    "Fingerprint",
    "TrainHistory",
    "batch_digests",
    "check_resumed",
    "check_same",
    "fingerprint",
    "nonfinite_names",
]

Batches = Iterable[Any] | Callable[[int], Iterable[Any]]


# Fixed gradients by which optimizers are compared: large ones reveal clipping, small ones (SCALES) epsilon, changing
# ones momentum. For the last ones the optimizer's step count is set to JUMPS, which reveals a schedule.
JUMPS = (100, 1_000, 10_000, 100_000)
GRADIENTS = np.concatenate([[1.0, -0.5, 3.0, 1_000.0, -20.0], 2 * np.cos(np.arange(27.0)), np.ones(len(JUMPS))])
SCALES = (1.0, 1e-6)


class Fingerprint(NamedTuple):
    """Strings and numbers that identify a run, stored in its TrainHistory; JSON can hold them.

    Attributes:
        key: the random key's implementation and data.
        updates: the optimizer's updates of fixed gradients, from its initial state.
        batch: path, type, shape and digest of each array of the first batch of epoch 0; empty before that batch.
    """

    key: str
    updates: tuple[float, ...]
    batch: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainHistory:
    """Record of a training run by epoch, and the state to resume from.

    Attributes:
        loss: [epochs], the cost before each step, summed over the epoch's batches; for Totals, their mean.
        validation: [epochs], the value of `validate` after each epoch; empty without it.
        best_epoch: the epoch (from 0) whose parameters were returned.
        stopped: 'epochs' (ran them all), 'converged' (`tol`), 'patience' or 'callback'.
        state: the last state, not the best; `fit(..., resume=history)` continues from it.
        best: the best parameters so far.
        fingerprint: of the key, the optimizer and the first batch, by which `resume` detects that they changed.
    """

    loss: np.ndarray
    validation: np.ndarray
    best_epoch: int
    stopped: str
    state: TrainState
    best: Any
    fingerprint: Fingerprint | None = None


def fingerprint(params: Any, optimizer: optax.GradientTransformation, key: Array) -> Fingerprint:
    """Fingerprint of a run before its first batch."""
    # A corner of each parameter is enough, unless the optimizer holds arrays of the parameters' shapes.
    corner = jax.tree.map(lambda p: np.ones([min(n, 2) for n in p.shape], p.dtype), params)
    jumps = [-1] * (len(GRADIENTS) - len(JUMPS)) + list(JUMPS)
    fixed = GRADIENTS.astype(np.float32), np.array(jumps, np.int32), np.array(SCALES, np.float32)
    try:
        updates = _updates(corner, *fixed, optimizer=optimizer)
    except (TypeError, ValueError):
        updates = _updates(params, *fixed, optimizer=optimizer)
    return Fingerprint(_key_data(key), tuple(np.asarray(updates, float).ravel().tolist()))


def batch_digests(batch: Any) -> tuple[str, ...]:
    """Path, type, shape and a digest of the bytes of each array of a batch."""
    return tuple(
        f"{path}: {type_and_shape} {digest(leaf)}"
        for (path, type_and_shape), leaf in zip(shapes(batch), jax.tree.leaves(batch), strict=True)
    )


def check_same(then: Fingerprint, now: Fingerprint) -> None:
    """Raises a ValueError that names the first difference between two fingerprints."""
    if then.key != now.key:
        raise ValueError(
            f"resume: the key changed: {now.key}, was {then.key}. The steps would use other random numbers; pass the "
            "key that the history was made with."
        )
    was, is_ = np.array(then.updates), np.array(now.updates)
    if was.shape != is_.shape or not (close := np.isclose(is_, was, rtol=1e-4, atol=0, equal_nan=True)).all():
        position = int((~close).argmax()) if was.shape == is_.shape else 0
        step = position % len(GRADIENTS)
        first_jump = len(GRADIENTS) - len(JUMPS)
        raise ValueError(
            f"resume: the optimizer changed: its update of a fixed gradient is {is_[position]:.4g}, was "
            f"{was[position]:.4g} (step {step if step < first_jump else JUMPS[step - first_jump]}). Pass the optimizer "
            "that the history was made with, or start again from params=history.best."
        )
    if then.batch and now.batch and list(then.batch) != list(now.batch):
        differing = [f"{b or 'missing'}, was {a or 'missing'}" for a, b in _pairs(then.batch, now.batch) if a != b]
        raise ValueError(
            f"resume: the first batch of epoch 0 changed: {differing[0]} ({len(differing)} arrays differ). Pass the "
            "batches that the history was made with, in their order (a function of the epoch must return the same ones "
            "at every call), or start again from params=history.best."
        )


def check_resumed(
    history: TrainHistory, init: TrainState, now: Fingerprint, batches: Batches, validated: bool, epochs: int
) -> Fingerprint:
    """Returns the history's fingerprint, after checking that the history was made with this call's arguments."""
    done = len(history.loss)
    if epochs < done:
        raise ValueError(
            f"epochs: expected at least the {done} that the history has done (they are included), got {epochs}."
        )
    for name, new, old in (
        ("parameters", init.params, history.state.params),
        ("optimizer's state", init.optimizer, history.state.optimizer),
    ):
        structures: tuple[Any, Any] = jax.tree.structure(new), jax.tree.structure(old)
        if structures[0] != structures[1] or shapes(new) != shapes(old):
            is_, was = dict(shapes(new)), dict(shapes(old))
            path = next((path for path in was | is_ if was.get(path) != is_.get(path)), None)
            difference = (
                f"{structures[0]}, was {structures[1]}"
                if path is None
                else f"{path} is {is_.get(path, 'missing')}, was {was.get(path, 'missing')}"
            )
            raise ValueError(
                f"resume: the {name} changed: {difference}. Pass parameters of the same structure, shapes and types "
                "and the same optimizer, or start again from params=history.best."
            )
    if nonfinite := nonfinite_names((history.state.params, history.best)):
        raise ValueError(f"resume: expected finite parameters in the history, got NaN or infinity in {nonfinite}.")
    if done and validated != bool(len(history.validation)):
        raise ValueError(
            f"resume: the history was made {'without' if validated else 'with'} validate=, and this call has "
            f"{'one' if validated else 'none'}. The best parameters so far are then unknown: pass the same argument, "
            "or start again from params=history.best."
        )
    then = history.fingerprint
    if then is None:  # a history made without a fingerprint: only its state can be checked
        return now
    if then.batch:
        if isinstance(batches, Iterator):
            raise ValueError(
                "batches: expected a list or a function of the epoch to resume with, got a generator. It is exhausted "
                "after one epoch."
            )
        for batch in batches(0) if callable(batches) else batches:
            now = now._replace(batch=batch_digests(batch))
            break
    check_same(then, now)
    return then


def nonfinite_names(tree: Any) -> str:
    """Paths of the arrays with NaN or infinity, joined by commas; '' if there are none."""
    finite = jax.tree.leaves(_all_finite(tree))
    return ", ".join(path for (path, _), is_finite in zip(shapes(tree), finite, strict=True) if not is_finite)


@jax.jit
def _all_finite(tree: Any) -> Any:
    """Whether each array is finite: one reduction per array, once per epoch."""
    return jax.tree.map(
        lambda leaf: jnp.isfinite(leaf).all() if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.array(True), tree
    )


def _pairs(then: Iterable[str], now: Iterable[str]) -> list[tuple[str | None, str | None]]:
    by_path = lambda lines: {line.split(": ")[0]: line for line in lines}
    a, b = by_path(then), by_path(now)
    return [(a.get(path), b.get(path)) for path in a | b]


@partial(jax.jit, static_argnames="optimizer")
def _updates(
    params: Any, gradients: Array, jumps: Array, scales: Array, *, optimizer: optax.GradientTransformation
) -> Array:
    """Updates of the fixed gradients, [scales, gradients]: a mean over all parameters with one weight per array."""
    update = optax.with_extra_args_support(optimizer).update
    params = jax.tree.map(jnp.ones_like, params)
    weight = np.arange(1.0, len(jax.tree.leaves(params)) + 1)

    def updates_at_scale(scale: Array) -> Array:
        def step(state: Any, gradient_and_jump: tuple[Array, Array]) -> tuple[Any, Array]:
            gradient, jump = gradient_and_jump[0] * scale, gradient_and_jump[1]
            is_count = lambda leaf: jnp.ndim(leaf) == 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.signedinteger)
            state = jax.tree.map(lambda s: jnp.where(jump < 0, s, jump.astype(s.dtype)) if is_count(s) else s, state)
            full = jax.tree.map(lambda p: jnp.full_like(p, gradient.astype(p.dtype)), params)

            def parabola(point: Any) -> Any:
                """A cost with this gradient at params, for line searches: sum of (q - p + g)^2 / 2 over parameters."""
                leaves = zip(*map(jax.tree.leaves, (point, params, full)), strict=True)
                return sum(jnp.sum((q - p + g) ** 2) / 2 for q, p, g in leaves)

            with jax.numpy_dtype_promotion("standard"):
                updates, state = update(full, state, params, value=parabola(params), grad=full, value_fn=parabola)
            means = [jnp.mean(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(updates)]
            return state, jnp.stack(means) @ np.float32(weight / weight.sum()) if means else jnp.float32(0)

        return jax.lax.scan(step, optimizer.init(params), (gradients, jumps))[1]

    return jax.vmap(updates_at_scale)(scales)


def _key_data(key: Any) -> str:
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
        return f"{jax.random.key_impl(key)} {np.asarray(jax.random.key_data(key)).ravel().tolist()}"
    if isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32 and key.ndim == 1:
        return f"raw {np.asarray(key).tolist()}"
    raise ValueError(f"key: expected one random key, such as jax.random.key(0), got {key!r}.")
