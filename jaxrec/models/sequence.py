"""A causal transformer over packed events: vectors whose products with the items are the scores of what comes next.

h(t) = f(i(1), .., i(t)) for every event t of a segment, and the scores of what follows it are h(t) . e(k) for every
item k. The rows e(k) of the item table are also what the network reads: the table is tied. Segments are packed into
rows of one length (`data.sequences`); an event sees the events of its own segment up to itself, so that neither
padding nor another segment nor a later event can change its vector. Every block adds twice to its input x::

    x = x + attention(norm(x))        softmax of q . k / sqrt(d / heads) over the events that are seen
    x = x + gated(norm(x))            gated(z) = (activation(z A) * (z B)) C

`models.gru.Gru` has the same arguments and results, so that costs (`training.next_item`), scorers
(`models.sequence_scorer`) and requests take either.

>>> import jax, jax.numpy as jnp
>>> model = Transformer(n_items=6, window=4, width=8, heads=2)
>>> item, segment = jnp.array([[5, 3, 4, 2]]), jnp.array([[1, 1, 1, 2]])  # two users in one row
>>> position = jnp.array([[0, 1, 2, 0]])
>>> params = model.init(jax.random.key(0), item, segment, position)
>>> h = model.apply(params, item, segment, position)
>>> h.shape, model.apply(params, method="items").shape
((1, 4, 8), (6, 8))
>>> other = model.apply(params, item.at[0, 2].set(0), segment, position)  # changes event 2, and no other
>>> jnp.max(jnp.abs(h - other), axis=-1)[0].astype(bool).tolist()
[False, False, True, False]

Source: Kang and McAuley 2018, Self-attentive sequential recommendation (SASRec), here with the norm before each layer
(Xiong et al. 2020), gated layers (Shazeer 2020, GLU variants improve transformer), rotary positions (Su et al. 2021).
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
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.models._packed_events import GapEmbedding, checked_events, log_gaps, normal_table, rotate

__all__ = ["Transformer", "visible"]


def visible(segment: Int[ArrayLike, "n_rows length"]) -> Bool[Array, "n_rows length length"]:
    """Which events each event sees: [r, t, s] is True for the events s <= t of the segment of t.

    Padding sees the padding before it, so that no event sees nothing.

    >>> visible(jnp.array([[1, 1, 2]]))[0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    segments = jnp.asarray(segment)
    length = segments.shape[1]
    return (segments[:, :, None] == segments[:, None, :]) & jnp.tril(jnp.ones((length, length), bool))[None]


class Block(nn.Module):
    """Attention and a gated layer, each added to its input. The attributes are those of `Transformer`.

    Attributes:
        heads: the number of heads.
        hidden: the width of the gated layer.
        activation: of the gate.
        dropout: the fraction of what is added that is dropped in training.
        rotary: whether queries and keys are turned by their positions.
        dtype: the type that the products are computed in.
        precision: of the products.
    """

    heads: int
    hidden: int
    activation: Callable[[Array], Array]
    dropout: float
    rotary: bool
    dtype: Any
    precision: Any

    @nn.compact
    def __call__(self, x: Array, position: Array, mask: Array, *, train: bool) -> Array:
        """The next x, of [n_rows, length, width] as x."""
        width = x.shape[-1]
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype, precision=self.precision)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        split = lambda y: y.reshape(*y.shape[:-1], self.heads, width // self.heads)
        z = nn.LayerNorm(use_bias=False, name="norm_attention")(x)
        query, key, value = (split(y) for y in jnp.split(dense(3 * width, name="qkv")(z), 3, axis=-1))
        if self.rotary:
            query, key = rotate(query, position), rotate(key, position)
        with jax.numpy_dtype_promotion("standard"):  # it computes the softmax of bfloat16 products in float32
            seen = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None])
        x = x + drop(dense(width, name="attended")(seen.reshape(x.shape)).astype(x.dtype))
        z = nn.LayerNorm(use_bias=False, name="norm_gated")(x)
        gate, linear = jnp.split(dense(2 * self.hidden, name="gate")(z), 2, axis=-1)
        return x + drop(dense(width, name="gated")(self.activation(gate) * linear).astype(x.dtype))


class Transformer(nn.Module):
    """Causal attention over packed segments, with a tied item table.

    Attributes:
        n_items: the number of items.
        window: the greatest length of a segment.
        width: of the vectors, d.
        layers: the number of blocks.
        heads: of the attention; they divide the width.
        hidden: the width of the gated layers; None is 8/3 of `width` up to a multiple of 8, which has as many
            parameters as a plain layer of 4 `width`.
        activation: of the gates; `jax.nn.silu` makes them SwiGLU, `jax.nn.gelu` GeGLU.
        dropout: the fraction dropped in training of the embedded events and of what each layer adds (then `apply`
            needs rngs={"dropout": key}).
        rotary: positions turn queries and keys; otherwise each has a learned vector, which is added to its item's.
        time_gaps: whether the times between events are read: a vector of log(1 + gap) is added to each event's.
        dtype: the type that the products of the blocks are computed in, such as jnp.bfloat16; parameters, sums, norms,
            and vectors stay float32. None is float32.
        precision: of these products, as for `jnp.matmul`. None is the device's default: TF32 on a GPU.
    """

    n_items: int
    window: int
    width: int = 64
    layers: int = 2
    heads: int = 2
    hidden: int | None = None
    activation: Callable[[Array], Array] = nn.silu
    dropout: float = 0.2
    rotary: bool = False
    time_gaps: bool = False
    dtype: Any = None
    precision: str | jax.lax.Precision | None = None

    def setup(self) -> None:
        """Creates the tables and the blocks, after checking the sizes."""
        sizes = ("n_items", "window", "width", "heads")
        for name in sizes:
            check.whole_number(name, getattr(self, name), least=1)
        check.whole_number("layers", self.layers, least=0)
        if self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of the width {self.width}, got {self.heads}.")
        hidden = self.hidden or -(-self.width // 3) * 8
        self.table = normal_table(self, "item", self.n_items, self.width)
        if not self.rotary:
            self.positions = normal_table(self, "position", self.window, self.width)
        if self.time_gaps:
            self.gap = GapEmbedding(self.width)
        options = self.heads, hidden, self.activation, self.dropout, self.rotary, self.dtype, self.precision
        self.blocks = [Block(*options, name=f"block_{number}") for number in range(self.layers)]
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
        """h(t) of every event; in padding any finite vector.

        Args:
            item: packed items, as `data.sequences` returns them: its rows are independent.
            segment: which events of a row are of one user; 0 is padding.
            position: of each event in its segment, from 0.
            gap: the time since the event before; None for a model without time gaps.
            train: whether dropout is on.

        Raises:
            ValueError: other shapes; ids that are no items, positions that are not in the window, gaps that are
                negative or not finite (not checked under jit); no gaps for a model that reads them.
        """
        ids, segments, positions = checked_events(item, segment, position, n_items=self.n_items, window=self.window)
        x = gather(self.table, ids)
        if not self.rotary:
            x = x + gather(self.positions, positions)
        if self.time_gaps:
            x = x + self.gap(log_gaps(gap, segments > 0))
        x = self.drop(x, deterministic=not train)
        mask = visible(segments)
        for block in self.blocks:
            x = block(x, positions, mask, train=train)
        return self.norm(x)

    def items(self) -> Float[Array, "n_items width"]:
        """The item table: the scores of the next item are products of h(t) with its rows."""
        return self.table
