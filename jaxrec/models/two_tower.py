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

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

__all__ = ["Tower", "TwoTower", "from_unit", "to_unit", "unit"]


def unit(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """X / ‖x‖ along the last axis; a vector of zeros stays one, with a gradient of zeros (and no NaN)."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    inverse = jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)
    return x * inverse


def to_unit(value: Float[Array, "*n"], scale: tuple[float, float]) -> Float[Array, "*n"]:
    """Ratings of a scale (lowest, highest) to [-1, 1], where products of unit vectors lie."""
    low, high = scale
    return 2 * (value - low) / (high - low) - 1


def from_unit(product: Float[Array, "*n"], scale: tuple[float, float]) -> Float[Array, "*n"]:
    """The inverse of `to_unit`: predictions in ratings."""
    low, high = scale
    return low + (product + 1) / 2 * (high - low)


class Tower(nn.Module):
    """Dense layers with an activation and dropout between them, none after the last.

    Attributes:
        layers: widths; the last one's is the vector's.
        activation: between layers.
        dropout: the share of hidden units dropped in training (then `apply` needs rngs={'dropout': key}).
        normalize: whether the vector is divided by its length.
    """

    layers: tuple[int, ...] = (256, 128, 32)
    activation: Callable[[Array], Array] = nn.relu
    dropout: float = 0.0
    normalize: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """X [..., features] -> [..., layers[-1]]."""
        for width in self.layers[:-1]:
            x = self.activation(nn.Dense(width, kernel_init=nn.initializers.he_normal())(x))  # He et al.: for relu
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.Dense(self.layers[-1])(x)
        return unit(x) if self.normalize else x


class TwoTower(nn.Module):
    """A tower for users and one for items, of the same shape.

    Attributes:
        layers: as in Tower, as are all others.
        activation: between layers.
        dropout: in training.
        normalize: whether the vectors have length 1.
    """

    layers: tuple[int, ...] = (256, 128, 32)
    activation: Callable[[Array], Array] = nn.relu
    dropout: float = 0.0
    normalize: bool = True

    def setup(self) -> None:
        """Both towers."""
        self.user = Tower(self.layers, self.activation, self.dropout, self.normalize)
        self.item = Tower(self.layers, self.activation, self.dropout, self.normalize)

    def __call__(self, x_user: Array, x_item: Array, *, train: bool = False) -> tuple[Array, Array]:
        """(v_u, v_m); the two need not have the same number of rows."""
        return self.user(x_user, train=train), self.item(x_item, train=train)

    def users(self, x_user: Array, *, train: bool = False) -> Array:
        """v_u alone."""
        return self.user(x_user, train=train)

    def items(self, x_item: Array, *, train: bool = False) -> Array:
        """v_m alone."""
        return self.item(x_item, train=train)
