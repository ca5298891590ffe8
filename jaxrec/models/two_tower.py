"""Two towers: a network for users' features and one for items', whose outputs are multiplied.

v_u = f_u(x_u), v_m = f_m(x_m), each of length 1; prediction v_u . v_m, in [-1, 1]. Feature sizes may differ.

>>> import jax, jax.numpy as jnp
>>> towers = TwoTower(layers=(16, 8), dropout=0.1)
>>> x_user, x_item = jnp.ones((3, 5)), jnp.ones((4, 7))
>>> params = towers.init(jax.random.key(0), x_user, x_item)
>>> v_user, v_item = towers.apply(params, x_user, x_item)
>>> v_user.shape, v_item.shape
((3, 8), (4, 8))
>>> towers.apply(params, x_item, method="items").shape  # one side alone: computed once, and kept
(4, 8)

Source: the notes' content-based filtering; Covington, Adams, Sargin 2016 (the two-stage form).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped

from jaxrec import check
from jaxrec.numerics import unit

__all__ = ["Tower", "TwoTower", "from_unit", "to_unit", "unit"]


def to_unit(value: Shaped[ArrayLike, "*n"], scale: tuple[Any, Any]) -> Float[Array, "*n"]:
    """Ratings of a scale (lowest, highest) to [-1, 1], where products of unit vectors lie.

    2 (y - lowest) / (highest - lowest) - 1, computed in float32 at least, as `from_unit` is.

    Raises:
        ValueError: lowest and highest that are not finite, or no more apart than rounding.
    """
    (y,) = check.as_floats(value=value)
    low, high = _ends(scale, y.dtype)
    return 2 * (y - low) / (high - low) - 1


def from_unit(product: Shaped[ArrayLike, "*n"], scale: tuple[Any, Any]) -> Float[Array, "*n"]:
    """The inverse of `to_unit`: predictions in ratings; raises as it does."""
    (p,) = check.as_floats(product=product)
    low, high = _ends(scale, p.dtype)
    return low + (p + 1) / 2 * (high - low)


def _ends(scale: tuple[Any, Any], dtype: jnp.dtype) -> tuple[Array, Array]:
    """(lowest, highest) in the values' type, having checked that something lies between them."""
    if not check.traced(scale):
        low, high = (float(end) for end in scale)
        apart = 4 * float(jnp.finfo(dtype).eps) * max(abs(low), abs(high))
        if not apart < high - low <= float(jnp.finfo(dtype).max):
            raise ValueError(f"scale: expected (lowest, highest), finite and apart, got ({low}, {high}).")
    lowest, highest = (jnp.asarray(end).astype(dtype) for end in scale)
    return lowest, highest


class Tower(nn.Module):
    """Dense layers with an activation and dropout between them, none after the last.

    Attributes:
        layers: widths; the last one's is the vector's.
        activation: between layers.
        dropout: the share of hidden units dropped in training (then `apply` needs rngs={'dropout': key}).
        normalize: whether the vector is divided by its length.
        precision: of the layers' products, as `jnp.matmul` takes it. None is the device's fast one: TF32 on a GPU,
            bfloat16 on a TPU, float32 on a CPU; "highest" is float32 everywhere.
        dtype: what the layers compute in, such as jnp.bfloat16; parameters stay float32, and so do the vectors. None:
            float32.
    """

    layers: tuple[int, ...] = (256, 128, 32)
    activation: Callable[[Array], Array] = nn.relu
    dropout: float = 0.0
    normalize: bool = True
    precision: str | jax.lax.Precision | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: ArrayLike, *, train: bool = False) -> Array:
        """X [..., features] -> [..., layers[-1]], computed in float32 at least.

        Raises:
            ValueError: NaN or infinity in features that are not traced.
        """
        (h,) = check.as_floats(features=x)
        check.all_finite("features", h)
        wide, dense = h.dtype, partial(nn.Dense, precision=self.precision, dtype=self.dtype)
        for width in self.layers[:-1]:
            h = self.activation(dense(width, kernel_init=nn.initializers.he_normal())(h))  # He et al.: for relu
            h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = dense(self.layers[-1])(h).astype(wide)
        return unit(h) if self.normalize else h


class TwoTower(nn.Module):
    """A tower for users and one for items, of the same shape.

    Attributes:
        layers: as in Tower, as are all others.
        activation: between layers.
        dropout: in training.
        normalize: whether the vectors have length 1.
        precision: of the layers' products.
        dtype: what the layers compute in.
    """

    layers: tuple[int, ...] = (256, 128, 32)
    activation: Callable[[Array], Array] = nn.relu
    dropout: float = 0.0
    normalize: bool = True
    precision: str | jax.lax.Precision | None = None
    dtype: Any = None

    def setup(self) -> None:
        """Both towers."""
        shape = self.layers, self.activation, self.dropout, self.normalize, self.precision, self.dtype
        self.user, self.item = Tower(*shape), Tower(*shape)

    def __call__(self, x_user: ArrayLike, x_item: ArrayLike, *, train: bool = False) -> tuple[Array, Array]:
        """(v_u, v_m); the two need not have the same number of rows."""
        return self.user(x_user, train=train), self.item(x_item, train=train)

    def users(self, x_user: ArrayLike, *, train: bool = False) -> Array:
        """v_u alone."""
        return self.user(x_user, train=train)

    def items(self, x_item: ArrayLike, *, train: bool = False) -> Array:
        """v_m alone."""
        return self.item(x_item, train=train)
