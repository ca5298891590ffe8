"""The normal equations of padded rows for TPUs, without the [rows, length, d] features that a gather leaves in HBM.

A row's ratings name the rows of the other side's table that its regression is of. XLA gathers these, writes them, and
reads them again for the products: 3 times the bytes. Here each is copied from the table in HBM to VMEM, CHUNK of them
in flight while the MXU adds those before to the Gram matrix, and only [d, d] and [d] per row go back.

Copies end at a row's last rating that counts: what is padding at the end costs neither bytes nor products.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Bool, Float, Int

__all__ = ["tpu_normal_equations"]

# The place of a block that fills its dimension. With x64 enabled a plain 0 is an int64, which Mosaic refuses.
FIRST = np.int32(0)
# Regressions per step of the grid: a tile's sublanes.
ROWS = 8
# Features in one half of the double buffer: a tile's lanes, along which their weights lie.
CHUNK = 128
# Ids of a regression in scalar memory at once. A multiple of CHUNK; 8 x 1024 ids twice are 64 KiB.
LENGTH = 1024


def tpu_normal_equations(
    table: Float[Array, "n_others d"],
    other: Int[Array, "r length"],
    value: Float[Array, "r length"],
    where: Bool[Array, "r length"] | Float[Array, "r length"],
    weights: Float[Array, "r length"] | None = None,
    *,
    interpret: Any = False,
) -> tuple[Float[Array, "r d d"], Float[Array, "r d"]]:
    """(gram, rhs) of every row: sum over l of weight(l) x(l) x(l)', and sum over l of weight(l) value(l) x(l).

    Here x(l) = table[other[l]], and weight is 0 where masked. What is masked, or has weight 0, is inert, NaN too: its
    value, its weight under the mask, and the row of the table that its id names. Ids are trusted, those of padding
    too: they must be rows of the table. Sums are float32 (precision HIGHEST).

    Args:
        table: the other side's features; d up to 256 fits in a v5e. Where d is no multiple of 128, XLA first copies it
            to rows that are, which the copies of single rows need; and gram then leaves as such rows: 128 / d times its
            size, until XLA has laid it out anew.
        other: ids, int32.
        value: the targets.
        where: True, or not 0, where an entry counts.
        weights: one per entry.
        interpret: for tests, `pltpu.InterpretParams(...)`: what a TPU would do, on the CPU.
    """
    (r, length), d = other.shape, table.shape[1]
    if r == 0 or length == 0 or d == 0:  # there is no empty grid, and no empty block
        return jnp.zeros((r, d, d), jnp.float32), jnp.zeros((r, d), jnp.float32)
    in_row = where.astype(bool)
    weight = jnp.where(in_row, jnp.float32(1) if weights is None else weights.astype(jnp.float32), 0)
    in_row = weight != 0
    target = jnp.where(in_row, weight * value.astype(jnp.float32), 0)
    count = jnp.max(jnp.where(in_row, jnp.arange(1, length + 1, dtype=jnp.int32)[None, :], 0), axis=1)

    # Whole tiles of ids and weights; the table and the results are not padded.
    chunk = min(CHUNK, length)
    block = length if length <= CHUNK else min(LENGTH, length + -length % CHUNK)
    fill = lambda array: jnp.pad(array, ((0, -r % ROWS), (0, -length % block)))
    other, weight, target = fill(other.astype(jnp.int32)), fill(weight), fill(target)
    count = jnp.pad(count, (0, -r % ROWS)).reshape(-1, 1, ROWS)
    of_step = lambda memory: pl.BlockSpec((ROWS, block), lambda row, part: (row, part), memory_space=memory)
    call = pl.pallas_call(
        partial(_kernel, chunk=chunk, block=block),
        out_shape=(jax.ShapeDtypeStruct((r, d, d), jnp.float32), jax.ShapeDtypeStruct((r, d), jnp.float32)),
        grid=(pl.cdiv(r, ROWS), other.shape[1] // block),
        in_specs=[
            pl.BlockSpec((1, 1, ROWS), lambda row, _: (row, FIRST, FIRST), memory_space=pltpu.SMEM),
            of_step(pltpu.SMEM),
            of_step(pltpu.VMEM),
            of_step(pltpu.VMEM),
            pl.BlockSpec(memory_space=pl.ANY),
        ],
        out_specs=(
            pl.BlockSpec((ROWS, d, d), lambda row, _: (row, FIRST, FIRST)),
            pl.BlockSpec((ROWS, d), lambda row, _: (row, FIRST)),
        ),
        scratch_shapes=[pltpu.VMEM((2, chunk, d), jnp.float32), pltpu.SemaphoreType.DMA((2,))],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="normal_equations",
    )
    # Under vmap one after the other: its own rule would cut the table in HBM into blocks, which Mosaic refuses.
    each: Any = jax.custom_batching.sequential_vmap(call)
    return each(count, other, weight, target, table.astype(jnp.float32))  # of half a word one row cannot be copied


def _kernel(
    count: Any,
    other: Any,
    weight: Any,
    target: Any,
    table: Any,
    gram: Any,
    rhs: Any,
    features: Any,
    arrived: Any,
    *,
    chunk: int,
    block: int,
) -> None:
    chunks = block // chunk

    @pl.when(pl.program_id(1) == 0)
    def clear() -> None:
        gram[:] = jnp.zeros(gram.shape, gram.dtype)
        rhs[:] = jnp.zeros(rhs.shape, rhs.dtype)

    def place(step: Any) -> tuple[Any, Any, Any, Any]:
        """A step's row, its first entry, how many it copies, and its half of the buffer."""
        # div and rem, not // and %: these ask for a number's sign, which cannot be lowered where no TPU is known of
        row, first = jax.lax.div(step, jnp.int32(chunks)), jax.lax.rem(step, jnp.int32(chunks)) * chunk
        used = jnp.clip(count[0, 0, row] - pl.program_id(1) * block - first, 0, chunk)
        return row, first, used, jax.lax.rem(step, jnp.int32(2))

    def copy(step: Any, entry: Any) -> Any:
        row, first, _, half = place(step)
        source = table.at[pl.ds(other[row, first + entry], 1)]
        return pltpu.make_async_copy(source, features.at[half, pl.ds(entry, 1)], arrived.at[half])

    def start(step: Any) -> None:
        jax.lax.fori_loop(jnp.int32(0), place(step)[2], lambda entry, _: copy(step, entry).start(), None)

    def add(step: Any, _: None) -> None:
        @pl.when(step + 1 < ROWS * chunks)
        def start_next() -> None:
            start(step + 1)

        row, first, used, half = place(step)
        jax.lax.fori_loop(jnp.int32(0), used, lambda entry, _: copy(step, entry).wait(), None)

        @pl.when(used > 0)
        def accumulate() -> None:
            entries = pl.ds(pl.multiple_of(first, chunk), chunk)
            of_row = jax.lax.broadcasted_iota(jnp.int32, (ROWS, chunk), 0) == row  # there is no read of one sublane
            here = jnp.sum(jnp.where(of_row, weight[:, entries], 0), axis=0, keepdims=True)  # [1, chunk]
            wanted = jnp.sum(jnp.where(of_row, target[:, entries], 0), axis=0, keepdims=True)
            # by columns, so that weights and mask lie along the lanes; what was not copied is anything
            x = jnp.where(here != 0, features[half].T, 0)  # [d, chunk]
            gram[row] += _product(x * here, x)
            rhs[pl.ds(row, 1)] += _product(wanted, x)

    start(jnp.int32(0))
    jax.lax.fori_loop(jnp.int32(0), jnp.int32(ROWS * chunks), add, None)  # int32 with x64 enabled too


def _product(a: Array, b: Array) -> Array:
    """A b', both by columns."""
    along = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(a, b, along, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
