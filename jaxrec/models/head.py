"""A ranking head: a small network that scores candidates from the vectors of user and item, beyond their product.

score = a v_u . v_m + network([v_u, v_m, v_u * v_m, more]); a starts at 1 and the network's last layer at 0, so that
the head begins as the order it is to better. It is trained on candidates, by `losses.ranking.softmax`.

>>> import jax, jax.numpy as jnp
>>> head = Head(layers=(16,))
>>> v_user, v_item = jnp.ones((2, 4)), jnp.ones((2, 5, 4))  # two requests of five candidates
>>> params = head.init(jax.random.key(0), v_user, v_item)
>>> head.apply(params, v_user, v_item)[0].tolist()
[4.0, 4.0, 4.0, 4.0, 4.0]
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

__all__ = ["Head"]


class Head(nn.Module):
    """Scores of candidates, for `retrieval.ranking.order`.

    Attributes:
        layers: widths of the hidden layers.
        activation: after each of them.
        dropout: the share of hidden units dropped in training (then `apply` needs rngs={'dropout': key}).
    """

    layers: tuple[int, ...] = (64, 32)
    activation: Callable[[Array], Array] = nn.relu
    dropout: float = 0.0

    @nn.compact
    def __call__(self, v_user: Array, v_item: Array, more: Array | None = None, *, train: bool = False) -> Array:
        """Scores [..., c] of users' vectors [..., d] and candidates' [..., c, d], and what else there is [..., c, e].

        Raises:
            ValueError: vectors of different dimensions, or not one user for each list of candidates.
        """
        if v_user.shape != (*v_item.shape[:-2], v_item.shape[-1]):
            raise ValueError(f"expected v_user [..., d] and v_item [..., c, d], got {v_user.shape}, {v_item.shape}.")
        v_user = jnp.broadcast_to(v_user[..., None, :], v_item.shape)
        product = v_user * v_item
        x = jnp.concatenate([v_user, v_item, product, *([] if more is None else [more])], axis=-1)
        for width in self.layers:
            x = self.activation(nn.Dense(width, kernel_init=nn.initializers.he_normal())(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.Dense(1, kernel_init=nn.initializers.zeros_init())(x)[..., 0]
        return self.param("a", nn.initializers.ones_init(), ()) * jnp.sum(product, axis=-1) + x
