"""What does a request over a catalog of a million items cost, with its vectors and tables computed in advance?

A request for one user is one compiled function: the lists of the nearest items to the user's last ten, of three groups,
of the user's region, of the most popular items and the user's own list are merged without duplicates and seen items,
scored by their vectors, and the ten best are returned. It reads some hundreds of rows, so a larger catalog only costs
cache misses. It is compared with the exact search of the full catalog (`top_k`) for one query and for many, and with
the memory that the search takes beyond the catalog. Each cell runs in a fresh process; answers are checked against
NumPy before they are timed.
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks import harness
from experiments import harness as experiment
from jaxrec.gather import gather
from jaxrec.retrieval import candidates, rerank, top_k
from jaxrec.retrieval.candidates import Table

GROUPS = 20


@dataclass(frozen=True)
class Settings:
    """Sizes."""

    items: tuple[int, ...] = (10_000, 1_000_000)
    searched: tuple[int, ...] = (1_000_000, 10_000_000)
    queries: tuple[int, ...] = (1, 64)
    dim: int = 32
    k: int = 100  # results of a search; a request returns 10
    repeats: int = 20
    timeout: float = 600.0
    seed: int = 0
    out: str = "results"


def main(settings: Settings) -> dict[str, Any]:
    """Measures every cell, prints the table; returns what it wrote to OUT/request.json."""
    start = time.perf_counter()
    cells = [{"what": "request", "items": n, "queries": 1} for n in settings.items]
    cells += [{"what": "search", "items": n, "queries": q} for n in settings.searched for q in settings.queries]
    shared = {"dim": settings.dim, "k": settings.k, "repeats": settings.repeats, "seed": settings.seed}
    rows = [c | harness.in_fresh_process(__spec__.name, c | shared, timeout=settings.timeout) for c in cells]
    if wrong := [row for row in rows if row.get("wrong")]:
        raise RuntimeError(f"cells that failed for another reason than memory or time: {wrong}")
    for row in rows:
        row.setdefault("ms", row.get("failed"))
    columns = ("what", "items", "queries", "ms", "slowest ms", "catalog MB", "extra / catalog")
    experiment.table([{c: row.get(c, "-") for c in columns} for row in rows])
    return experiment.report("request", settings, {"rows": rows}, time.perf_counter() - start)


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Checks one cell, then measures its time and memory; called in its own process."""
    rng = np.random.default_rng(cell["seed"])
    items = rng.standard_normal((cell["items"], cell["dim"]), np.float32)
    return (measure_request if cell["what"] == "request" else measure_search)(cell, rng, items)


def measure_request(cell: dict[str, Any], rng: np.random.Generator, items: np.ndarray) -> dict[str, Any]:
    """Milliseconds of a request on random lists."""
    n = len(items)
    draw = lambda *shape: jnp.asarray(rng.integers(0, n, shape, np.int32))
    lists = lambda rows, k: Table(draw(rows, k), jnp.ones((rows, k), bool))
    catalog = {
        "items": jnp.asarray(items),
        "similar": lists(n, 10),
        "group": lists(GROUPS, 10),
        "region": lists(10, 20),
        "popular": lists(1, 20),
    }
    request = {
        "query": jnp.asarray(rng.standard_normal(cell["dim"], np.float32)),
        "seen": draw(200),
        "groups": jnp.asarray(rng.choice(GROUPS, 3, replace=False), jnp.int32),
        "region": jnp.ones(1, jnp.int32),
        "own": draw(30),
    }
    run = jax.jit(respond)
    _check_request(catalog, request, run(catalog, request))
    timings = harness.seconds(run, catalog, request, repeats=cell["repeats"])
    return {"ms": 1e3 * timings["seconds"], "slowest ms": 1e3 * timings["slowest"]}


def respond(catalog: dict[str, Any], request: dict[str, Array]) -> tuple[Array, Array]:
    """(scores, ids) of the ten best candidates."""
    all_valid = lambda ids: jnp.ones(ids.shape, bool)
    sources = [
        candidates.look_up(catalog["similar"], request["seen"][:10]),
        candidates.look_up(catalog["group"], request["groups"]),
        candidates.look_up(catalog["region"], request["region"]),
        candidates.look_up(catalog["popular"], jnp.zeros(1, jnp.int32)),
        (request["own"], all_valid(request["own"])),
    ]
    found = candidates.merge(sources, size=256, exclude=(request["seen"], all_valid(request["seen"])))
    return rerank.rank(request["query"], catalog["items"], found.ids, found.where, k=10)


def _check_request(catalog: dict[str, Any], request: dict[str, Array], answer: tuple[Array, Array]) -> None:
    """Raises unless the answer is the ten best unseen items of the union of the lists, by NumPy."""
    host = {name: np.asarray(value) for name, value in request.items()}
    rows = lambda name, keys: np.asarray(catalog[name].ids)[keys].ravel()
    union = [
        rows("similar", host["seen"][:10]),
        rows("group", host["groups"]),
        rows("region", [1]),
        rows("popular", [0]),
    ]
    unseen = np.setdiff1d(np.concatenate([*union, host["own"]]), host["seen"])
    score = np.asarray(gather(catalog["items"], jnp.asarray(unseen))).astype(np.float64) @ host["query"]
    np.testing.assert_allclose(answer[0], np.sort(score)[::-1][:10], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(answer[1], unseen[np.argsort(-score, kind="stable")[:10]])


def measure_search(cell: dict[str, Any], rng: np.random.Generator, items: np.ndarray) -> dict[str, Any]:
    """Milliseconds of an exact search, and its memory as a multiple of the catalog's."""
    queries = rng.standard_normal((cell["queries"], cell["dim"]), np.float32)
    best = []  # of each chunk of items, by the definition in float64
    for first in range(0, len(items), 500_000):
        score = queries.astype(np.float64) @ items[first : first + 500_000].T.astype(np.float64)
        best.append(np.partition(score, -min(cell["k"], score.shape[1]), axis=1)[:, -cell["k"] :])
    expected = -np.sort(-np.concatenate(best, axis=1), axis=1)[:, : cell["k"]]
    size = items.nbytes
    arguments = jnp.asarray(queries), jnp.asarray(items)
    del items
    search = lambda queries, items: top_k(queries, items, cell["k"])
    compiled, weights = harness.compile_and_weigh(search, *arguments)
    np.testing.assert_allclose(compiled(*arguments)[0], expected, rtol=1e-4, atol=1e-4)
    timings = harness.seconds(compiled, *arguments, repeats=min(cell["repeats"], 5))
    extra = weights["temporary_bytes"] + weights["output_bytes"]
    return {
        "ms": 1e3 * timings["seconds"],
        "slowest ms": 1e3 * timings["slowest"],
        "catalog MB": round(size / 1e6),
        "extra / catalog": extra / size,
    }


if __name__ == "__main__":
    if not harness.serve(measure):
        experiment.run(main, Settings)
