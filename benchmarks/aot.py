"""Does the library compile for TPUs and an H100, and what memory does it need there? No such device is needed.

`make aot` runs it where libtpu and CUDA's compiler are installed. Programs are compiled, not run.

For TPUs it compiles the kernels: libtpu raises for kernels that do not fit in VMEM and for operations that Mosaic does
not have. Every kernel is compiled at sizes that take each of its paths. Temporaries are the bytes held in HBM besides
arguments and results. On the first chip a plain XLA implementation is compiled as well, for comparison. It computes
everything at once; the library's own XLA implementations work in blocks and hold less.

For an H100 it compiles the functions that users call, at the sizes that the suite measures, and counts the kernels that
they would launch (`benchmarks.launches`), as an estimate of their time without a device.

The exit status is 1 if something does not compile or misses a limit: an exact sweep over 20M ratings at d = 64 takes at
most 200 loop trips and 12 GB of temporaries, and calls cuSOLVER; 100M ratings at d = 128 fit in 80 GB; the gradient has
no sort and no cuSPARSE call.
"""

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # do not search for a TPU

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks import shapes
from benchmarks.launches import Launches, count
from jaxrec import data, losses, models, solvers, training
from jaxrec.kernels.rank_by_count import ranks
from jaxrec.kernels.topk import GROUP_ITEMS
from jaxrec.kernels.tpu_cost import cost_and_sums, logistic
from jaxrec.kernels.tpu_gram import tpu_normal_equations
from jaxrec.kernels.tpu_topk import group_maxima
from jaxrec.retrieval import quantized, top_k
from jaxrec.solvers import ridge
from jaxrec.types import Factors, Observed

# What XLA needs to know of a GPU that is not available: NVIDIA's figures for an H100 SXM.
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
    """Compiles everything, prints a line for each, returns the number of failures."""
    failed = 0
    for chip, x64 in RUNS:
        try:
            device: Any = topologies.get_topology_desc(platform="tpu", topology_name=chip).devices[0]
        except Exception as error:  # of any type: libtpu is not installed, or does not know the chip
            sys.exit(f"{chip}: no compiler for it ({str(error).splitlines()[0]}). Try: make aot")
        sharding = SingleDeviceSharding(device)
        struct = lambda *shape, dtype=jnp.float32, on=sharding: jax.ShapeDtypeStruct(shape, dtype, sharding=on)
        print(f"\n{device.device_kind} ({chip}){', x64 enabled' if x64 else ''}")
        for name, kernel, plain, arguments in _cases(struct):
            with jax.enable_x64(x64):  # integers are then int64 by default, which Mosaic often does not support
                summary, compiles = _compiled(kernel, arguments)
            failed += not compiles
            print(f"  {name:<58} {summary}", flush=True)
            if (chip, x64) == RUNS[0]:
                print(f"  {'  plainly, by XLA':<58} {_compiled(plain, arguments)[0]}", flush=True)
    return failed + _for_h100()


def _for_h100() -> int:
    """Number of the library's functions that do not compile for an H100, or miss a limit."""
    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    except Exception as error:  # the plugin is not installed
        sys.exit(f"H100: no compiler for it ({str(error).splitlines()[0]}). Try: make aot")
    device: Any = topology.devices[0]
    sharding = SingleDeviceSharding(device)
    on_device = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    print(f"\n{device.device_kind}")
    failed = 0
    for name, function, arguments, limits in _uses():
        summary, compiles = _compiled(function, jax.tree.map(on_device, arguments), limits)
        failed += not compiles
        print(f"  {name:<50} {summary}", flush=True)
    return failed


@dataclass(frozen=True)
class Limits:
    """Limits of a program for an H100.

    Attributes:
        trips: the largest number of loop trips.
        memory: the largest number of bytes of arguments, results and temporaries together.
        temporaries: the largest number of bytes of temporaries.
        has: names that must occur in the compiled text.
        lacks: names that must not occur in it.
    """

    trips: float = math.inf
    memory: float = 80e9
    temporaries: float = math.inf
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    def missed(self, memory: Any, launched: Launches, text: str) -> list[str]:
        """A message for each limit that the program misses."""
        sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
        return [
            *([f"{launched.trips} trips, not {self.trips}"] if launched.trips > self.trips else []),
            *([f"{sum(sizes) / 1e9:.1f} GB, not {self.memory / 1e9:.0f}"] if sum(sizes) > self.memory else []),
            *([f"{sizes[2] / 1e9:.1f} GB of temporaries"] if sizes[2] > self.temporaries else []),
            *(f"no {name}" for name in self.has if name not in text),
            *(f"{name} in it" for name in self.lacks if name in text),
        ]


def _uses() -> list[tuple[str, Callable[..., Any], tuple[Any, ...], Limits]]:
    """(name, function, arguments, limits) of the operations that the suite measures."""
    sizes, large_sizes = (138_493, 26_744), (1_000_000, 100_000)
    sides, large_sides = shapes.rows(*sizes, 20_000_000), shapes.rows(*large_sizes, 100_000_000)
    linked = shapes.linked(*sizes, 20_000_000)
    with_biases, without_biases = (partial(shapes.factors, *sizes, biases=biases) for biases in (True, False))
    small = models.init(943, 1682, 8, key=jax.random.key(0), mu=3.5)
    dense = data.dense(data.synthetic.low_rank(943, 1682, 100_000, rng=0).ratings)
    queries = lambda n, m: (shapes.f32((n, 32)), shapes.f32((m, 32)))
    index = jax.eval_shape(quantized.quantize, shapes.f32((10_000_000, 32)))
    gradient = partial(losses.closed_form.value_and_gradient, l2=0.1)
    autodiff = jax.value_and_grad(partial(losses.cost, l2=0.1))
    observed = lambda factors, linked: autodiff(factors, Observed(linked.user, linked.item, linked.value, linked.where))
    explicit, implicit = (
        partial(solvers.sweep, l2=12.0, l2_bias=12.0),
        partial(solvers.implicit_sweep, l2=1.0, unobserved_weight=0.1),
    )
    search = lambda queries, items: top_k(queries, items, 100)
    rank_items = lambda scores, ids: ranks(scores, ids, 100)
    rank_arguments = jax.ShapeDtypeStruct((3706, 6040), jnp.float32), jax.ShapeDtypeStruct((32, 6040), jnp.int32)
    exact = Limits(trips=200, temporaries=12e9, has=("cusolver",))
    steps = Limits(trips=200, temporaries=1e9)  # 512 MiB of features once: no copy in another order
    no_sort = Limits(trips=0, lacks=("sort(", "cusparse", "_csr_to_coo"))
    dense_sweep = partial(solvers.dense_sweep, l2=8.0, l2_bias=3.0)
    epoch = jax.jit(partial(_epoch, batch_size=4096))
    movielens = lambda n_users, n_items, n: (
        shapes.factors(n_users, n_items, 64, biases=True),
        *shapes.rows(n_users, n_items, n),
    )
    return [
        ("explicit ALS sweep, ml-100k's size, d = 64, exact", explicit, movielens(943, 1682, 100_000), Limits()),
        ("explicit ALS sweep, ml-1m's size, d = 64, exact", explicit, movielens(6040, 3706, 1_000_209), Limits()),
        ("explicit ALS sweep, 20M, d = 64, exact", explicit, (with_biases(64), *sides), exact),
        (
            "explicit ALS sweep, 20M, d = 64, 3 CG steps",
            partial(explicit, cg_steps=3),
            (with_biases(64), *sides),
            steps,
        ),
        ("implicit ALS sweep, 20M, d = 64, exact", implicit, (without_biases(64), *sides), exact),
        (
            "implicit ALS sweep, 20M, d = 64, 3 CG steps",
            partial(implicit, cg_steps=3),
            (without_biases(64), *sides),
            steps,
        ),
        ("implicit ALS sweep, 20M, d = 128, exact", implicit, (without_biases(128), *sides), Limits(has=("cusolver",))),
        (
            "implicit ALS sweep, 100M, d = 128, exact",
            implicit,
            (shapes.factors(*large_sizes, 128, biases=False), *large_sides),
            Limits(),
        ),
        ("value and gradient, Linked, 20M, d = 32", gradient, (with_biases(32), linked), no_sort),
        ("value and gradient, autodiff, 20M, d = 32", observed, (with_biases(32), linked), Limits()),
        ("value and gradient, Dense, 943 x 1682, d = 8", gradient, (small, dense), Limits(trips=0)),
        ("dense ALS sweep, 943 x 1682, d = 8", dense_sweep, (small, dense), Limits(trips=0)),
        ("top 100 of 1M x 32, 64 queries", search, queries(64, 1_000_000), Limits(trips=0)),
        ("top 100 of 10M x 32, 64 queries", search, queries(64, 10_000_000), Limits(trips=10)),
        ("top 100 of 10M x 32, 1 query", search, queries(1, 10_000_000), Limits(trips=10)),
        ("top 100 of 10M x 32, 1 query, 8 bits first", search, (queries(1, 1)[0], index), Limits()),
        ("ranks of 32 in 3,706, 6,040 users", rank_items, rank_arguments, Limits(trips=0)),
        ("an epoch of 1M ratings by 4,096", epoch, (with_biases(32), shapes.observed(1_000_000)), Limits(trips=245)),
    ]


def _epoch(factors: Factors, ratings: Observed, *, batch_size: int) -> Any:
    step = training.make_step(lambda factors, batch: losses.cost(factors, batch, l2=0.1), optimizer := optax.adam(0.01))
    key, state = jax.random.key(0), training.init_state(factors, optimizer)
    return training.epochs(step, state, ratings, batch_size=batch_size, key=key, epochs=1)


def _compiled(
    function: Callable[..., Any], arguments: tuple[Any, ...], limits: Limits | None = None
) -> tuple[str, bool]:
    """(summary, whether it compiles and keeps the limits).

    The summary has the memory, with limits also the launches, or the reason of the failure.
    """
    try:
        start = time.perf_counter()
        compiled = jax.jit(function).trace(*arguments).lower().compile()
    except Exception as error:  # every pass of the compiler raises its own type
        return f"FAILED: {' '.join(str(error).split())[:300]}", False
    seconds, memory = time.perf_counter() - start, cast(Any, compiled.memory_analysis())
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    sizes = "  ".join(f"{name} {size / 2**20:8,.1f} MiB" for name, size in parts.items())
    if limits is None:
        return f"ok  {sizes}  (compiled in {seconds:.1f} s)", True
    text = compiled.as_text()
    launched = count(text)
    missed = limits.missed(memory, launched, text)
    loops = f"{launched.kernels:6,} launches, {launched.trips:4,} trips" + (", more" if launched.unknown else "")
    return f"{'MISSED: ' + ', '.join(missed) if missed else 'ok'}  {sizes}  {loops}  ({seconds:.1f} s)", not missed


def _cases(struct: Struct) -> list[tuple[str, Callable[..., Any], Callable[..., Any], tuple[Any, ...]]]:
    """(name, kernel, plain implementation, arguments): ragged sizes, multiples of a tile, long rows."""
    cases: list[tuple[str, Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = []
    for n, m, d in [(64, 1_000_001, 32), (1000, 100_001, 128), (300, 10_001, 2048), (1, 50, 3)]:
        arrays: tuple[Any, ...] = (struct(n, d), struct(m, d), struct(m, dtype=bool))
        cases.append((f"group_maxima, {n} queries, {m} x {d}", group_maxima, _group_maxima, arrays))
    for r, length, d in [(10_001, 300, 128), (100_001, 16, 33), (50, 20_000, 64), (9, 200, 256)]:
        ratings = struct(r, length, dtype=jnp.int32), struct(r, length), struct(r, length, dtype=bool)
        arrays = struct(100_000, d), *ratings
        cases.append(
            (f"tpu_normal_equations, {r} rows of {length}, d = {d}", tpu_normal_equations, _normal_equations, arrays)
        )
    for n_items, n_users, d in [(10_001, 20_001, 32), (1682, 943, 10), (2000, 3000, 510)]:
        tables = struct(n_users, d), struct(n_users), struct(n_items, d), struct(n_items)
        arrays = *tables, struct(n_items, n_users), struct(n_items, n_users, dtype=bool)
        name = f"cost_and_sums (logistic), {n_items} x {n_users}, d = {d}"
        cases.append((name, partial(cost_and_sums, loss=logistic), _cost, arrays))
    return cases


def _group_maxima(queries: Array, items: Array, allowed: Array) -> Array:
    scores = jnp.matmul(items, queries.T, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.where(allowed[:, None], scores, -jnp.inf)
    padded = jnp.pad(scores, ((0, -len(items) % GROUP_ITEMS), (0, 0)), constant_values=-jnp.inf)
    return jnp.max(padded.reshape(-1, GROUP_ITEMS, len(queries)), axis=1)


def _normal_equations(table: Array, other: Array, value: Array, where: Array) -> ridge.NormalEquations:
    return jax.vmap(lambda other, value, where: ridge.normal_equations(table[other], value, where))(other, value, where)


def _cost(w: Array, b: Array, x: Array, c: Array, value: Array, where: Array) -> tuple[Array, ...]:
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    loss, slope = logistic(product(x, w.T) + b[None, :] + c[:, None], value)
    e = jnp.where(where, slope, 0)
    return jnp.sum(loss, where=where), product(e.T, x), jnp.sum(e, axis=0), product(e, w), jnp.sum(e, axis=1)


if __name__ == "__main__":
    sys.exit(main() > 0)
