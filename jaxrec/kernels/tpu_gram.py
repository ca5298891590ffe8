"""Normal equations of padded rows for TPUs, without the [rows, length, d] features that a gather leaves in HBM.

A row's ratings name the rows of the other side's table that its regression uses. XLA gathers these, writes them, and
reads them again for the products: 3 times the bytes. Here each is copied from the table in HBM to VMEM, 128 of them in
flight while the MXU adds the previous ones to the Gram matrix, and only [d, d] and [d] per row go back.

Copies end at a row's last rating that counts: trailing padding costs neither bytes nor products.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Bool, Float, Int

from jaxrec.kernels.platform import BLOCK_ZERO
from jaxrec.numerics import HIGHEST

__all__ = ["tpu_normal_equations"]

# Rows per step of the grid: a tile's sublanes.
STEP_ROWS = 8
# Features in one half of the double buffer: a tile's lanes, along which their weights lie.
BUFFER_ENTRIES = 128
# Ids of a row in scalar memory at once. A multiple of BUFFER_ENTRIES; 8 x 1024 ids twice are 64 KiB.
STEP_ENTRIES = 1024


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

    Here x(l) = table[other[l]], and the weight is 0 where masked. Entries that are masked or have weight 0 have no
    effect, NaN neither: their value, their weight under the mask, and the row of the table that their id names. Ids are
    trusted, including those of padding: they must be rows of the table. Sums are float32 (precision HIGHEST).

    Args:
        table: the other side's features; d up to 256 fits in a v5e. If d is no multiple of 128, XLA first copies the
            table to rows that are, which copies of single rows need; gram is then returned with such rows too: 128 / d
            times its size, until XLA has changed its layout.
        other: ids, int32.
        value: the targets.
        where: True, or not 0, where an entry counts.
        weights: one per entry.
        interpret: for tests, `pltpu.InterpretParams(...)`: simulates a TPU on the CPU.
    """
    (r, length), d = other.shape, table.shape[1]
    if r == 0 or length == 0 or d == 0:  # Pallas has no empty grid and no empty block
        return jnp.zeros((r, d, d), jnp.float32), jnp.zeros((r, d), jnp.float32)
    in_row = where.astype(bool)
    weight = jnp.where(in_row, jnp.float32(1) if weights is None else weights.astype(jnp.float32), 0)
    in_row = weight != 0
    target = jnp.where(in_row, weight * value.astype(jnp.float32), 0)
    count = jnp.max(jnp.where(in_row, jnp.arange(1, length + 1, dtype=jnp.int32)[None, :], 0), axis=1)

    # Ids and weights are padded to whole tiles; the table and the results are not.
    chunk = min(BUFFER_ENTRIES, length)
    block = length if length <= BUFFER_ENTRIES else min(STEP_ENTRIES, length + -length % BUFFER_ENTRIES)
    pad = lambda array: jnp.pad(array, ((0, -r % STEP_ROWS), (0, -length % block)))
    other, weight, target = pad(other.astype(jnp.int32)), pad(weight), pad(target)
    count = jnp.pad(count, (0, -r % STEP_ROWS)).reshape(-1, 1, STEP_ROWS)
    entries_in = lambda memory: pl.BlockSpec((STEP_ROWS, block), lambda row, part: (row, part), memory_space=memory)
    call = pl.pallas_call(
        partial(_kernel, chunk=chunk, block=block),
        out_shape=(jax.ShapeDtypeStruct((r, d, d), jnp.float32), jax.ShapeDtypeStruct((r, d), jnp.float32)),
        grid=(pl.cdiv(r, STEP_ROWS), other.shape[1] // block),
        in_specs=[
            pl.BlockSpec((1, 1, STEP_ROWS), lambda row, _: (row, BLOCK_ZERO, BLOCK_ZERO), memory_space=pltpu.SMEM),
            entries_in(pltpu.SMEM),
            entries_in(pltpu.VMEM),
            entries_in(pltpu.VMEM),
            pl.BlockSpec(memory_space=pl.ANY),
        ],
        out_specs=(
            pl.BlockSpec((STEP_ROWS, d, d), lambda row, _: (row, BLOCK_ZERO, BLOCK_ZERO)),
            pl.BlockSpec((STEP_ROWS, d), lambda row, _: (row, BLOCK_ZERO)),
        ),
        scratch_shapes=[pltpu.VMEM((2, chunk, d), jnp.float32), pltpu.SemaphoreType.DMA((2,))],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="normal_equations",
    )
    # Sequential under vmap: Pallas' own rule would cut the table in HBM into blocks, which Mosaic refuses.
    equations: Any = jax.custom_batching.sequential_vmap(call)
    # float32, because a single row of half precision cannot be copied
    return equations(count, other, weight, target, table.astype(jnp.float32))


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
    """Adds the entries of 8 rows, chunk by chunk, the copies of one chunk overlapping the products of the one before::

    step              0              1              2
    features[0]       wait, add      copies of 2    wait, add
    features[1]       copies of 1    wait, add      copies of 3
    """
    chunks = block // chunk

    @pl.when(pl.program_id(1) == 0)
    def clear() -> None:
        gram[:] = jnp.zeros(gram.shape, gram.dtype)
        rhs[:] = jnp.zeros(rhs.shape, rhs.dtype)

    def position(step: Any) -> tuple[Any, Any, Any, Any]:
        """A step's row, its first entry, how many entries it copies, and its half of the buffer."""
        # div and rem, not // and %: these need a number's sign, which cannot be lowered where no TPU is known
        row, first = jax.lax.div(step, jnp.int32(chunks)), jax.lax.rem(step, jnp.int32(chunks)) * chunk
        used = jnp.clip(count[0, 0, row] - pl.program_id(1) * block - first, 0, chunk)
        return row, first, used, jax.lax.rem(step, jnp.int32(2))

    def copy(step: Any, entry: Any) -> Any:
        row, first, _, half = position(step)
        source = table.at[pl.ds(other[row, first + entry], 1)]
        return pltpu.make_async_copy(source, features.at[half, pl.ds(entry, 1)], arrived.at[half])

    def start(step: Any) -> None:
        jax.lax.fori_loop(jnp.int32(0), position(step)[2], lambda entry, _: copy(step, entry).start(), None)

    def add(step: Any, _: None) -> None:
        @pl.when(step + 1 < STEP_ROWS * chunks)
        def start_next() -> None:
            start(step + 1)

        row, first, used, half = position(step)
        jax.lax.fori_loop(jnp.int32(0), used, lambda entry, _: copy(step, entry).wait(), None)

        @pl.when(used > 0)
        def accumulate() -> None:
            entries = pl.ds(pl.multiple_of(first, chunk), chunk)
            # a single sublane cannot be read
            row_mask = jax.lax.broadcasted_iota(jnp.int32, (STEP_ROWS, chunk), 0) == row
            chunk_weight = jnp.sum(jnp.where(row_mask, weight[:, entries], 0), axis=0, keepdims=True)  # [1, chunk]
            chunk_target = jnp.sum(jnp.where(row_mask, target[:, entries], 0), axis=0, keepdims=True)
            # by columns, so that weights and mask lie along the lanes; entries that were not copied hold anything
            x = jnp.where(chunk_weight != 0, features[half].T, 0)  # [d, chunk]
            gram[row] += _product(x * chunk_weight, x)
            rhs[pl.ds(row, 1)] += _product(chunk_target, x)

    start(jnp.int32(0))
    jax.lax.fori_loop(jnp.int32(0), jnp.int32(STEP_ROWS * chunks), add, None)  # int32 with x64 enabled too


def _product(a: Array, b: Array) -> Array:
    """A b', both by columns."""
    along = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(a, b, along, precision=HIGHEST, preferred_element_type=jnp.float32)
