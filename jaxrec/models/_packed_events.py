"""What the networks over packed events share: their inputs, checked and embedded."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxrec import check

__all__ = ["GapEmbedding", "PackedEvents", "checked_events", "log_gaps", "normal_table", "rotate"]

ROTARY_BASE = 10_000.0  # the longest wave of rotary positions, in radians per position: 1 / base
SCALE = 0.02  # of the initial tables, as in SASRec's and BERT's code


class PackedEvents(NamedTuple):
    """Checked events; all are 0 in padding."""

    item: Array
    segment: Array
    position: Array


def rotate(
    x: Float[Array, "n_rows length heads d"], position: Int[Array, "n_rows length"]
) -> Float[Array, "n_rows length heads d"]:
    """Rotary positions: turns the pair (x[k], x[k + d/2]) by the angle position * base^(-2 k / d).

    The product of a query and a key that are turned so depends on the difference of their positions alone.

    Raises:
        ValueError: d is odd.
    """
    d = x.shape[-1]
    if d % 2:
        raise ValueError(f"rotary: expected heads of an even width, got {d}. Choose another width or number of heads.")
    frequency = jnp.asarray(ROTARY_BASE ** -(np.arange(0, d, 2) / d), jnp.float32)
    angle = position.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def normal_table(module: nn.Module, name: str, rows: int, width: int) -> Array:
    """A table of parameters, normally distributed at first."""
    return module.param(name, nn.initializers.normal(SCALE), (rows, width), jnp.float32)


def checked_events(
    item: ArrayLike, segment: ArrayLike, position: ArrayLike, *, n_items: int, window: int
) -> PackedEvents:
    """(item, segment, position) of packed events as arrays, 0 in padding.

    Raises:
        ValueError: other shapes than [n_rows, length]; ids that are no items, positions that are not in the window
            (not checked under jit; padding may hold anything).
    """
    check.same_shape(item=item, segment=segment, position=position)
    if np.ndim(item) != 2:
        raise ValueError(f"item: expected packed rows [n_rows, length], got {np.ndim(item)} dimensions.")
    segments = jnp.asarray(segment)
    valid = segments > 0
    ids = check.row_ids("item", item, size=n_items, where=valid)
    positions = check.row_ids("position", position, size=window, where=valid)
    return PackedEvents(jnp.where(valid, ids, 0), segments, jnp.where(valid, positions, 0))


def log_gaps(gap: ArrayLike | None, where: Array) -> Array:
    """log(1 + gap), 0 in padding.

    Raises:
        ValueError: no gaps, or of another shape than the events; gaps that are negative or not finite (not checked
            under jit).
    """
    if gap is None:
        raise ValueError("gap: expected the times between events, got None. Pass time_gaps=False to do without them.")
    check.same_shape(gap=gap, item=where)
    (gaps,) = check.as_floats(gap=gap)
    gaps = jnp.where(where, gaps, 0)
    if not check.traced(gaps) and not bool(jnp.all((gaps >= 0) & (gaps < jnp.inf))):
        raise ValueError("gap: expected finite times >= 0 between events, got others.")
    return jnp.log1p(gaps)


class GapEmbedding(nn.Module):
    """A vector of the time since the event before: a layer of one gated unit per column of log(1 + gap).

    Attributes:
        width: of the vector.
    """

    width: int

    @nn.compact
    def __call__(self, log_gap: Float[Array, "n_rows length"]) -> Array:
        """[n_rows, length, width]."""
        hidden = nn.silu(nn.Dense(self.width, name="hidden")(log_gap[..., None]))
        return nn.Dense(self.width, use_bias=False, kernel_init=nn.initializers.normal(SCALE), name="out")(hidden)
