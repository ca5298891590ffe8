"""Fingerprints of training runs, by which resuming detects that the key, the optimizer or the batches changed.

>>> import optax
>>> params = {"w": jnp.ones((3, 2))}
>>> then, now = (fingerprint(params, optax.adam(rate), jax.random.key(0)) for rate in (0.1, 0.2))
>>> check_same(then, now)
Traceback (most recent call last):
...
ValueError: resume: the optimizer changed: its update of a fixed gradient is -0.2, was -0.1 (step 0). Pass ...
"""

import hashlib
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

__all__ = ["Fingerprint", "batch_digests", "check_same", "fingerprint", "shapes"]

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
        f"{path}: {type_and_shape} {_digest(leaf)}"
        for (path, type_and_shape), leaf in zip(shapes(batch), jax.tree.leaves(batch), strict=True)
    )


def shapes(tree: Any) -> list[tuple[str, str]]:
    """(path, type and shape) of each array."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        (jax.tree_util.keystr(path) or "the array", f"{jnp.result_type(x)}{list(np.shape(x))}") for path, x in leaves
    ]


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


def _digest(leaf: Any) -> str:
    if isinstance(leaf, jax.Array):
        if not leaf.is_fully_addressable:  # other hosts hold shards of it: only its shape is compared
            return ""
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
    data: Any = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)  # a view, not a copy of a large batch
    return hashlib.sha256(data).hexdigest()[:16]
