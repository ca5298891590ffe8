"""A recurrent network over packed events: the arguments and results of `models.sequence.Transformer`, in O(length).

With x(t) the embedded event, s the logistic function and h(t - 1) the state, which is 0 where a segment begins::

    r = s(x A_r + h U_r + a_r)     z = s(x A_z + h U_z + a_z)     n = tanh(x A_n + a_n + r * (h U_n + u_n))
    h(t) = (1 - z) * n + z * h(t - 1)

A scan over the columns of the rows carries the state, so that a user's next event needs nothing but it and the event.

>>> import jax, jax.numpy as jnp
>>> model = Gru(n_items=6, window=4, width=8)
>>> item, segment = jnp.array([[5, 3, 4, 2]]), jnp.array([[1, 1, 1, 2]])  # two users in one row
>>> position = jnp.array([[0, 1, 2, 0]])
>>> params = model.init(jax.random.key(0), item, segment, position)
>>> model.apply(params, item, segment, position).shape, model.apply(params, method="items").shape
((1, 4, 8), (6, 8))

Source: Cho et al. 2014; Hidasi et al. 2016, Session-based recommendations with recurrent neural networks (GRU4Rec).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.models._packed_events import GapEmbedding, checked_events, log_gaps, normal_table

__all__ = ["Gru", "starts"]


def starts(segment: Int[ArrayLike, "n_rows length"]) -> Bool[Array, "n_rows length"]:
    """Where a segment begins: where the segment differs from that of the column before.

    >>> starts(jnp.array([[1, 1, 2, 0]])).astype(int).tolist()
    [[1, 0, 1, 1]]
    """
    segments = jnp.asarray(segment)
    return jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)


class Gru(nn.Module):
    """Gated recurrent layers over packed segments, with a tied item table.

    Attributes:
        n_items: the number of items.
        window: the greatest length of a segment; the network has no positions, and only checks it.
        width: of the vectors and the states, d.
        layers: the number of recurrent layers; each is added to its input but the first.
        dropout: the fraction dropped in training of each layer's input and of the last output (then `apply` needs
            rngs={"dropout": key}).
        time_gaps: whether the times between events are read: a vector of log(1 + gap) is added to each event's.
        dtype: the type that the products are computed in; parameters, states and vectors stay float32.
        precision: of the products, as for `jnp.matmul`.
    """

    n_items: int
    window: int
    width: int = 64
    layers: int = 1
    dropout: float = 0.2
    time_gaps: bool = False
    dtype: Any = None
    precision: str | jax.lax.Precision | None = None

    def setup(self) -> None:
        """Creates the table and the layers, after checking the sizes."""
        for name in ("n_items", "window", "width", "layers"):
            check.whole_number(name, getattr(self, name), least=1)
        self.table = normal_table(self, "item", self.n_items, self.width)
        if self.time_gaps:
            self.gap = GapEmbedding(self.width)
        options = {"dtype": self.dtype, "precision": self.precision}
        numbers = range(self.layers)
        self.inputs = [nn.Dense(3 * self.width, name=f"input_{number}", **options) for number in numbers]
        self.states = [
            (
                self.param(f"state_{number}", nn.initializers.orthogonal(), (self.width, 3 * self.width), jnp.float32),
                self.param(f"state_bias_{number}", nn.initializers.zeros, (self.width,), jnp.float32),
            )
            for number in numbers
        ]
        self.norm = nn.LayerNorm(use_bias=False)
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self,
        item: Int[ArrayLike, "n_rows length"],
        segment: Int[ArrayLike, "n_rows length"],
        position: Int[ArrayLike, "n_rows length"],
        gap: Shaped[ArrayLike, "n_rows length"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "n_rows length width"]:
        """h(t) of every event; in padding any finite vector. Arguments and errors are those of `Transformer`."""
        ids, segments, _ = checked_events(item, segment, position, n_items=self.n_items, window=self.window)
        x = gather(self.table, ids)
        if self.time_gaps:
            x = x + self.gap(log_gaps(gap, segments > 0))
        first = starts(segments).T
        for number, (dense, (kernel, bias)) in enumerate(zip(self.inputs, self.states, strict=True)):
            projected = dense(self.drop(x, deterministic=not train)).astype(x.dtype)
            out = self._scan(projected.swapaxes(0, 1), first, kernel, bias).swapaxes(0, 1)
            x = out if number == 0 else x + out
        return self.norm(self.drop(x, deterministic=not train))

    def items(self) -> Float[Array, "n_items width"]:
        """The item table: the scores of the next item are products of h(t) with its rows."""
        return self.table

    def _scan(self, projected: Array, first: Array, kernel: Array, bias: Array) -> Array:
        """The states [length, n_rows, width] from the layer's projected inputs [length, n_rows, 3 width]."""
        weight = kernel if self.dtype is None else kernel.astype(self.dtype)

        def step(h: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            x, begins = inputs
            h = jnp.where(begins[:, None], 0, h)
            product = jnp.matmul(h.astype(weight.dtype), weight, precision=self.precision).astype(h.dtype)
            (x_r, x_z, x_n), (h_r, h_z, h_n) = (jnp.split(part, 3, axis=-1) for part in (x, product))
            r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
            h = (1 - z) * jnp.tanh(x_n + r * (h_n + bias[None, :])) + z * h
            return h, h

        start = jnp.zeros((projected.shape[1], self.width), projected.dtype)
        return jax.lax.scan(step, start, (projected, first))[1]
