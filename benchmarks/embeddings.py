"""What does a minibatch cost on embedding tables of a million rows, with lazy updates or with Adam on the full table?

Two tables of d columns, a minibatch of (user, item) pairs, squared error of their dot products, Adam. The steps run in
one scan on the device with the state donated. Lazy steps (`training.lazy`) read and write only the rows in the batch;
dense steps (`training.make_step`) read and write the full tables and their moments. Before anything is timed, one step
of each from zero moments is compared: they must agree on the rows in the batch.
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

STEPS = {"lazy": 200, "dense": 10}  # in one timed run; dense steps take a thousand times as long
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
    shared = {"repeats": settings.repeats, "seed": settings.seed}
    rows = [c | harness.in_fresh_process(__spec__.name, c | shared, timeout=settings.timeout) for c in cells]
    if wrong := [row for row in rows if row.get("wrong")]:
        raise RuntimeError(f"cells that failed for another reason than memory or time: {wrong}")
    experiment.table(table := _table(rows, settings))
    return experiment.report("embeddings", settings, {"rows": rows, "table": table}, time.perf_counter() - start)


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Measures the milliseconds of a step; called in its own process."""
    check(cell)
    init, run = _steps(cell["step"])
    tables, batches = _draw(cell, STEPS[cell["step"]])
    step = lambda state, batch: run(state, batch, key=jax.random.key(0))
    scan = jax.jit(partial(jax.lax.scan, step), donate_argnums=0)
    state, _ = scan(init(tables), batches)
    milliseconds = []
    for _ in range(cell["repeats"]):
        jax.block_until_ready(state)
        began = time.perf_counter()
        state, _ = jax.block_until_ready(scan(state, batches))
        milliseconds.append(1e3 * (time.perf_counter() - began) / STEPS[cell["step"]])
    return {"ms": float(np.median(milliseconds)), "fastest": min(milliseconds), "slowest": max(milliseconds)}


def check(cell: dict[str, Any]) -> None:
    """Raises unless the rows in a batch are equal after a lazy and after a dense step."""
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
    """(function from tables to the initial state, step)."""
    error = lambda user, item: jnp.mean((jnp.sum(user * item, axis=1) - 1) ** 2)
    if name == "lazy":
        ids = lambda batch: {side: (batch[side], jnp.ones(batch[side].shape, bool)) for side in ("user", "item")}
        row_cost = lambda params, rows, batch: error(rows["user"], rows["item"])
        init = lambda tables: training.lazy.init_state((), tables, OPTIMIZER)
        return init, training.lazy.make_step(row_cost, OPTIMIZER, ids)
    cost = lambda params, batch: error(*(gather(params[side], batch[side]) for side in ("user", "item")))
    return lambda tables: training.init_state(tables, OPTIMIZER), training.make_step(cost, OPTIMIZER)


def _draw(cell: dict[str, Any], steps: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """(tables, batches of ids with a leading axis of steps)."""
    rng = np.random.default_rng(cell["seed"])
    table = lambda: jnp.asarray(0.1 * rng.standard_normal((cell["rows"], cell["dim"]), np.float32))
    ids = lambda: jnp.asarray(rng.integers(0, cell["rows"], (steps, cell["batch"]), np.int32))
    return {"user": table(), "item": table()}, {"user": ids(), "item": ids()}


def _table(rows: list[dict[str, Any]], settings: Settings) -> list[dict[str, Any]]:
    """Milliseconds by number of rows, and the ratio of the last number to the first."""
    out = []
    for step in STEPS:
        for batch in settings.batches:
            cells = [row for row in rows if (row["step"], row["batch"]) == (step, batch)]
            line: dict[str, Any] = {"step": step, "batch": batch}
            line |= {f"{row['rows']:,} rows, ms": row.get("ms", row.get("failed")) for row in cells}
            both = "ms" in cells[0] and "ms" in cells[-1]
            out.append(line | {"last / first": cells[-1]["ms"] / cells[0]["ms"] if both else "-"})
    return out


if __name__ == "__main__":
    if not harness.serve(measure):
        experiment.run(main, Settings)
