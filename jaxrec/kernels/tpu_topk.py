"""The first pass of `kernels.topk` for TPUs: each group's largest score, and no matrix of scores in HBM.

XLA writes the scores of a block to HBM and reads them again to take the maxima. Here a block of items comes to VMEM,
the MXU scores it, the maximum of every 32 consecutive items is taken there, and that alone goes back: n / 32
numbers per item where the scores are n.

A table with few columns lies column by column in a TPU's HBM (rows would be filled up to 128 numbers), so its transpose
is what the kernel reads; of a table whose rows fill whole tiles it reads rows. Either way the table is read in place.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Bool, Float

__all__ = ["group_maxima"]

# Items and queries scored at once: 1 MiB of scores in VMEM. Multiples of 8 groups and of 128 queries, to fill tiles.
ITEMS, QUERIES = 1024, 256
# The place of a block that fills its dimension. With x64 enabled a plain 0 is an int64, which Mosaic refuses.
FIRST = np.int32(0)
# The same for rows of more than LONG numbers, so that they too fit in a v5e's 16 MiB, to rows of 2048.
LONG, ITEMS_IF_LONG, QUERIES_IF_LONG = 512, 256, 128


def group_maxima(
    queries: Float[Array, "n d"],
    items: Float[Array, "m d"],
    allowed: Bool[Array, " m"] | None = None,
    *,
    group: int = 32,
    interpret: Any = False,
) -> Float[Array, "groups n"]:
    """out[g, q] = max over group g <= i < group (g + 1), i < m, allowed[i] of queries[q] . items[i]; -inf over none.

    Products are of float32 and summed in it (precision HIGHEST: bfloat16 products would lose ranks).

    Args:
        queries: one per row.
        items: the catalogue, read in place; the last group may be short.
        allowed: False for items that nobody gets; NaN in these is inert.
        group: items of which the maximum is kept; a power of 2, at most 32.
        interpret: for tests, `pltpu.InterpretParams(...)`: what a TPU would do, on the CPU.

    Returns:
        [ceil(m / group), n], float32.
    """
    (n, d), m = queries.shape, items.shape[0]
    groups = pl.cdiv(m, group)
    if n == 0 or m == 0 or d == 0:  # there is no empty grid, and no empty block
        top = jnp.full(groups * group, -jnp.inf).at[:m].set(0.0 if allowed is None else jnp.where(allowed, 0, -jnp.inf))
        return jnp.broadcast_to(jnp.max(top.reshape(-1, group), axis=1)[:, None], (groups, n))
    by_column = d % 128 != 0
    table = items.T if by_column else items
    block, size = (ITEMS, QUERIES) if d <= LONG else (ITEMS_IF_LONG, QUERIES_IF_LONG)
    size = min(size, n) if isinstance(n, int) else size  # n may be symbolic (jax.export)
    along_items = lambda step, _: (FIRST, step) if by_column else (step, FIRST)
    operands: list[Array] = [queries, table]
    specs = [
        pl.BlockSpec((size, d), lambda _, part: (part, FIRST)),
        pl.BlockSpec((d, block) if by_column else (block, d), along_items),
    ]
    if allowed is not None:
        operands.append(allowed.astype(jnp.float32)[None, :])
        specs.append(pl.BlockSpec((1, block), lambda step, _: (FIRST, step)))
    kernel: Callable[..., None] = partial(_kernel, m=m, group=group, by_column=by_column)
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((groups, n), jnp.float32),
        grid=(pl.cdiv(m, block), pl.cdiv(n, size)),  # the queries' parts within: a block of items comes once
        in_specs=specs,
        out_specs=pl.BlockSpec((block // group, size), lambda step, part: (step, part)),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="group_maxima",
    )(*operands)


def _kernel(queries: Any, table: Any, *rest: Any, m: int, group: int, by_column: bool) -> None:
    *allowed, out = rest
    scores = jax.lax.dot_general(
        table[:].astype(jnp.float32),
        queries[:].astype(jnp.float32),
        (((0,) if by_column else (1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )  # [block, size]
    # What a ragged last block has beyond the table is anything. Queries beyond theirs fill columns that are not kept.
    block = scores.shape[0]
    item = pl.program_id(0) * block + jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0)
    open_ = item < m
    if allowed:
        open_ &= allowed[0][:].T > 0
    # -0 and 0 tie where these are ordered, and NaN is nowhere in an order
    scores = jnp.where(open_ & (scores == scores), jnp.where(scores == 0, 0, scores), -jnp.inf)
    out[:] = jnp.max(scores.reshape(block // group, group, -1), axis=1)
