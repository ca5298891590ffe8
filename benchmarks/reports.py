"""Measurements without a target: towers against PyTorch, approximate search, growth, seconds to a test RMSE, and a
sweep of the Gibbs sampler.

Everything runs in fresh processes, as in `benchmarks.suite`, with peers from the same environment. `make bench` runs
both.

- towers: a step of Adam on two towers (48 and 24 features, 256-128-32) and one batch, against PyTorch, eager and
  compiled.
- approximate: FAISS's HNSW and IVF: seconds to build and to search, and the recall of the exact k best.
- growth: the gradient and ALS sweeps on 1, 2, 5 and 10 tenths of the ratings, with tables of fixed size. (The growth of
  a search is in `benchmarks.suite`: 1M and 10M items.)
- until: seconds from the ratings in memory to a test RMSE on one random 90/10 split of ml-1m, with an empty and with a
  full compilation cache. Penalties and rank are those that `experiments.published` chose on validation parts of train.
- sampler: a sweep of one chain without features (`bayes.gibbs`), and its memory. The noise of the ratings has standard
  deviation 0.5; the chain's estimate is in the table and still decreases after these few sweeps.
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import gradients, harness, inputs
from experiments import harness as experiment
from jaxrec import bayes, data, models, solvers, training
from jaxrec.losses.content import two_tower
from jaxrec.models.two_tower import TwoTower

REPORTS = ("towers", "approximate", "growth", "until", "sampler")
FEATURES = {"user_features": 48, "item_features": 24}
# name -> (FAISS's name of the index, its parameters for building, its parameters for searching, the largest number of
# items it is built for). HNSW16 of 10M items was not built after 12 minutes on 2 cores; the small one has half the
# neighbors and builds with less effort (10M: 14 minutes).
INDEXES = {
    "HNSW": ("HNSW16", "", "efSearch=128", 1_000_000),
    "HNSW, small": ("HNSW8", "efConstruction=16", "efSearch=256", 10_000_000),
    "IVF": ("IVF4096,Flat", "", "nprobe=32", 10_000_000),
}


@dataclass(frozen=True)
class Settings:
    """Which reports, and how large."""

    what: tuple[str, ...] = REPORTS
    batches: tuple[int, ...] = (256, 4096)
    searched: tuple[int, ...] = (1_000_000, 10_000_000)
    indexes: tuple[str, ...] = tuple(INDEXES)
    n_users: int = 138_493
    n_items: int = 26_744
    ratings: int = 20_000_000
    tenths: tuple[int, ...] = (1, 2, 5, 10)
    sampler_rank: int = 16
    until: str = "ml-1m"
    rmse: float = 0.86
    path: str = ""
    peers: str = ".venv-peers/bin/python"
    threads: int = 0
    repeats: int = 3
    timeout: float = 1800.0
    seed: int = 0
    out: str = "results"


def main(settings: Settings) -> dict[str, Any]:
    """Prints a table per report; returns what it wrote to OUT/reports.json."""
    start = time.perf_counter()
    if unknown := set(settings.what) - set(REPORTS):
        raise ValueError(f"what: expected some of {', '.join(REPORTS)}, got {', '.join(sorted(unknown))}.")
    tables = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for what in settings.what:
                tables[what] = TABLES[what](settings, Path(folder))
                experiment.table(tables[what])
    finally:  # a report that fails ends the run, but the reports before it are kept
        result = experiment.report("reports", settings, tables, time.perf_counter() - start)
    return result


def _towers(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for batch in settings.batches:
        cell = {"what": "towers", "batch": batch, **FEATURES, "compiled": False}
        row: dict[str, Any] = {"towers, batch": batch, "jaxrec ms": _ms(_ours(settings, cell))}
        for name, compiled in (("PyTorch ms", False), ("torch.compile ms", True)):
            row[name] = _ms(_theirs(settings, cell | {"what": "torch_towers", "compiled": compiled}))
        rows.append(row)
    return rows


def _approximate(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for n in settings.searched:
        shared = {"items": n, "dim": 32, "queries": 64, "bits": 32, "k": min(100, n), "seed": settings.seed}
        exact = _ours(settings, shared | {"what": "search"}, module="benchmarks.suite")
        rows.append({"items": n, "index": "exact, jaxrec", "build s": 0.0, "64 queries ms": _ms(exact), "recall": 1.0})
        for name in settings.indexes:
            index, building, effort, max_items = INDEXES[name]
            if n > max_items:
                print(f"  {name}: of more than {max_items:,} items it takes too long to build")
                continue
            cell = shared | {"what": "faiss_approximate", "index": index, "building": building, "effort": effort}
            answer = _theirs(settings, cell)
            description = ", ".join(part for part in (index, building, effort) if part)
            row = {"items": n, "index": f"FAISS {description}", "build s": answer.get("build", "-")}
            rows.append(row | {"64 queries ms": _ms(answer), "recall": answer.get("recall", "-")})
    return rows


def _growth(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for tenths in settings.tenths:
        n = settings.ratings * tenths // 10
        part = folder / str(tenths)
        part.mkdir()
        path = str(inputs.draw_ratings(part, settings.n_users, settings.n_items, n, seed=settings.seed))
        row: dict[str, Any] = {"ratings": n}
        als = {"what": "explicit", "path": path, "rank": 64, "l2": 12.0, "out": str(part / "none"), "sweeps": 3}
        cells = {
            "gradient, d = 32": {"what": "gradient", "path": path, "rank": 32, "l2": gradients.L2},
            "sweep, d = 64, 3 CG steps": als | {"cg_steps": 3},
            "sweep, d = 64, exact": als | {"cg_steps": None},
        }
        for name, cell in cells.items():
            answer = _ours(settings, cell, module="benchmarks.suite")
            row |= {f"{name}: s": answer["seconds"], f"{name}: MiB": answer["peak"] // 2**20}
        rows.append(row)
    return rows


def _until(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    rows = []
    cell = {
        "what": "until",
        "data": settings.until,
        "path": settings.path,
        "rmse": settings.rmse,
        "seed": settings.seed,
    }
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    for cache in ("empty", "full"):
        answer = harness.in_fresh_process(__spec__.name, cell, timeout=settings.timeout, env=env)
        if "failed" in answer:
            raise RuntimeError(f"until: {answer['failed']}")
        rows.append({"compilation cache": cache} | answer)
    return rows


def _sampler(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    sizes = settings.n_users, settings.n_items, settings.ratings
    path, rank = inputs.draw_ratings(folder, *sizes, seed=settings.seed), settings.sampler_rank
    answer = _ours(settings, {"what": "sampler", "path": str(path), "rank": rank})
    row = {"sampler, ratings": settings.ratings, "rank": rank, "s a sweep": answer["seconds"]}
    return [row | {"noise": answer["noise"], "MiB": answer["peak"] // 2**20}]


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Measures the project's part of a report; called in its own process."""
    return MEASURES[cell["what"]](cell)


def _measure_towers(cell: dict[str, Any]) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 4)
    towers = TwoTower()
    x_user = jax.random.normal(keys[0], (cell["batch"], cell["user_features"]))
    x_item = jax.random.normal(keys[1], (cell["batch"], cell["item_features"]))
    y = jax.random.uniform(keys[2], (cell["batch"],), minval=-1.0, maxval=1.0)
    state = training.init_state(towers.init(keys[3], x_user, x_item), optimizer := optax.adam(1e-3))

    def cost(params: Any, batch: Any) -> Any:
        x_user, x_item, y = batch
        vectors: Any = towers.apply(params, x_user, x_item)
        return two_tower(vectors[0], vectors[1], y)

    step = training.make_step(cost, optimizer)
    body = lambda state, _: (step(state, (x_user, x_item, y), key=keys[0])[0], None)
    run = jax.jit(lambda state: jax.lax.scan(body, state, length=20)[0])
    return {"seconds": harness.seconds(run, state, repeats=cell["repeats"])["seconds"] / 20}


def _measure_until(cell: dict[str, Any]) -> dict[str, Any]:
    dataset = inputs.load_dataset(cell["data"], path=cell["path"], seed=cell["seed"])
    train, test = data.splits.random(dataset.ratings, test_fraction=0.1, rng=cell["seed"])
    began = time.perf_counter()
    # the square root of each row's rating count over the mean count
    count_scale = lambda ids, n: np.sqrt(np.maximum(np.bincount(ids, minlength=n), 1) * n / len(ids))
    l2 = (
        jnp.asarray(12.0 * count_scale(train.user, train.n_users), jnp.float32),
        jnp.asarray(12.0 * count_scale(train.item, train.n_items), jnp.float32),
    )
    sides = data.rows(train, "user"), data.rows(train, "item")
    init = models.init(train.n_users, train.n_items, 12, key=jax.random.key(0), mu=float(train.value.mean()))
    reached: dict[str, Any] = {}

    def stop(sweep: int, factors: Any, _: Any) -> bool:
        rmse = experiment.errors(factors, test, dataset.scale)["rmse"]
        if not reached and rmse <= cell["rmse"]:
            reached.update(seconds=time.perf_counter() - began, sweeps=sweep, rmse=rmse)
        return bool(reached)

    solvers.als(sides, init=init, l2=l2, l2_bias=3.0, sweeps=50, callback=stop, progress=False)
    return reached or {"seconds": float("inf"), "sweeps": 50, "rmse": "not reached"}


def _measure_sampler(cell: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a sweep once compiled: the time between two calls of the callback, over the sweeps between them."""
    ratings, sweeps_per_call, clock = inputs.load_ratings(cell["path"]), 2, []
    rows = partial(data.rows, ratings, devices=jax.devices())
    sides = rows("user"), rows("item")
    state = bayes.init_chains(ratings.n_users, ratings.n_items, cell["rank"], key=jax.random.key(0))
    test = ratings.take(np.arange(min(1000, len(ratings))))
    _, _, trace = bayes.gibbs(
        sides, test, init=state, key=jax.random.key(1), mu=float(ratings.value.mean()), burn_in=0,
        sweeps=sweeps_per_call * (cell["repeats"] + 1), sweeps_per_call=sweeps_per_call, progress=False,
        callback=lambda *_: clock.append(time.perf_counter()),
    )  # fmt: skip
    return {
        "seconds": float(np.median(np.diff(clock))) / sweeps_per_call,
        "noise": float(trace[-1, 0]),
        "peak": harness.peak_resident(),
    }


TABLES: dict[str, Callable[[Settings, Path], list[dict[str, Any]]]] = {  # report -> its table
    "towers": _towers,
    "approximate": _approximate,
    "growth": _growth,
    "until": _until,
    "sampler": _sampler,
}
MEASURES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {  # cell['what'] -> the project's own part
    "towers": _measure_towers,
    "until": _measure_until,
    "sampler": _measure_sampler,
}


def _ours(settings: Settings, cell: dict[str, Any], module: str = "") -> dict[str, Any]:
    """The answer of the project's cell; raises where it failed."""
    cell = {"repeats": settings.repeats} | cell
    answer = harness.in_fresh_process(module or __spec__.name, cell, timeout=settings.timeout)
    if "failed" in answer:
        raise RuntimeError(f"{cell['what']}: {answer['failed']}")
    return answer


def _theirs(settings: Settings, cell: dict[str, Any]) -> dict[str, Any]:
    """The answer of a peer's cell; a failure is printed."""
    cell = {"repeats": settings.repeats, "threads": settings.threads or len(os.sched_getaffinity(0))} | cell
    answer = harness.in_fresh_process("benchmarks.peers", cell, python=settings.peers, timeout=settings.timeout)
    if "failed" in answer:
        print(f"  {cell['what']}: {answer['failed']}")
    return answer


def _ms(answer: dict[str, Any]) -> Any:
    return 1e3 * answer["seconds"] if "seconds" in answer else "failed"


if __name__ == "__main__":
    if not harness.serve(measure):
        experiment.run(main, Settings)
