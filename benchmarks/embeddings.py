"""What does a minibatch cost on embedding tables of a million rows: lazy rows, or Adam on the whole table?

Two tables of d columns, a minibatch of (user, item) pairs, squared error of their dot products, Adam; steps run in one
scan on the device, the state donated. Lazy steps (`training.lazy`) read and write the rows that the batch names; dense
steps (`training.make_step`) the whole tables, moments and all. Both are checked on one step from zero moments, where
they must agree on the named rows, before anything is timed.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from benchmarks import harness
from experiments import harness as experiment
from jaxrec import training
from jaxrec.gather import gather

STEPS = {"lazy": 200, "dense": 10}  # in one timed run: dense ones take a thousand times as long
OPTIMIZER = optax.adam(1e-2)


@dataclass(frozen=True)
class Settings:
    """Sizes."""

    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)  # of each of the two tables
    batches: tuple[int, ...] = (256, 1024, 4096)
    dim: int = 32
    repeats: int = 5
    timeout: float = 300.0
    seed: int = 0
    out: str = "results"


def main(settings: Settings) -> dict[str, Any]:
    """Measures every cell, prints the table; returns what it wrote to OUT/embeddings.json."""
    start = time.perf_counter()
    cells = [
        {"step": step, "batch": batch, "rows": rows, "dim": settings.dim}
        for step in STEPS
        for batch in settings.batches
        for rows in settings.rows
    ]
    asked = {"repeats": settings.repeats, "seed": settings.seed}
    rows = [c | harness.in_fresh_process(__spec__.name, c | asked, timeout=settings.timeout) for c in cells]
    if wrong := [row for row in rows if row.get("wrong")]:
        raise RuntimeError(f"cells that failed for another reason than memory or time: {wrong}")
    experiment.table(table := _table(rows, settings))
    return experiment.report("embeddings", settings, {"rows": rows, "table": table}, time.perf_counter() - start)


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a step, in its own process."""
    check(cell)
    init, run = _steps(cell["step"])
    tables, batches = _draw(cell, STEPS[cell["step"]])
    many = jax.jit(
        partial(jax.lax.scan, lambda state, batch: run(state, batch, key=jax.random.key(0))), donate_argnums=0
    )
    state, _ = many(init(tables), batches)
    taken = []
    for _ in range(cell["repeats"]):
        jax.block_until_ready(state)
        began = time.perf_counter()
        state, _ = jax.block_until_ready(many(state, batches))
        taken.append(1e3 * (time.perf_counter() - began) / STEPS[cell["step"]])
    return {"ms": float(np.median(taken)), "fastest": min(taken), "slowest": max(taken)}


def check(cell: dict[str, Any]) -> None:
    """The rows that one step names are the same after a lazy and after a dense one; raises where not."""
    tables, batches = _draw(cell, 1)
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    after = {}
    for name in STEPS:
        init, run = _steps(name)
        state, _ = jax.jit(run)(init(tables), batch, key=jax.random.key(0))
        params = state.params[1] if name == "lazy" else state.params
        after[name] = [np.asarray(gather(params[side], batch[side])) for side in ("user", "item")]
    for lazy, dense in zip(after["lazy"], after["dense"], strict=True):
        np.testing.assert_allclose(lazy, dense, rtol=1e-5, atol=1e-6)


def _steps(name: str) -> tuple[Any, Any]:
    """(tables -> state, step)."""
    error = lambda user, item: jnp.mean((jnp.sum(user * item, axis=1) - 1) ** 2)
    if name == "lazy":
        names = lambda batch: {side: (batch[side], jnp.ones(batch[side].shape, bool)) for side in ("user", "item")}
        cost = lambda params, rows, batch: error(rows["user"], rows["item"])
        return lambda tables: training.lazy.init_state((), tables, OPTIMIZER), training.lazy.make_step(
            cost, OPTIMIZER, names
        )
    whole = lambda params, batch: error(*(gather(params[side], batch[side]) for side in ("user", "item")))
    return lambda tables: training.init_state(tables, OPTIMIZER), training.make_step(whole, OPTIMIZER)


def _draw(cell: dict[str, Any], steps: int) -> tuple[dict[str, Array], dict[str, Array]]:
    rng = np.random.default_rng(cell["seed"])
    table = lambda: jnp.asarray(0.1 * rng.standard_normal((cell["rows"], cell["dim"]), np.float32))
    ids = lambda: jnp.asarray(rng.integers(0, cell["rows"], (steps, cell["batch"]), np.int32))
    return {"user": table(), "item": table()}, {"user": ids(), "item": ids()}


def _table(rows: list[dict[str, Any]], settings: Settings) -> list[dict[str, Any]]:
    """Milliseconds by rows of the tables, and the largest over the smallest."""
    out = []
    for step in STEPS:
        for batch in settings.batches:
            here = [row for row in rows if (row["step"], row["batch"]) == (step, batch)]
            line: dict[str, Any] = {"step": step, "batch": batch}
            line |= {f"{row['rows']:,} rows, ms": row.get("ms", row.get("failed")) for row in here}
            both = "ms" in here[0] and "ms" in here[-1]
            out.append(line | {"last / first": here[-1]["ms"] / here[0]["ms"] if both else "-"})
    return out


if __name__ == "__main__":
    if not harness.serve(measure):
        experiment.run(main, Settings)
