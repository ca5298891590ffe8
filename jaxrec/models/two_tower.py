"""Two towers: a network for users' features and one for items', whose output vectors are multiplied.

v_u = f_u(x_u) and v_m = f_m(x_m) are unit vectors; the prediction is v_u . v_m, in [-1, 1]. The two sides may have
different numbers of features.

>>> import jax, jax.numpy as jnp
>>> towers = TwoTower(layers=(16, 8), dropout=0.1)
>>> x_user, x_item = jnp.ones((3, 5)), jnp.ones((4, 7))
>>> params = towers.init(jax.random.key(0), x_user, x_item)
>>> v_user, v_item = towers.apply(params, x_user, x_item)
>>> v_user.shape, v_item.shape
((3, 8), (4, 8))
>>> towers.apply(params, x_item, method="items").shape  # one side alone, to be stored
(4, 8)

Source: the lecture notes' content-based filtering; Covington, Adams, Sargin 2016 (the two-stage form).
"""

from __future__ import annotations

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
from jaxrec.numerics import unit_vectors

__all__ = ["Tower", "TwoTower", "from_unit", "to_unit", "unit_vectors"]


def to_unit(value: Shaped[ArrayLike, "*n"], scale: tuple[Any, Any]) -> Float[Array, "*n"]:
    """Maps ratings of a scale (lowest, highest) to [-1, 1], the range of products of unit vectors.

    2 (y - lowest) / (highest - lowest) - 1, computed in float32 or wider, as in `from_unit`.

    Raises:
        ValueError: lowest and highest are not finite, or lowest < highest does not hold by more than rounding.
    """
    (y,) = check.as_floats(value=value)
    low, high = _scale_ends(scale, y.dtype)
    return 2 * (y - low) / (high - low) - 1


def from_unit(product: Shaped[ArrayLike, "*n"], scale: tuple[Any, Any]) -> Float[Array, "*n"]:
    """The inverse of `to_unit`: maps products in [-1, 1] to ratings. Raises as `to_unit`."""
    (p,) = check.as_floats(product=product)
    low, high = _scale_ends(scale, p.dtype)
    return low + (p + 1) / 2 * (high - low)


def _scale_ends(scale: tuple[Any, Any], dtype: jnp.dtype) -> tuple[Array, Array]:
    """Returns (lowest, highest) in the values' type, after checking that lowest < highest by more than rounding."""
    if not check.traced(scale):
        low, high = (float(end) for end in scale)
        rounding = 4 * float(jnp.finfo(dtype).eps) * max(abs(low), abs(high))
        if not rounding < high - low <= float(jnp.finfo(dtype).max):
            raise ValueError(f"scale: expected (lowest, highest), finite and lowest < highest, got ({low}, {high}).")
    lowest, highest = (jnp.asarray(end).astype(dtype) for end in scale)
    return lowest, highest


class Tower(nn.Module):
    """Dense layers with an activation and dropout after each but the last.

    Attributes:
        layers: widths; the last is the length of the output vector.
        activation: applied after each hidden layer.
        dropout: the fraction of hidden units dropped in training (then `apply` needs rngs={'dropout': key}).
        normalize: whether the vector is divided by its norm.
        precision: of the layers' products, as for `jnp.matmul`. None is the device's default: TF32 on a GPU, bfloat16
            on a TPU, float32 on a CPU; "highest" is float32 everywhere.
        dtype: the type that the layers compute in, such as jnp.bfloat16; parameters and vectors stay float32. None is
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
        """Maps features [..., f] to vectors [..., layers[-1]], computed in float32 or wider.

        Raises:
            ValueError: NaN or infinity in the features (not checked under jit).
        """
        (h,) = check.as_floats(features=x)
        check.all_finite("features", h)
        float_dtype, dense = h.dtype, partial(nn.Dense, precision=self.precision, dtype=self.dtype)
        for width in self.layers[:-1]:
            h = self.activation(dense(width, kernel_init=nn.initializers.he_normal())(h))  # He et al., for relu
            h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = dense(self.layers[-1])(h).astype(float_dtype)
        return unit_vectors(h) if self.normalize else h


class TwoTower(nn.Module):
    """A tower for users and one for items, with the same layers. The attributes are those of `Tower`.

    Attributes:
        layers: widths.
        activation: applied after each hidden layer.
        dropout: the fraction of hidden units dropped in training.
        normalize: whether the vectors have length 1.
        precision: of the layers' products.
        dtype: the type that the layers compute in.
    """

    layers: tuple[int, ...] = (256, 128, 32)
    activation: Callable[[Array], Array] = nn.relu
    dropout: float = 0.0
    normalize: bool = True
    precision: str | jax.lax.Precision | None = None
    dtype: Any = None

    def setup(self) -> None:
        """Creates both towers."""
        config = self.layers, self.activation, self.dropout, self.normalize, self.precision, self.dtype
        self.user, self.item = Tower(*config), Tower(*config)

    def __call__(self, x_user: ArrayLike, x_item: ArrayLike, *, train: bool = False) -> tuple[Array, Array]:
        """Returns (v_u, v_m). The numbers of users and items may differ."""
        return self.user(x_user, train=train), self.item(x_item, train=train)

    def users(self, x_user: ArrayLike, *, train: bool = False) -> Array:
        """Returns v_u only."""
        return self.user(x_user, train=train)

    def items(self, x_item: ArrayLike, *, train: bool = False) -> Array:
        """Returns v_m only."""
        return self.item(x_item, train=train)
