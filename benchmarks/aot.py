"""Does the library compile for TPUs and an H100, and what memory does it need there? No such device is needed.

`make aot` runs it where libtpu and CUDA's compiler are installed. For TPUs it compiles the kernels: libtpu refuses what
does not fit in VMEM and what Mosaic has not. Every kernel is compiled at sizes that take each of its paths. Temporaries
are what is held in HBM beside arguments and results. First the same is also compiled written plainly, for comparison:
all at once, where the library's own XLA forms go in blocks and hold less. For an H100 it compiles what users call,
plain XLA there. Nothing is run. Exit status 1 where something does not compile.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no TPU is looked for

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from jaxrec import data, losses, models, solvers
from jaxrec.kernels.rank import ranks
from jaxrec.kernels.topk import GROUP
from jaxrec.kernels.tpu_cost import cost_and_sums, logistic
from jaxrec.kernels.tpu_gram import normal_equations
from jaxrec.kernels.tpu_topk import group_maxima
from jaxrec.retrieval import quantized, top_k
from jaxrec.solvers import ridge

# What XLA asks of a GPU that is not there: NVIDIA's figures for an H100 SXM.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  device_memory_size: 84942979072  memory_bandwidth: 3352320000000  l2_cache_size: 52428800
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  shared_memory_per_core: 233472  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9  minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
RUNS = [("v5e:2x2", False), ("v5e:2x2", True), ("v6e:2x2", False)]  # (chip, with x64 enabled)
Struct = Callable[..., jax.ShapeDtypeStruct]  # (*shape, dtype=float32), placed on the chip


def main() -> int:
    """Compiles everything, prints a line each, returns how many kernels did not compile."""
    failed = 0
    for chip, x64 in RUNS:
        try:
            device: Any = topologies.get_topology_desc(platform="tpu", topology_name=chip).devices[0]
        except Exception as error:  # libtpu is not installed, or does not know the chip: whatever it raises
            sys.exit(f"{chip}: no compiler for it ({str(error).splitlines()[0]}). Try: make aot")
        sharding = SingleDeviceSharding(device)
        struct = lambda *shape, dtype=jnp.float32, to=sharding: jax.ShapeDtypeStruct(shape, dtype, sharding=to)
        print(f"\n{device.device_kind} ({chip}){', x64 enabled' if x64 else ''}")
        for name, kernel, plain, arguments in _cases(struct):
            with jax.enable_x64(x64):  # what is int32 by default is then int64, which Mosaic often refuses
                said, compiles = _compiled(kernel, arguments)
            failed += not compiles
            print(f"  {name:<58} {said}", flush=True)
            if (chip, x64) == RUNS[0]:
                print(f"  {'  plainly, by XLA':<58} {_compiled(plain, arguments)[0]}", flush=True)
    return failed + _for_h100()


def _for_h100() -> int:
    """How many of the library's functions do not compile for it."""
    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    except Exception as error:  # the plugin is not installed
        sys.exit(f"H100: no compiler for it ({str(error).splitlines()[0]}). Try: make aot")
    device: Any = topology.devices[0]
    sharding = SingleDeviceSharding(device)
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    print(f"\n{device.device_kind}")
    failed = 0
    for name, function, arguments in _uses():
        said, compiles = _compiled(function, jax.tree.map(place, arguments))
        failed += not compiles
        print(f"  {name:<58} {said}", flush=True)
    return failed


def _uses() -> list[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """(name, function, arguments) of what the suite measures; ratings are small, for their layouts are made."""
    ratings = data.synthetic.low_rank(20_000, 5_000, 1_000_000, rng=0).ratings
    factors = models.init(20_000, 5_000, 64, key=jax.random.key(0), mu=3.5)
    products = models.init(20_000, 5_000, 64, key=jax.random.key(0), item_bias=False)
    sides = data.rows(ratings, "user"), data.rows(ratings, "item")
    few = models.init(943, 1682, 8, key=jax.random.key(0), mu=3.5)
    dense = data.dense(data.synthetic.low_rank(943, 1682, 100_000, rng=0).ratings)
    vectors = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((10_000_000, 32), jnp.float32)
    index = jax.eval_shape(quantized.build, vectors[1])
    gradient = partial(losses.closed_form.value_and_gradient, l2=0.1)
    search = lambda queries, items: top_k(queries, items, 100)
    ranked = lambda scores, ids: ranks(scores, ids, 100)
    lists = jax.ShapeDtypeStruct((1_000_000, 64), jnp.float32), jax.ShapeDtypeStruct((32, 64), jnp.int32)
    return [
        ("value and gradient, Linked, 1M, d = 64", gradient, (factors, data.linked(ratings))),
        ("value and gradient, Dense, 943 x 1682, d = 8", gradient, (few, dense)),
        ("explicit ALS sweep, 1M, d = 64, exact", partial(solvers.sweep, l2=12.0, l2_bias=12.0), (factors, *sides)),
        ("explicit ALS sweep, 1M, d = 64, 3 CG steps", partial(solvers.sweep, l2=12.0, cg_steps=3), (factors, *sides)),
        ("implicit ALS sweep, 1M, d = 64", partial(solvers.implicit_sweep, l2=1.0, unobserved=0.1), (products, *sides)),
        ("dense ALS sweep, 943 x 1682, d = 8", partial(solvers.dense_sweep, l2=8.0, l2_bias=3.0), (few, dense)),
        ("top 100 of 10M x 32, 64 queries", search, vectors),
        ("top 100 of 10M x 32, 64 queries, 8 bits first", search, (vectors[0], index)),
        ("ranks of 32 in 1M, 64 lists", ranked, lists),
    ]


def _compiled(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, bool]:
    """What the compiler says of it: megabytes, or why not."""
    try:
        start = time.perf_counter()
        memory: Any = jax.jit(function).trace(*arguments).lower().compile().memory_analysis()
    except Exception as error:  # each pass of the compiler has its own
        return f"FAILED: {' '.join(str(error).split())[:300]}", False
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    sizes = "  ".join(f"{name} {size / 2**20:7,.1f} MiB" for name, size in parts.items())
    return f"ok  {sizes}  (compiled in {time.perf_counter() - start:.1f} s)", True


def _cases(struct: Struct) -> list[tuple[str, Callable[..., Any], Callable[..., Any], tuple[Any, ...]]]:
    """(name, kernel, plain form, arguments): ragged sizes, tables with columns or rows of whole tiles, long rows."""
    cases: list[tuple[str, Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = []
    for n, m, d in [(64, 1_000_001, 32), (1000, 100_001, 128), (300, 10_001, 2048), (1, 50, 3)]:
        arrays: tuple[Any, ...] = (struct(n, d), struct(m, d), struct(m, dtype=bool))
        cases.append((f"group_maxima, {n} queries, {m} x {d}", group_maxima, _group_maxima, arrays))
    for r, length, d in [(10_001, 300, 128), (100_001, 16, 33), (50, 20_000, 64), (9, 200, 256)]:
        ratings = struct(r, length, dtype=jnp.int32), struct(r, length), struct(r, length, dtype=bool)
        arrays = struct(100_000, d), *ratings
        cases.append((f"normal_equations, {r} rows of {length}, d = {d}", normal_equations, _equations, arrays))
    for n_items, n_users, d in [(10_001, 20_001, 32), (1682, 943, 10), (2000, 3000, 510)]:
        tables = struct(n_users, d), struct(n_users), struct(n_items, d), struct(n_items)
        arrays = *tables, struct(n_items, n_users), struct(n_items, n_users, dtype=bool)
        name = f"cost_and_sums (logistic), {n_items} x {n_users}, d = {d}"
        cases.append((name, partial(cost_and_sums, loss=logistic), _cost, arrays))
    return cases


def _group_maxima(queries: Array, items: Array, allowed: Array) -> Array:
    scores = jnp.matmul(items, queries.T, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.where(allowed[:, None], scores, -jnp.inf)
    filled = jnp.pad(scores, ((0, -len(items) % GROUP), (0, 0)), constant_values=-jnp.inf)
    return jnp.max(filled.reshape(-1, GROUP, len(queries)), axis=1)


def _equations(table: Array, other: Array, value: Array, where: Array) -> ridge.Normal:
    return jax.vmap(lambda other, value, where: ridge.normal(table[other], value, where))(other, value, where)


def _cost(w: Array, b: Array, x: Array, c: Array, value: Array, where: Array) -> tuple[Array, ...]:
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    each, slope = logistic(product(x, w.T) + b[None, :] + c[:, None], value)
    e = jnp.where(where, slope, 0)
    return jnp.sum(each, where=where), product(e.T, x), jnp.sum(e, axis=0), product(e, w), jnp.sum(e, axis=1)


if __name__ == "__main__":
    sys.exit(main() > 0)
