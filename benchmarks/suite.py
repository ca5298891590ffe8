"""The project, its peers and the machine's own bound in one table: `make bench`.

Every operation runs in fresh processes, the peers' and the project's alternating, for some rounds; a row has medians.
All use the same threads on the same data. Answers are checked before a row is written: against the peer's where both
compute the same number, otherwise against float64 NumPy (`benchmarks.gradients`, `benchmarks.request`, the tests). For
iterative peers a sweep is the difference of two fits; the table has the objectives after the same number of sweeps.

The bound is the shortest possible time of the operation on this machine: its flops over the rate of a large matrix
product in float32, or its bytes (gathered bytes included) over the rate of a sum of a large array, whichever takes
longer. Both rates are measured in this run. The peers are installed in an environment of their own (extra `peers`); a
peer that is missing or fails is named.

On a GPU the peers are those that run there: PyTorch with CUDA for the gradient and search, implicit's CUDA ALS and
KnnQuery; none has explicit ALS. Evaluation and the grid are compared with the peers on the CPU. The rate of products in
TF32 is measured as well, and every result names the device, its driver and the versions of jax.
"""

import importlib.metadata
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gradients, harness, implicit_operations, inputs
from benchmarks.peers import draw_vectors
from experiments import harness as experiment
from jaxrec import data, evaluation, losses, metrics, models, solvers, training
from jaxrec.retrieval import quantized, top_k
from jaxrec.types import Ratings, Rows

COLUMNS = ("operation", "jaxrec s", "peer", "peer s", "ratio", "bound s", "jaxrec", "theirs", "MiB", "peer MiB")
OPERATIONS = (
    "gradient",
    "explicit",
    "implicit",
    "search",
    "evaluation",
    "neighbors",
    "ease",
    "bpr",
    "softmax",
    "grid",
)


@dataclass(frozen=True)
class Settings:
    """Which operations, and how large."""

    what: tuple[str, ...] = OPERATIONS
    n_users: int = 138_493
    n_items: int = 26_744
    ratings: int = 20_000_000
    gradient_rank: int = 32
    explicit_rank: int = 64
    implicit_ranks: tuple[int, ...] = (64, 128)
    cg_steps: tuple[int, ...] = (3, 0, 10)  # per row and sweep; 0 solves exactly
    searched: tuple[int, ...] = (1_000_000, 10_000_000)
    queries: tuple[int, ...] = (64, 1)
    evaluated: tuple[str, ...] = ("ml-1m", "gowalla")  # names that data.load knows, or 'synthetic'
    neighbors: tuple[str, ...] = ("gowalla",)
    ease: tuple[str, ...] = ("ml-1m",)
    bpr: tuple[str, ...] = ("ml-1m", "gowalla")
    softmax: tuple[int, ...] = (40_981, 1_000_000)  # items
    grid: str = "ml-100k"
    path: str = ""  # the folder of these datasets' files; '' searches the usual places
    peers: str = ".venv-peers/bin/python"
    threads: int = 0  # 0: all cores
    sweeps: int = 3
    repeats: int = 3
    rounds: int = 1
    timeout: float = 900.0
    seed: int = 0
    out: str = "results"


def main(settings: Settings) -> dict[str, Any]:
    """Measures, prints the table, plots; returns what it wrote to OUT/suite.json."""
    start = time.perf_counter()
    if unknown := set(settings.what) - set(OPERATIONS):
        raise ValueError(f"what: expected some of {', '.join(OPERATIONS)}, got {', '.join(sorted(unknown))}.")
    cell = {"what": "machine", "small": settings.ratings < 1_000_000}
    # in a process of its own, since a process that uses a GPU holds its memory
    machine = harness.in_fresh_process(__spec__.name, cell, timeout=settings.timeout)
    if "failed" in machine:
        raise RuntimeError(f"machine: {machine['failed']}")
    print(f"{machine['device']}, jax {machine['jax']}, jaxlib {machine['jaxlib']}, {machine['driver']}")
    print(
        f"{machine['flops'] / 1e9:.0f} GFLOP/s in float32 products, {machine['flops_default'] / 1e9:.0f} by default, "
        f"{machine['bytes'] / 1e9:.0f} GB/s in sums"
    )
    rows: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for what in settings.what:
                for row in ROWS[what](settings, Path(folder)):
                    bound = max(row["flops"] / machine["flops"], row["bytes"] / machine["bytes"])
                    rows.append(row | {"bound s": bound})
                    print(_line(rows[-1]), flush=True)
    finally:  # an operation that fails ends the run, but the rows measured before it are kept
        if rows:
            experiment.table([{name: row[name] for name in COLUMNS} for row in rows])
            experiment.plot("suite", settings, lambda axes: _draw(axes, rows))
        values = {"machine": machine, "rows": rows}
        result = experiment.report("suite", settings, values, time.perf_counter() - start)
    return result


def _measure_machine(cell: dict[str, Any]) -> dict[str, Any]:
    """Names of the device, and its flops and bytes per second: a product of 2048 x 2048 matrices, the sum of 256 MB.

    On a GPU 8192 x 8192 and 2 GB; its default precision is TF32 (float32 on a CPU).
    """
    device = jax.devices()[0]
    n, length = (256, 2**20) if cell["small"] else (2048, 2**26) if device.platform == "cpu" else (8192, 2**29)
    matrix, vector = jnp.ones((n, n)), jnp.ones(length)

    def product_seconds(precision: str) -> float:
        product = jax.jit(partial(jnp.matmul, precision=precision))
        return harness.seconds(product, matrix, matrix, repeats=5)["seconds"]

    flops, flops_default = (2 * n**3 / product_seconds(precision) for precision in ("highest", "default"))
    sum_seconds = harness.seconds(jax.jit(jnp.sum), vector, repeats=5)["seconds"]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    driver = device.client.platform_version.replace("\n", " ")
    names = {"platform": device.platform, "device": device.device_kind, "driver": driver}
    return names | versions | {"flops": flops, "flops_default": flops_default, "bytes": 4 * length / sum_seconds}


def _peers(what: str) -> dict[str, dict[str, Any]]:
    """The peers of an operation on this kind of device: name -> cell for `benchmarks.peers`."""
    on_cpu = {
        "gradient": {"PyTorch autograd": {"what": "torch_gradient", "device": "cpu"}},
        "explicit": {"cmfrec": {"what": "cmfrec_als"}},
        "implicit": {"implicit": {"what": "implicit_als"}},
        "search": {"FAISS IndexFlatIP": {"what": "faiss_search"}},
    }
    on_gpu = {
        "gradient": {"PyTorch autograd, CUDA": {"what": "torch_gradient", "device": "cuda"}},
        "explicit": {},
        "implicit": {"implicit, CUDA, 3 CG steps": {"what": "implicit_gpu_als"}},
        "search": {
            "PyTorch product and topk, CUDA": {"what": "torch_search"},
            "implicit KnnQuery": {"what": "implicit_knn"},
        },
    }
    return (on_gpu if jax.default_backend() == "gpu" else on_cpu)[what]


def _gradient(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    path, d = _ratings(settings, folder), settings.gradient_rank
    cell = {"what": "gradient", "path": str(path), "rank": d, "l2": gradients.L2}
    peers = {name: peer | {"l2": gradients.L2, "rank": d} for name, peer in _peers("gradient").items()}
    answers = _run(settings, {"jaxrec": cell}, peers)
    # per rating: two rows for the product and two for the gradients; two ids, value and residual
    bytes_ = settings.ratings * (4 * d * 4 + 24)
    return _rows(
        f"value and gradient, {_size(settings.ratings)}, d = {d}", answers, "value", 6 * settings.ratings * d, bytes_
    )


def _explicit(settings: Settings, folder: Path) -> Iterator[dict[str, Any]]:
    cell = {"what": "explicit", "path": str(_ratings(settings, folder)), "rank": settings.explicit_rank, "l2": 12.0}
    cell["out"] = str(folder / "als.npz")
    for cg in (True, False):
        peers = {name: cell | peer | {"cg": cg} for name, peer in _peers("explicit").items()}
        if peers and not cg:  # its objective is a different one, with biases from damped means
            peers["LensKit BiasedMF"] = cell | {"what": "lenskit_als"}
        yield from _sweep_rows(settings, cell, cg, peers)


def _implicit(settings: Settings, folder: Path) -> Iterator[dict[str, Any]]:
    path = str(_ratings(settings, folder))
    for d in settings.implicit_ranks:
        cell = {"what": "implicit", "path": path, "rank": d, "l2": 1.0, "confidence": 40.0}
        cell["out"] = str(folder / "ials.npz")
        for cg in (True, False):
            peers = {name: cell | peer | {"cg": cg} for name, peer in _peers("implicit").items()}
            yield from _sweep_rows(settings, cell, cg, peers)


def _sweep_rows(
    settings: Settings, cell: dict[str, Any], cg: bool, peers: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Rows of an ALS sweep: three CG steps against the peers' three (`cg`), everything else against their Cholesky.

    Everything else is the exact sweep, and ten CG steps, whose objective after three sweeps equals the exact sweep's to
    six digits.
    """
    ours = {steps: cell | {"cg_steps": steps or None} for steps in settings.cg_steps if (steps == 3) == cg}
    answers = _run(settings, ours, peers) if ours else {}
    for steps in ours:
        name = f"{cell['what']} ALS sweep, {_size(settings.ratings)}, d = {cell['rank']}, "
        name += f"{steps} CG steps" if steps else "exact"
        peer_answers = {peer: answers[peer] for peer in peers}
        flops, bytes_ = _sweep_work(settings, cell["rank"], steps)
        yield from _rows(name, peer_answers | {"jaxrec": answers[steps]}, "objective", flops, bytes_)


def _sweep_work(settings: Settings, d: int, steps: int) -> tuple[float, float]:
    """(flops, bytes) of a sweep over n ratings. Both sides gather d features per rating.

    flops = 4 (2 steps + 1) n d         with CG, which has 2 steps + 1 products per side
          = 4 n d^2 + rows d^3 / 3      exact: the Gram matrices and their Cholesky factors
    """
    n, rows = settings.ratings, settings.n_users + settings.n_items
    flops = 4 * (2 * steps + 1) * n * d if steps else 4 * n * d**2 + rows * d**3 / 3
    return flops, 2 * n * (4 * d + 8)


def _search(settings: Settings, folder: Path) -> Iterator[dict[str, Any]]:
    d = 32
    for n in settings.searched:
        for queries in settings.queries:
            for bits in (32, 8) if queries == 1 else (32,):
                cell = {"what": "search", "items": n, "dim": d, "queries": queries, "bits": bits}
                cell |= {"k": min(100, n), "seed": settings.seed}
                answers = _run(settings, {"jaxrec": cell}, {p: cell | peer for p, peer in _peers("search").items()})
                name = f"exact top-100, {_size(n)} x {d}, {queries} {'queries' if queries > 1 else 'query'}"
                name += ", 8 bits first" if bits == 8 else ""
                yield from _rows(name, answers, "scores", 2 * n * d * queries, n * d * bits / 8)


def _evaluation(settings: Settings, folder: Path) -> Iterator[dict[str, Any]]:
    for name in settings.evaluated:
        yield from _evaluation_rows(name, settings, folder)


def _evaluation_rows(dataset: str, settings: Settings, folder: Path) -> list[dict[str, Any]]:
    ratings = inputs.load_dataset(dataset, path=settings.path, seed=settings.seed).ratings
    train, test = data.splits.random(ratings, test_fraction=0.2, rng=settings.seed)
    clicks = Ratings(train.user, train.item, np.ones(len(train)), train.n_users, train.n_items)
    init = models.init(train.n_users, train.n_items, 64, key=jax.random.key(0), item_bias=False)
    sides = data.rows(clicks, "user"), data.rows(clicks, "item")
    factors, _ = solvers.implicit_als(sides, init=init, l2=10.0, unobserved_weight=0.1, sweeps=5, progress=False)
    path = folder / f"evaluation-{dataset}.npz"
    parts = {
        f"{name}_{side}": getattr(part, side)
        for name, part in (("train", train), ("test", test))
        for side in ("user", "item")
    }
    np.savez(path, w=factors.w, x=factors.x, **parts)
    k = min(100, train.n_items // 4)
    cell = {"what": "evaluation", "path": str(path), "k": k}
    answers = _run(settings, {"jaxrec": cell}, {"implicit.evaluation": {"what": "implicit_evaluation", "k": k}})
    flops = 2 * train.n_users * train.n_items * 64
    name = f"metrics at {k}, all {_size(train.n_users)} users of {dataset}"
    return _rows(name, answers, "ndcg", flops, 4.0 * (train.n_users + train.n_items) * 64)


def _neighbors(settings: Settings, folder: Path) -> Iterator[dict[str, Any]]:
    """Item-item cosines, of which each item keeps the 100 largest.

    The flops are those of a sparse product: a multiplication and an addition for every two items of every user, each of
    which reads an id and a number.
    """
    for name in settings.neighbors:
        ratings = inputs.load_dataset(name, path=settings.path, seed=settings.seed).ratings
        path = folder / f"neighbors-{name}.npz"
        inputs.save_ratings(path, ratings)
        cell = {"what": "neighbors", "path": str(path), "k": min(100, ratings.n_items - 1)}
        answers = _run(settings, {"jaxrec": cell}, {"implicit": cell | {"what": "implicit_neighbors"}})
        pairs = float((np.bincount(ratings.user).astype(np.float64) ** 2).sum())
        operation = f"{cell['k']} nearest of {_size(ratings.n_items)} items of {name}"
        yield from _rows(operation, answers, "similarity", 2 * pairs, 8 * pairs)


def _feedback(
    operation: Callable[[Settings, Path], Iterator[implicit_operations.Operation]], settings: Settings, folder: Path
) -> Iterator[dict[str, Any]]:
    """Rows of an operation of `benchmarks.implicit_operations`."""
    for row in operation(settings, folder):
        answers = _run(settings, {"jaxrec": row.cell}, row.peers)
        yield from _rows(row.name, answers, row.checked, row.flops, row.bytes)


def _grid(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    ratings = inputs.load_dataset(settings.grid, path=settings.path, seed=settings.seed).ratings
    path = folder / "grid.npz"
    inputs.save_ratings(path, ratings)
    l2s = (8.0, 12.0) if settings.ratings < 1_000_000 else (7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0)
    cell: dict[str, Any] = {"what": "grid", "path": str(path), "l2s": l2s, "rank": 8, "als_sweeps": 8, "batch_size": 16}
    answers = _run(settings, {"jaxrec": cell}, {"Surprise GridSearchCV": {"what": "surprise_grid"}}, rounds=1)
    trainings, k = 5 * 4 * len(l2s), cell["rank"] + 1
    gram_flops = 2 * ratings.n_users * ratings.n_items * k * (k + 1)  # both sides, dense: done, though not all needed
    flops = trainings * cell["als_sweeps"] * gram_flops
    name = f"grid of {4 * len(l2s)} settings x 5 folds, {settings.grid}, compilation included"
    return _rows(name, answers, "rmse", flops, 0.0)


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Measures the project's part of a row; called in its own process."""
    answer = MEASURES[cell["what"]](cell)
    return {"peak": harness.peak_resident()} | answer


def _measure_gradient(cell: dict[str, Any]) -> dict[str, Any]:
    ratings = inputs.load_ratings(cell["path"])
    factors = inputs.random_factors(ratings, cell["rank"])
    linked = data.linked(ratings)
    run = jax.jit(lambda factors, ratings: losses.closed_form.value_and_gradient(factors, ratings, l2=cell["l2"]))
    answer = run(factors, linked)
    gradients.check(ratings, factors, answer)
    seconds = harness.seconds(run, factors, linked, repeats=cell["repeats"])["seconds"]
    return {"seconds": seconds, "value": float(answer[0])}


def _measure_explicit(cell: dict[str, Any]) -> dict[str, Any]:
    ratings = inputs.load_ratings(cell["path"])
    mu = float(ratings.value.mean())
    init = models.init(ratings.n_users, ratings.n_items, cell["rank"], key=jax.random.key(0), mu=mu)
    sides = _sides(ratings)
    options: dict[str, Any] = {"l2": cell["l2"], "l2_bias": cell["l2"], "cg_steps": cell["cg_steps"]}
    run = jax.jit(lambda factors, *sides: solvers.sweep(factors, *sides, **options))
    return _time_sweeps(run, init, sides, cell) | {"theirs": _peer_objective(ratings, cell)}


def _measure_implicit(cell: dict[str, Any]) -> dict[str, Any]:
    ratings, c = inputs.load_ratings(cell["path"]), cell["confidence"]
    ones = np.ones(len(ratings), np.float32)
    clicks = Ratings(
        ratings.user, ratings.item, c / (c - 1) * ones, ratings.n_users, ratings.n_items, weights=(c - 1) * ones
    )
    init = models.init(ratings.n_users, ratings.n_items, cell["rank"], key=jax.random.key(0), item_bias=False)
    sides = _sides(clicks)
    options: dict[str, Any] = {"l2": cell["l2"], "cg_steps": cell["cg_steps"]}
    run = jax.jit(lambda factors, *sides: solvers.implicit_sweep(factors, *sides, **options))
    measured = _time_sweeps(run, init, sides, cell)
    if (tables := _peer_tables(cell)) is not None:
        factors = models.init(ratings.n_users, ratings.n_items, 0, key=jax.random.key(0), item_bias=False)
        factors = type(factors)(w=jnp.asarray(tables["w"]), b=factors.b, x=jnp.asarray(tables["x"]))
        cost = jax.jit(lambda factors, rows: solvers.implicit_cost(factors, rows, l2=cell["l2"]))
        measured["theirs"] = float(cost(factors, sides[0]))
    return measured


def _sides(ratings: Ratings) -> tuple[Rows, Rows]:
    """Rows by user and by item, spread over all devices; on a CPU every core is a device."""
    by_user, by_item = (data.rows(ratings, side, devices=jax.devices()) for side in ("user", "item"))
    return by_user, by_item


def _time_sweeps(run: Any, factors: Any, sides: Any, cell: dict[str, Any]) -> dict[str, Any]:
    """Median seconds of a sweep once compiled, the objective after cell['sweeps'] sweeps, and the peak of memory until
    then: what checks the peer's numbers afterwards is not part of it.
    """
    factors = sides[0].replicate(factors)
    jax.block_until_ready(run(factors, *sides))
    seconds, objective = [], 0.0
    for _ in range(cell["sweeps"]):
        began = time.perf_counter()
        factors, value = jax.block_until_ready(run(factors, *sides))
        seconds.append(time.perf_counter() - began)
        objective = float(value)
    return {"seconds": median(seconds), "objective": objective, "peak": harness.peak_resident()}


def _peer_tables(cell: dict[str, Any]) -> Any:
    """The factors that a peer wrote to cell['out'], or None."""
    return np.load(cell["out"]) if Path(cell["out"]).exists() else None


def _peer_objective(ratings: Ratings, cell: dict[str, Any]) -> float | None:
    """J at a peer's factors, in float64; None where no peer wrote any."""
    if (tables := _peer_tables(cell)) is None:
        return None
    w, b, x, c = (np.asarray(tables[name], np.float64) for name in ("w", "b", "x", "c"))
    total = cell["l2"] / 2 * sum((table**2).sum() for table in (w, b, x, c))
    for first in range(0, len(ratings), 1_000_000):
        part = ratings.take(slice(first, first + 1_000_000))
        product = np.einsum("nd,nd->n", w[part.user], x[part.item])
        total += ((product + b[part.user] + c[part.item] + tables["mu"] - part.value) ** 2).sum() / 2
    return float(total)


def _measure_search(cell: dict[str, Any]) -> dict[str, Any]:
    table, queries = map(jnp.asarray, draw_vectors(cell))
    items = quantized.quantize(table) if cell["bits"] == 8 else table
    run = jax.jit(lambda queries, items: top_k(queries, items, cell["k"]))
    scores, _ = run(queries, items)
    seconds = harness.seconds(run, queries, items, repeats=cell["repeats"])["seconds"]
    return {"seconds": seconds, "scores": float(np.asarray(scores, np.float64).sum())}


def _measure_evaluation(cell: dict[str, Any]) -> dict[str, Any]:
    arrays = np.load(cell["path"])
    w, x = jnp.asarray(arrays["w"]), jnp.asarray(arrays["x"])

    def ones(part: str) -> Ratings:
        user, item = arrays[f"{part}_user"], arrays[f"{part}_item"]
        return Ratings(user, item, np.ones(len(user)), len(w), len(x))

    train, test = ones("train"), ones("test")
    measures = {"ndcg": metrics.ndcg, "map": metrics.average_precision, "precision": metrics.precision}
    run = lambda: evaluation.evaluate((w, x), train, test, k=cell["k"], metrics=measures)
    seconds = harness.seconds(run, repeats=cell["repeats"])["seconds"]
    return {"seconds": seconds, **{name.partition("@")[0]: mean for name, mean in run().mean.items()}}


def _measure_neighbors(cell: dict[str, Any]) -> dict[str, Any]:
    ratings = inputs.load_ratings(cell["path"])
    ratings = replace(ratings, weights=None)
    run = lambda: solvers.neighbors.similar(ratings, "item", k=cell["k"])
    seconds = harness.seconds(run, repeats=cell["repeats"])["seconds"]
    return {"seconds": seconds, "similarity": float(np.asarray(run().similarity, np.float64).sum())}


def _measure_grid(cell: dict[str, Any]) -> dict[str, Any]:
    ratings = inputs.load_ratings(cell["path"])
    began = time.perf_counter()
    fold = np.arange(len(ratings)) % 5
    np.random.default_rng(0).shuffle(fold)
    tagged = data.dense(
        Ratings(ratings.user, ratings.item, ratings.value, ratings.n_users, ratings.n_items, weights=fold)
    )
    members = training.grid_points(l2=cell["l2s"], l2_bias=(2.0, 3.0, 4.0, 5.0))
    # l2 grows slightly with a row's rating count, so fewer sweeps suffice: 8 reach 0.909; 10 with one l2 for all rows
    # reach 0.9095
    sides = (ratings.user, ratings.n_users), (ratings.item, ratings.n_items)
    counts = (np.bincount(ids, minlength=n) for ids, n in sides)
    scales = tuple(jnp.asarray((np.maximum(n, 1) / n.mean()) ** 0.3, jnp.float32) for n in counts)

    def error(member: dict[str, Any], tagged: Any, number: Any, held: Any, mu: Any, scales: Any) -> Any:
        part = replace(tagged, where=tagged.where & (tagged.weights != number), weights=None)
        l2 = tuple(member["l2"] * scale for scale in scales)
        step = lambda factors, _: solvers.dense_sweep(factors, part, l2=l2, l2_bias=member["l2_bias"])
        init = models.init(ratings.n_users, ratings.n_items, cell["rank"], key=jax.random.key(0), mu=mu)
        init = replace(init, w=jnp.zeros_like(init.w))  # w is solved first, so its random start need not be compiled
        factors, _ = jax.lax.scan(step, init, length=cell["als_sweeps"])
        return metrics.rmse(jnp.clip(models.predict(factors, held.user, held.item), 1.0, 5.0), held.value)

    mu, options = jnp.asarray(ratings.value.mean()), {"batch_size": cell["batch_size"], "progress": False}
    held = [data.observed(ratings.take(fold == number)) for number in range(5)]
    by_fold = [training.grid(error, members, tagged, jnp.float32(k), held[k], mu, scales, **options) for k in range(5)]
    by_member = np.mean([np.asarray(errors) for errors in by_fold], axis=0)
    return {"seconds": time.perf_counter() - began, "rmse": float(by_member.min())}


ROWS: dict[str, Callable[[Settings, Path], Iterable[dict[str, Any]]]] = {  # operation -> its rows
    "gradient": _gradient,
    "explicit": _explicit,
    "implicit": _implicit,
    "search": _search,
    "evaluation": _evaluation,
    "neighbors": _neighbors,
    "ease": partial(_feedback, implicit_operations.ease),
    "bpr": partial(_feedback, implicit_operations.bpr),
    "softmax": partial(_feedback, implicit_operations.softmax),
    "grid": _grid,
}
MEASURES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {  # cell['what'] -> the project's own part
    "machine": _measure_machine,
    "gradient": _measure_gradient,
    "explicit": _measure_explicit,
    "implicit": _measure_implicit,
    "search": _measure_search,
    "evaluation": _measure_evaluation,
    "neighbors": _measure_neighbors,
    **implicit_operations.MEASURES,
    "grid": _measure_grid,
}


def _run(
    settings: Settings, ours: dict[Any, dict[str, Any]], peers: dict[str, dict[str, Any]], *, rounds: int = 0
) -> dict[Any, list[dict[str, Any]]]:
    """Name -> the answers of every round. In each round the peers run first, since our cells read what they write."""
    cell = next(iter(ours.values()))
    threads = settings.threads or len(os.sched_getaffinity(0))
    shared = {"threads": threads, "repeats": settings.repeats, "sweeps": settings.sweeps} | {
        name: cell[name] for name in ("path",) if name in cell
    }
    answers: dict[Any, list[dict[str, Any]]] = {name: [] for name in (*peers, *ours)}
    # each BLAS library chooses its own kernels; implicit needs its threads outside BLAS
    base_env = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    if "out" in cell:
        Path(cell["out"]).unlink(missing_ok=True)
    for _ in range(rounds or settings.rounds):
        for name, peer in peers.items():
            env = base_env | {"OPENBLAS_NUM_THREADS": "1" if name.startswith("implicit") else str(threads)}
            run_peer = partial(harness.in_fresh_process, python=settings.peers, env=env, timeout=settings.timeout)
            answers[name].append(run_peer("benchmarks.peers", shared | peer))
        for name, cell in ours.items():
            answers[name].append(harness.in_fresh_process(__spec__.name, shared | cell, timeout=settings.timeout))
    for name, by_round in answers.items():
        if failures := [answer["failed"] for answer in by_round if "failed" in answer]:
            print(f"  {name}: {failures[0]}")
    return answers


def _rows(name: str, answers: dict[str, Any], checked: str, flops: float, bytes_: float) -> list[dict[str, Any]]:
    """One row per peer.

    Values, scores, NDCG and similarities are the same number in both and must agree; objectives and errors are only
    listed.
    """
    ours = [answer for answer in answers["jaxrec"] if "failed" not in answer]
    if not ours:
        raise RuntimeError(f"{name}: {answers['jaxrec'][0]['failed']}")
    rows = []
    others = [name for name in answers if name != "jaxrec"]
    for peer in others or ["none"]:
        theirs = [answer for answer in answers.get(peer, []) if "failed" not in answer]
        seconds = median(answer["seconds"] for answer in ours)
        row: dict[str, Any] = {"operation": name, "jaxrec s": seconds, "peer": peer, "ratio": "-"}
        row["peer s"] = "failed" if others else "-"
        row |= {"MiB": max(answer["peak"] for answer in ours) // 2**20, "peer MiB": "-"}
        row |= {"flops": flops, "bytes": bytes_, "jaxrec": f"{checked} {ours[-1][checked]:.6g}", "theirs": "-"}
        if theirs:
            # our process measured the factors that the first peer wrote; a second peer writes none
            objective = ours[-1].get("theirs") if peer == next(iter(answers)) else None
            other = objective or theirs[-1].get(checked)
            if checked in ("value", "scores", "ndcg", "similarity"):
                np.testing.assert_allclose(
                    ours[-1][checked], other, rtol=2e-3 if checked == "ndcg" else 1e-4, err_msg=name
                )
            row |= {
                "peer s": median(answer["seconds"] for answer in theirs),
                "theirs": "-" if other is None else f"{other:.6g}",
            }
            row |= {"ratio": row["peer s"] / seconds, "peer MiB": max(answer["peak"] for answer in theirs) // 2**20}
        rows.append(row)
    return rows


def _ratings(settings: Settings, folder: Path) -> Path:
    """The file of the synthetic ratings, drawn on the first call."""
    sizes = settings.n_users, settings.n_items, settings.ratings
    return inputs.draw_ratings(folder, *sizes, rank=settings.gradient_rank, seed=settings.seed)


def _size(n: int) -> str:
    return f"{n // 1_000_000}M" if n >= 1_000_000 else f"{n:,}"


def _line(row: dict[str, Any]) -> str:
    peer = f"{row['peer s']:.4g} s: {row['ratio']:.2f} times" if row["ratio"] != "-" else row["peer s"]
    return f"  {row['operation']}: {row['jaxrec s']:.4g} s; {row['peer']} {peer}; bound {row['bound s']:.2g} s"


def _draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    compared = [row for row in rows if row["ratio"] != "-"]
    names = [f"{row['operation']}\n{row['peer']}" for row in compared]
    axes.barh(names, [row["ratio"] for row in compared], color="#3b5b8c")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xlabel="times faster than the peer", xscale="log")
    axes.tick_params(axis="y", labelsize=6)
    axes.invert_yaxis()


if __name__ == "__main__":
    if not harness.serve(measure):
        experiment.run(main, Settings)
