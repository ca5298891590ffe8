"""A ranking head: a small network that rescores candidates from the user's and the item's vectors.

score = a v_u . v_m + network([v_u, v_m, v_u * v_m, more]). Initially a is 1 and the network's last layer 0, so an
untrained head keeps the order by v_u . v_m. It is trained on candidates, by `losses.softmax.listwise`.

>>> import jax, jax.numpy as jnp
>>> head = Head(layers=(16,))
>>> v_user, v_item = jnp.ones((2, 4)), jnp.ones((2, 5, 4))  # two requests of five candidates
>>> params = head.init(jax.random.key(0), v_user, v_item)
>>> head.apply(params, v_user, v_item)[0].tolist()
[4.0, 4.0, 4.0, 4.0, 4.0]
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxrec import check

__all__ = ["Head"]


class Head(nn.Module):
    """Scores of candidates, for `retrieval.rerank.order`.

    Attributes:
        layers: widths of the hidden layers.
        activation: applied after each hidden layer.
        dropout: the fraction of hidden units dropped in training (then `apply` needs rngs={'dropout': key}).
    """

    layers: tuple[int, ...] = (64, 32)
    activation: Callable[[Array], Array] = nn.relu
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, v_user: ArrayLike, v_item: ArrayLike, more: ArrayLike | None = None, *, train: bool = False
    ) -> Array:
        """Scores [..., c] of candidates' vectors [..., c, d] for users' vectors [..., d].

        `more` are other features of the candidates, [..., c, e]. Computed in float32 or wider.

        Raises:
            ValueError: vectors of different dimensions, not one user for each list of candidates, or `more` of other
                candidates; NaN or infinity (not checked under jit).
        """
        user, item, extra = check.as_floats(v_user=v_user, v_item=v_item, more=more)
        for name, array in (("v_user", user), ("v_item", item), ("more", extra)):
            check.all_finite(name, array)
        if user.shape != (*item.shape[:-2], item.shape[-1]):
            raise ValueError(f"expected v_user [..., d] and v_item [..., c, d], got {user.shape}, {item.shape}.")
        if extra is not None and (extra.ndim != item.ndim or extra.shape[:-1] != item.shape[:-1]):
            raise ValueError(f"more: expected [..., c, e] of the {item.shape[:-1]} candidates, got {extra.shape}.")
        user = jnp.broadcast_to(user[..., None, :], item.shape)
        product = user * item
        x = jnp.concatenate([user, item, product, *([] if extra is None else [extra])], axis=-1)
        for width in self.layers:
            x = self.activation(nn.Dense(width, kernel_init=nn.initializers.he_normal())(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.Dense(1, kernel_init=nn.initializers.zeros_init())(x)[..., 0]
        return self.param("a", nn.initializers.ones_init(), ()) * jnp.sum(product, axis=-1) + x
