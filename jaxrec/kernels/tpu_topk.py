"""The first pass of `kernels.topk` for TPUs: the largest score of each group, without a matrix of scores in HBM.

XLA writes the scores of a block to HBM and reads them again to take the maxima. Here a block of items comes to VMEM,
the MXU scores it, the maximum of every 32 consecutive items is taken there, and only that goes back: n / 32 numbers per
item instead of n scores.

A table with few columns lies column by column in a TPU's HBM (rows would be padded to 128 numbers), so the kernel reads
its transpose; of a table whose rows fill whole tiles it reads rows. Either way the table is read in place.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Bool, Float

from jaxrec.kernels.platform import BLOCK_ZERO
from jaxrec.numerics import HIGHEST

__all__ = ["group_maxima"]

# Items and queries scored at once: 1 MiB of scores in VMEM. Multiples of 8 groups and of 128 queries, to fill tiles.
TILE_ITEMS, TILE_QUERIES = 1024, 256
# The same for rows of more than LONG_ROW numbers, so that rows of up to 2048 fit in a v5e's 16 MiB too.
LONG_ROW, LONG_ROW_TILE_ITEMS, LONG_ROW_TILE_QUERIES = 512, 256, 128


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
        items: the catalog, read in place; the last group may be short.
        allowed: False for items that no query gets; NaN in these has no effect.
        group: items per group; a power of 2, at most 32.
        interpret: for tests, `pltpu.InterpretParams(...)`: simulates a TPU on the CPU.

    Returns:
        [ceil(m / group), n], float32.
    """
    (n, d), m = queries.shape, items.shape[0]
    groups = pl.cdiv(m, group)
    if n == 0 or m == 0 or d == 0:  # Pallas has no empty grid and no empty block
        top = jnp.full(groups * group, -jnp.inf).at[:m].set(0.0 if allowed is None else jnp.where(allowed, 0, -jnp.inf))
        return jnp.broadcast_to(jnp.max(top.reshape(-1, group), axis=1)[:, None], (groups, n))
    by_column = d % 128 != 0
    table = items.T if by_column else items
    block, size = (TILE_ITEMS, TILE_QUERIES) if d <= LONG_ROW else (LONG_ROW_TILE_ITEMS, LONG_ROW_TILE_QUERIES)
    size = min(size, n) if isinstance(n, int) else size  # n may be symbolic (jax.export)
    along_items = lambda step, _: (BLOCK_ZERO, step) if by_column else (step, BLOCK_ZERO)
    operands: list[Array] = [queries, table]
    specs = [
        pl.BlockSpec((size, d), lambda _, part: (part, BLOCK_ZERO)),
        pl.BlockSpec((d, block) if by_column else (block, d), along_items),
    ]
    if allowed is not None:
        operands.append(allowed.astype(jnp.float32)[None, :])
        specs.append(pl.BlockSpec((1, block), lambda step, _: (BLOCK_ZERO, step)))
    kernel: Callable[..., None] = partial(_kernel, m=m, group=group, by_column=by_column)
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((groups, n), jnp.float32),
        grid=(pl.cdiv(m, block), pl.cdiv(n, size)),  # queries in the inner loop: each block of items is read once
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
        precision=HIGHEST,
        preferred_element_type=jnp.float32,
    )  # [block, size]
    # A ragged last block holds arbitrary values after the table's end; queries after theirs fill columns that are cut.
    block = scores.shape[0]
    item = pl.program_id(0) * block + jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0)
    valid = item < m
    if allowed:
        valid &= allowed[0][:].T > 0
    # -0 and 0 tie where these are ordered, and NaN has no position in an order
    scores = jnp.where(valid & (scores == scores), jnp.where(scores == 0, 0, scores), -jnp.inf)
    out[:] = jnp.max(scores.reshape(block // group, group, -1), axis=1)
