"""What is reported without a target: towers beside PyTorch, approximate search, growth, seconds to a test RMSE, and
a sweep of the Gibbs sampler.

Everything runs in fresh processes, as in `benchmarks.suite`, with peers from the same environment. `make bench` runs
both.

- towers: a step of Adam on two towers (48 and 24 features, 256-128-32) and one batch, against PyTorch, eager and
  compiled.
- approximate: FAISS's HNSW and IVF, seconds to build and to search, the recall of the exact k best.
- growth: the gradient and sweeps of ALS where the data are 1, 2, 5 and 10 tenths of the whole, tables fixed. (A
  search's stands in `benchmarks.suite`: 1M and 10M items.)
- until: seconds from the ratings in memory to a test RMSE on one random 90/10 split of ml-1m, with an empty compilation
  cache and a full one. Strengths and rank are those chosen for `experiments.published` on validation parts of train.
- sampler: a sweep of one chain without features (`solvers.gibbs`), and the memory it takes. The ratings were made with
  noise of deviation .5: what the chain says of it stands beside, still falling in so few sweeps.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import gradients, harness, suite
from experiments import harness as experiment
from jaxrec import bayes, data, models, solvers, training
from jaxrec.losses.content import two_tower
from jaxrec.models.two_tower import TwoTower

REPORTS = ("towers", "approximate", "growth", "until", "sampler")
FEATURES = {"user_features": 48, "item_features": 24}
# name -> FAISS's words for the index, for the effort of building it and of a search; and the most items it is built of:
# HNSW16 of 10M was not there after 12 minutes on 2 cores. The second one has half the neighbors, found with less effort
# (10M: 14 minutes).
INDEXES = {
    "HNSW": ("HNSW16", "", "efSearch=128", 1_000_000),
    "HNSW, small": ("HNSW8", "efConstruction=16", "efSearch=256", 10_000_000),
    "IVF": ("IVF4096,Flat", "", "nprobe=32", 10_000_000),
}


@dataclass(frozen=True)
class Settings:
    """Which reports, how large."""

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
    """Prints a table a report; returns what it wrote to OUT/reports.json."""
    start = time.perf_counter()
    if unknown := set(settings.what) - set(REPORTS):
        raise ValueError(f"what: expected some of {', '.join(REPORTS)}, got {', '.join(sorted(unknown))}.")
    tables = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for what in settings.what:
                tables[what] = globals()[f"_{what}"](settings, Path(folder))
                experiment.table(tables[what])
    finally:  # a report that fails ends the run, and those before it are kept
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
            index, building, effort, most = INDEXES[name]
            if n > most:
                print(f"  {name}: of more than {most:,} items it takes too long to build")
                continue
            cell = shared | {"what": "faiss_approximate", "index": index, "building": building, "effort": effort}
            found = _theirs(settings, cell)
            words = ", ".join(word for word in (index, building, effort) if word)
            row = {"items": n, "index": f"FAISS {words}", "build s": found.get("build", "-")}
            rows.append(row | {"64 queries ms": _ms(found), "recall": found.get("recall", "-")})
    return rows


def _growth(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for tenths in settings.tenths:
        n = settings.ratings * tenths // 10
        part = folder / str(tenths)
        part.mkdir()
        sizes = suite.Settings(n_users=settings.n_users, n_items=settings.n_items, ratings=n, seed=settings.seed)
        path = str(suite._ratings(sizes, part))
        row: dict[str, Any] = {"ratings": n}
        als = {"what": "explicit", "path": path, "rank": 64, "l2": 12.0, "out": str(part / "none"), "sweeps": 3}
        cells = {
            "gradient, d = 32": {"what": "gradient", "path": path, "rank": 32, "l2": gradients.L2},
            "sweep, d = 64, 3 CG steps": als | {"cg_steps": 3},
            "sweep, d = 64, exact": als | {"cg_steps": None},
        }
        for name, cell in cells.items():
            found = _ours(settings, cell, module="benchmarks.suite")
            row |= {f"{name}: s": found["seconds"], f"{name}: MiB": found["peak"] // 2**20}
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
        found = harness.in_fresh_process(__spec__.name, cell, timeout=settings.timeout, env=env)
        if "failed" in found:
            raise RuntimeError(f"until: {found['failed']}")
        rows.append({"compilation cache": cache} | found)
    return rows


def _sampler(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    sizes = suite.Settings(
        n_users=settings.n_users, n_items=settings.n_items, ratings=settings.ratings, seed=settings.seed
    )
    rank = settings.sampler_rank
    found = _ours(settings, {"what": "sampler", "path": str(suite._ratings(sizes, folder)), "rank": rank})
    row = {"sampler, ratings": settings.ratings, "rank": rank, "s a sweep": found["seconds"]}
    return [row | {"noise": found["noise"], "MiB": found["peak"] // 2**20}]


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """The project's part of a report, in its own process."""
    return {"towers": _of_towers, "until": _of_until, "sampler": _of_sampler}[cell["what"]](cell)


def _of_towers(cell: dict[str, Any]) -> dict[str, Any]:
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
    once = lambda state, _: (step(state, (x_user, x_item, y), key=keys[0])[0], None)
    run = jax.jit(lambda state: jax.lax.scan(once, state, length=20)[0])
    return {"seconds": harness.seconds(run, state, repeats=cell["repeats"])["seconds"] / 20}


def _of_until(cell: dict[str, Any]) -> dict[str, Any]:
    dataset = suite._load(cell["data"], suite.Settings(path=cell["path"], seed=cell["seed"]))
    train, test = data.splits.random(dataset.ratings, test_fraction=0.1, rng=cell["seed"])
    began = time.perf_counter()
    by_count = lambda ids, n: np.sqrt(np.maximum(np.bincount(ids, minlength=n), 1) * n / len(ids))
    l2 = (
        jnp.asarray(12.0 * by_count(train.user, train.n_users), jnp.float32),
        jnp.asarray(12.0 * by_count(train.item, train.n_items), jnp.float32),
    )
    sides = data.rows(train, "user"), data.rows(train, "item")
    init = models.init(train.n_users, train.n_items, 12, key=jax.random.key(0), mu=float(train.value.mean()))
    reached: dict[str, Any] = {}

    def look(sweep: int, factors: Any, _: Any) -> bool:
        rmse = experiment.errors(factors, test, dataset.scale)["rmse"]
        if not reached and rmse <= cell["rmse"]:
            reached.update(seconds=time.perf_counter() - began, sweeps=sweep, rmse=rmse)
        return bool(reached)

    solvers.als(sides, init=init, l2=l2, l2_bias=3.0, sweeps=50, callback=look, progress=False)
    return reached or {"seconds": float("inf"), "sweeps": 50, "rmse": "not reached"}


def _of_sampler(cell: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a sweep once compiled, by the clock between two looks of the callback."""
    ratings, block, clock = suite._from(np.load(cell["path"])), 2, []
    spread = partial(data.rows, ratings, devices=jax.devices())
    known = spread("user"), spread("item")
    state = bayes.init_chains(ratings.n_users, ratings.n_items, cell["rank"], key=jax.random.key(0))
    few = ratings.take(np.arange(min(1000, len(ratings))))
    _, _, trace = bayes.gibbs(
        known, few, init=state, key=jax.random.key(1), mu=float(ratings.value.mean()), burn_in=0,
        sweeps=block * (cell["repeats"] + 1), sweeps_per_call=block, progress=False,
        callback=lambda *_: clock.append(time.perf_counter()),
    )  # fmt: skip
    return {
        "seconds": float(np.median(np.diff(clock))) / block,
        "noise": float(trace[-1, 0]),
        "peak": harness.peak_resident(),
    }


def _ours(settings: Settings, cell: dict[str, Any], module: str = "") -> dict[str, Any]:
    cell = {"repeats": settings.repeats} | cell
    found = harness.in_fresh_process(module or __spec__.name, cell, timeout=settings.timeout)
    if "failed" in found:
        raise RuntimeError(f"{cell['what']}: {found['failed']}")
    return found


def _theirs(settings: Settings, cell: dict[str, Any]) -> dict[str, Any]:
    cell = {"repeats": settings.repeats, "threads": settings.threads or len(os.sched_getaffinity(0))} | cell
    found = harness.in_fresh_process("benchmarks.peers", cell, python=settings.peers, timeout=settings.timeout)
    if "failed" in found:
        print(f"  {cell['what']}: {found['failed']}")
    return found


def _ms(found: dict[str, Any]) -> Any:
    return 1e3 * found["seconds"] if "seconds" in found else "failed"


if __name__ == "__main__":
    if not harness.serve(measure):
        experiment.run(main, Settings)
