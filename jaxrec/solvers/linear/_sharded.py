"""The primal form over several devices: each has a block of the items' columns of the Gram matrix and of the weights.

The interactions are on every device. A device computes the columns of its own items, and the inverse exchanges panels
of 256 columns: n_items^2 numbers are sent in all. Scores of a history are a sum over devices of their columns' parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrec.kernels.chunks import by_chunks
from jaxrec.kernels.csr import csr_matmul
from jaxrec.models.linear import Histories, history_columns, transposed
from jaxrec.solvers.linear._inverse import Inverse, inverse_of_columns
from jaxrec.solvers.linear._matrices import COLUMNS

__all__ = ["mesh_of", "replicated", "sharded_weights"]

AXIS = "items"


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """The devices in a row.

    Raises:
        ValueError: no devices, or one is repeated.
    """
    if not devices or len(set(devices)) < len(devices):
        raise ValueError(f"devices: expected distinct devices, at least one, got {devices}. Try jax.devices().")
    return Mesh(np.array(devices), (AXIS,))


def replicated(tree: Any, mesh: Mesh) -> Any:
    """The same arrays on every device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def sharded_weights(interactions: Histories, l2: Array, mesh: Mesh, *, zero_diagonal: bool) -> Inverse:
    """(W' [n_items, n_items rounded up to a multiple of the devices], columns on their devices; the pivot ratio).

    Columns beyond n_items are of items without interactions.
    """
    r, by_item = replicated(interactions, mesh), replicated(transposed(interactions), mesh)
    return _weights(r, by_item, jax.device_put(l2, NamedSharding(mesh, P())), mesh=mesh, zero_diagonal=zero_diagonal)


@partial(jax.jit, static_argnames=("mesh", "zero_diagonal"))
def _weights(r: Histories, by_item: Histories, l2: Array, *, mesh: Mesh, zero_diagonal: bool) -> Inverse:
    m = r.n_items
    count = -(-m // mesh.size)  # columns of a device

    def own_columns(r: Histories, by_item: Histories, l2: Array) -> tuple[Array, Array]:
        def gram_rows(items: Array) -> Array:
            columns = history_columns(by_item, jnp.minimum(items, m - 1))
            columns = jnp.where(items[None, :] < m, columns, 0)
            rows = csr_matmul(r.item_start, r.user_by_item, r.weight_by_item, columns).T
            return jnp.pad(rows, ((0, 0), (0, count * mesh.size - m)))

        local = jnp.arange(count, dtype=jnp.int32)
        item = jax.lax.axis_index(AXIS).astype(jnp.int32) * count + local
        columns = by_chunks(gram_rows, item, COLUMNS).T
        p, ratio = inverse_of_columns(columns.at[item, local].add(l2), AXIS)
        own = p[item, local]
        if zero_diagonal:
            diagonal = jax.lax.psum(jnp.zeros(len(p), p.dtype).at[item].set(own), AXIS)
            weight = (-p / diagonal[:, None]).at[item, local].set(0)
        else:
            weight = (-l2 * p).at[item, local].set(1 - l2 * own)
        return weight[:m], ratio

    # check_vma=False: JAX does not infer that the pivot ratio is equal on all devices
    on_all = jax.shard_map(
        own_columns, mesh=mesh, in_specs=(P(), P(), P()), out_specs=(P(None, AXIS), P()), check_vma=False
    )
    return Inverse(*on_all(r, by_item, l2))
