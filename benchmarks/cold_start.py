"""What the first fit of a process waits for: seconds that ALS spends tracing and compiling, and memory, per data set.

Each cell is a fresh process without a compilation cache. It fits one sweep twice: what the first fit takes more than
the second is what it waits for, since a second fit of the same shapes compiles nothing. A fit draws its initial factors
and computes the objective before its sweep, so that three programs of some size are compiled: the objective, the users'
and the items' half of a sweep. For an H100 see `benchmarks.aot`, which compiles without running.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from benchmarks import harness, inputs
from experiments import harness as experiment
from jaxrec import data, solvers
from jaxrec.types import Ratings

COLUMNS = ("data", "feedback", "cg_steps", "buckets", "waits s", "sweep s", "GiB")


@dataclass(frozen=True)
class Settings:
    """Which data and solvers. cg_steps of 0 are exact sweeps."""

    data: tuple[str, ...] = ("ml-100k", "ml-1m", "drawn")  # names that data.load knows, or 'drawn'
    path: str = ""  # the folder of their files; '' searches the usual places
    n_users: int = 138_493  # of the drawn ratings
    n_items: int = 26_744
    ratings: int = 20_000_000
    feedback: tuple[str, ...] = ("explicit", "implicit")
    cg_steps: tuple[int, ...] = (0, 3)
    rank: int = 64
    timeout: float = 900.0
    seed: int = 0
    out: str = "results"


def main(settings: Settings) -> dict[str, Any]:
    """Measures each cell in a process of its own; returns what it wrote to OUT/cold_start.json."""
    start, rows = time.perf_counter(), []
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    with tempfile.TemporaryDirectory() as folder:
        for name in settings.data:
            if name == "drawn":
                sizes = settings.n_users, settings.n_items, settings.ratings
                inputs.draw_ratings(Path(folder), *sizes, seed=settings.seed)
            for feedback in settings.feedback:
                for cg_steps in settings.cg_steps:
                    cell = settings.__dict__ | {"data": name, "feedback": feedback, "cg_steps": cg_steps}
                    answer = harness.in_fresh_process(
                        __spec__.name,
                        cell | {"folder": folder},
                        timeout=settings.timeout,
                        env=env | {"JAX_NUM_CPU_DEVICES": "1"},  # what a user has who sets nothing
                    )
                    if "failed" in answer:
                        raise RuntimeError(f"{name}, {feedback}, {cg_steps} steps: {answer['failed']}")
                    rows.append(answer)
    experiment.table([{name: row[name] for name in COLUMNS} for row in rows])
    return experiment.report("cold_start", settings, {"rows": rows}, time.perf_counter() - start)


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Fits one sweep twice; called in its own process."""
    ratings = _ratings(cell)
    sides = data.rows(ratings, "user"), data.rows(ratings, "item")
    options: dict[str, Any] = {
        "rank": cell["rank"],
        "key": jax.random.key(cell["seed"]),
        "sweeps": 1,
        "cg_steps": cell["cg_steps"] or None,
        "progress": False,
    }

    def fit() -> float:
        start = time.perf_counter()
        if cell["feedback"] == "explicit":
            result = solvers.als(sides, l2=12.0, l2_bias=12.0, **options)
        else:
            result = solvers.implicit_als(sides, l2=1.0, unobserved_weight=0.1, **options)
        jax.block_until_ready(result.factors)
        return time.perf_counter() - start

    first, second = fit(), fit()
    return {
        "data": cell["data"],
        "feedback": cell["feedback"],
        "cg_steps": cell["cg_steps"],
        "buckets": [len(side.buckets) for side in sides],
        "waits s": first - second,
        "sweep s": second,
        "GiB": harness.peak_resident() / 2**30,
    }


def _ratings(cell: dict[str, Any]) -> Ratings:
    if cell["data"] == "drawn":
        return inputs.load_ratings(Path(cell["folder"]) / "ratings.npz")
    return inputs.load_dataset(cell["data"], path=cell["path"], seed=cell["seed"]).ratings


if __name__ == "__main__":
    if not harness.serve(measure):
        experiment.run(main, Settings)
