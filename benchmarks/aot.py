"""Does the library compile for TPUs and an H100, and what memory does it need there? No such device is needed.

`make aot` runs it where libtpu and CUDA's compiler are installed. For TPUs it compiles the kernels: libtpu refuses what
does not fit in VMEM and what Mosaic has not. Every kernel is compiled at sizes that take each of its paths. Temporaries
are what is held in HBM beside arguments and results. First the same is also compiled written plainly, for comparison:
all at once, where the library's own XLA forms go in blocks and hold less. For an H100 it compiles what users call, at
the sizes that the suite measures, and counts the kernels it would launch (`benchmarks.launches`): where no device is,
that is what its time is about. Nothing is run. Exit status 1 where something does not compile, or a bar is missed: of
an exact sweep over 20M ratings at d = 64 at most 200 loop trips and 12 GB of temporaries, by cuSOLVER; 100M ratings at
d = 128 in 80 GB; of the gradient no sort and no cuSPARSE.
"""

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no TPU is looked for

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
from jaxrec.kernels.topk import GROUP
from jaxrec.kernels.tpu_cost import cost_and_sums, logistic
from jaxrec.kernels.tpu_gram import tpu_normal_equations
from jaxrec.kernels.tpu_topk import group_maxima
from jaxrec.retrieval import quantized, top_k
from jaxrec.solvers import ridge
from jaxrec.types import Factors, Observed

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
    """How many of the library's functions do not compile for it, or miss a bar."""
    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    except Exception as error:  # the plugin is not installed
        sys.exit(f"H100: no compiler for it ({str(error).splitlines()[0]}). Try: make aot")
    device: Any = topology.devices[0]
    sharding = SingleDeviceSharding(device)
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    print(f"\n{device.device_kind}")
    failed = 0
    for name, function, arguments, bar in _uses():
        said, compiles = _compiled(function, jax.tree.map(place, arguments), bar)
        failed += not compiles
        print(f"  {name:<50} {said}", flush=True)
    return failed


@dataclass(frozen=True)
class Bar:
    """What a program for an H100 must keep to: at most so many loop trips, bytes in all and bytes of temporaries; the
    names of what must be called, and of what must not.
    """

    trips: float = math.inf
    memory: float = 80e9
    temporaries: float = math.inf
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    def missed(self, memory: Any, launched: Launches, text: str) -> list[str]:
        """What is not kept, in words."""
        sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
        found = [name for name in self.lacks if name in text]
        return [
            *([f"{launched.trips} trips, not {self.trips}"] if launched.trips > self.trips else []),
            *([f"{sum(sizes) / 1e9:.1f} GB, not {self.memory / 1e9:.0f}"] if sum(sizes) > self.memory else []),
            *([f"{sizes[2] / 1e9:.1f} GB of temporaries"] if sizes[2] > self.temporaries else []),
            *(f"no {name}" for name in self.has if name not in text),
            *(f"{name} in it" for name in found),
        ]


def _uses() -> list[tuple[str, Callable[..., Any], tuple[Any, ...], Bar]]:
    """(name, function, arguments, bar) of what the suite measures."""
    sizes, many = (138_493, 26_744), (1_000_000, 100_000)
    sides, more = shapes.rows(*sizes, 20_000_000), shapes.rows(*many, 100_000_000)
    linked = shapes.linked(*sizes, 20_000_000)
    with_biases, products = (partial(shapes.factors, *sizes, biases=biases) for biases in (True, False))
    few = models.init(943, 1682, 8, key=jax.random.key(0), mu=3.5)
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
    ranked = lambda scores, ids: ranks(scores, ids, 100)
    lists = jax.ShapeDtypeStruct((3706, 6040), jnp.float32), jax.ShapeDtypeStruct((32, 6040), jnp.int32)
    exact = Bar(trips=200, temporaries=12e9, has=("cusolver",))
    no_sort = Bar(trips=0, lacks=("sort(", "cusparse", "_csr_to_coo"))
    scan = jax.jit(partial(_epoch, batch_size=4096))
    return [
        ("explicit ALS sweep, 20M, d = 64, exact", explicit, (with_biases(64), *sides), exact),
        ("implicit ALS sweep, 20M, d = 64, exact", implicit, (products(64), *sides), exact),
        (
            "implicit ALS sweep, 20M, d = 64, 3 CG steps",
            partial(implicit, cg_steps=3),
            (products(64), *sides),
            Bar(200),
        ),
        ("implicit ALS sweep, 20M, d = 128, exact", implicit, (products(128), *sides), Bar(has=("cusolver",))),
        (
            "implicit ALS sweep, 100M, d = 128, exact",
            implicit,
            (shapes.factors(*many, 128, biases=False), *more),
            Bar(),
        ),
        ("value and gradient, Linked, 20M, d = 32", gradient, (with_biases(32), linked), no_sort),
        ("value and gradient, autodiff, 20M, d = 32", observed, (with_biases(32), linked), Bar()),
        ("value and gradient, Dense, 943 x 1682, d = 8", gradient, (few, dense), Bar(trips=0)),
        ("dense ALS sweep, 943 x 1682, d = 8", partial(solvers.dense_sweep, l2=8.0, l2_bias=3.0), (few, dense), Bar(0)),
        ("top 100 of 1M x 32, 64 queries", search, queries(64, 1_000_000), Bar(trips=0)),
        ("top 100 of 10M x 32, 64 queries", search, queries(64, 10_000_000), Bar(trips=10)),
        ("top 100 of 10M x 32, 1 query", search, queries(1, 10_000_000), Bar(trips=10)),
        ("top 100 of 10M x 32, 1 query, 8 bits first", search, (queries(1, 1)[0], index), Bar()),
        ("ranks of 32 in 3,706, 6,040 users", ranked, lists, Bar(trips=0)),
        ("an epoch of 1M ratings by 4,096", scan, (with_biases(32), shapes.observed(1_000_000)), Bar(trips=245)),
    ]


def _epoch(factors: Factors, ratings: Observed, *, batch_size: int) -> Any:
    step = training.make_step(lambda factors, batch: losses.cost(factors, batch, l2=0.1), optimizer := optax.adam(0.01))
    key, state = jax.random.key(0), training.init_state(factors, optimizer)
    return training.epochs(step, state, ratings, batch_size=batch_size, key=key, epochs=1)


def _compiled(function: Callable[..., Any], arguments: tuple[Any, ...], bar: Bar | None = None) -> tuple[str, bool]:
    """What the compiler says of it: megabytes, launches where there is a bar, or why not."""
    try:
        start = time.perf_counter()
        compiled = jax.jit(function).trace(*arguments).lower().compile()
    except Exception as error:  # each pass of the compiler has its own
        return f"FAILED: {' '.join(str(error).split())[:300]}", False
    seconds, memory = time.perf_counter() - start, cast(Any, compiled.memory_analysis())
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    sizes = "  ".join(f"{name} {size / 2**20:8,.1f} MiB" for name, size in parts.items())
    if bar is None:
        return f"ok  {sizes}  (compiled in {seconds:.1f} s)", True
    text = compiled.as_text()
    launched = count(text)
    missed = bar.missed(memory, launched, text)
    loops = f"{launched.kernels:6,} launches, {launched.trips:4,} trips" + (", more" if launched.unknown else "")
    return f"{'MISSED: ' + ', '.join(missed) if missed else 'ok'}  {sizes}  {loops}  ({seconds:.1f} s)", not missed


def _cases(struct: Struct) -> list[tuple[str, Callable[..., Any], Callable[..., Any], tuple[Any, ...]]]:
    """(name, kernel, plain form, arguments): ragged sizes, tables with columns or rows of whole tiles, long rows."""
    cases: list[tuple[str, Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = []
    for n, m, d in [(64, 1_000_001, 32), (1000, 100_001, 128), (300, 10_001, 2048), (1, 50, 3)]:
        arrays: tuple[Any, ...] = (struct(n, d), struct(m, d), struct(m, dtype=bool))
        cases.append((f"group_maxima, {n} queries, {m} x {d}", group_maxima, _group_maxima, arrays))
    for r, length, d in [(10_001, 300, 128), (100_001, 16, 33), (50, 20_000, 64), (9, 200, 256)]:
        ratings = struct(r, length, dtype=jnp.int32), struct(r, length), struct(r, length, dtype=bool)
        arrays = struct(100_000, d), *ratings
        cases.append((f"tpu_normal_equations, {r} rows of {length}, d = {d}", tpu_normal_equations, _equations, arrays))
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
    return jax.vmap(lambda other, value, where: ridge.normal_equations(table[other], value, where))(other, value, where)


def _cost(w: Array, b: Array, x: Array, c: Array, value: Array, where: Array) -> tuple[Array, ...]:
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    each, slope = logistic(product(x, w.T) + b[None, :] + c[:, None], value)
    e = jnp.where(where, slope, 0)
    return jnp.sum(each, where=where), product(e.T, x), jnp.sum(e, axis=0), product(e, w), jnp.sum(e, axis=1)


if __name__ == "__main__":
    sys.exit(main() > 0)
