"""The suite's operations on implicit feedback: a fit of EASE, an epoch of BPR, the softmax over the catalog."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, inputs
from benchmarks.peers import draw_batch, sampled_auc
from jaxrec import losses, solvers
from jaxrec.training import negatives

if TYPE_CHECKING:
    from benchmarks.suite import Settings

__all__ = ["MEASURES", "Operation", "bpr", "ease", "softmax"]

EPOCHS = 10
BATCH = 4096


class Operation(NamedTuple):
    """A row of the suite before it is measured.

    Attributes:
        name: of the row.
        cell: what the project measures, a key of MEASURES and its numbers.
        peers: name of a peer -> its cell for `benchmarks.peers`.
        checked: the number of both answers that the table lists.
        flops: at least.
        bytes: at least.
    """

    name: str
    cell: dict[str, Any]
    peers: dict[str, dict[str, Any]]
    checked: str
    flops: float
    bytes: float


def ease(settings: "Settings", folder: Path) -> Iterator[Operation]:
    """The weights of EASE, beside irspack's, which inverts in float64: 41k items of gowalla would take 13 GB each time.

    The flops are those of the Cholesky factor and the inverse, or, with fewer users than items, of the users' ones.
    """
    for name in settings.ease:
        ratings = inputs.load_dataset(name, path=settings.path, seed=settings.seed).ratings
        path = folder / f"ease-{name}.npz"
        inputs.save_ratings(path, ratings)
        cell = {"what": "ease", "path": str(path), "l2": 300.0}
        m = float(min(ratings.n_items, ratings.n_users))
        operation = f"EASE of {ratings.n_items:,} items of {name}"
        yield Operation(operation, cell, {"irspack": cell | {"what": "irspack_ease"}}, "scores", m**3, 8 * m**2)


def bpr(settings: "Settings", folder: Path) -> Iterator[Operation]:
    """An epoch of BPR by stochastic gradients, a random item against every pair; the AUC after `EPOCHS` of them.

    A pair reads and writes three rows of the tables.
    """
    for name in settings.bpr:
        ratings = inputs.load_dataset(name, path=settings.path, seed=settings.seed).ratings
        path = folder / f"bpr-{name}.npz"
        inputs.save_ratings(path, ratings)
        cell = {"what": "bpr", "path": str(path), "rank": 64, "learning_rate": 0.05, "l2": 0.01, "epochs": EPOCHS}
        n = float(len(ratings))
        operation = f"epoch of BPR, {name}, d = 64"
        peers = {"implicit BPR": cell | {"what": "implicit_bpr"}}
        yield Operation(operation, cell, peers, "auc", 14 * n * 64, 2 * 3 * n * 64 * 4)


def softmax(settings: "Settings", folder: Path) -> Iterator[Operation]:
    """Value and gradients of a batch's softmax over all items.

    Three products of all scores: the scores, and two of their gradients.
    """
    n, d = 512, 64
    for m in settings.softmax:
        cell = {"what": "softmax", "batch": n, "items": m, "dim": d, "seed": settings.seed}
        operation = f"softmax of {n:,} rows over {m:,} items with its gradients, d = {d}"
        peers = {"PyTorch cross_entropy": cell | {"what": "torch_softmax"}}
        yield Operation(operation, cell, peers, "value", 6.0 * n * m * d, 4.0 * 2 * (n + m) * d)


def _measure_ease(cell: dict[str, Any]) -> dict[str, Any]:
    ratings = inputs.load_ratings(cell["path"])
    run = lambda: solvers.linear.ease(ratings, l2=cell["l2"])
    seconds = harness.seconds(run, repeats=cell["repeats"])["seconds"]
    scores = run()(jnp.arange(min(100, ratings.n_users)))
    return {"seconds": seconds, "scores": float(np.square(np.asarray(scores, np.float64)).sum())}


def _measure_bpr(cell: dict[str, Any]) -> dict[str, Any]:
    """Plain stochastic gradients in a scan: `losses.bpr` of the gathered rows, whose gradients are added in place.

    Pairs are drawn with replacement, as implicit draws them; a permutation takes a CPU longer than all the steps.
    """
    ratings = inputs.load_ratings(cell["path"])
    n, key = len(ratings), jax.random.key(0)
    rate, l2, rank = cell["learning_rate"], cell["l2"], cell["rank"]
    size = min(BATCH, n)
    user, item = jnp.asarray(ratings.user), jnp.asarray(ratings.item)

    def cost(rows: Any) -> Any:
        v_user, v_item, v_negative = rows
        dot = lambda v: jnp.einsum("nd,nd->n", v_user, v)
        penalty = l2 / 2 * sum(jnp.sum(row**2) for row in rows)
        return losses.bpr(dot(v_item), dot(v_negative)[:, None]).sum + penalty

    def step(tables: Any, batch: Any) -> Any:
        (w, x), (users, items, others) = tables, batch
        g_user, g_item, g_other = jax.grad(cost)((w[users], x[items], x[others]))
        return (w.at[users].add(-rate * g_user), x.at[items].add(-rate * g_item).at[others].add(-rate * g_other)), None

    @jax.jit(donate_argnums=0)
    def epoch(tables: Any, key: Any) -> Any:
        key_order, key_other = jax.random.split(key)
        order = jax.random.randint(key_order, (n // size, size), 0, n)
        others = negatives.uniform(order.shape, ratings.n_items, key=key_other).ids
        return jax.lax.scan(step, tables, (user[order], item[order], others))[0]

    keys = jax.random.split(key, 2 + cell["epochs"])
    sizes = ratings.n_users, ratings.n_items
    tables = tuple(jax.random.normal(k, (m, rank)) / rank for k, m in zip(keys, sizes, strict=False))
    seconds = []
    for k in keys[2:]:
        began = time.perf_counter()
        tables = jax.block_until_ready(epoch(tables, k))
        seconds.append(time.perf_counter() - began)
    w, x = map(np.asarray, tables)
    return {"seconds": median(seconds[1:]), "auc": sampled_auc(w, x, ratings.user, ratings.item)}


def _measure_softmax(cell: dict[str, Any]) -> dict[str, Any]:
    v_user, v_item, ids = map(jnp.asarray, draw_batch(cell))
    run = jax.jit(jax.value_and_grad(lambda u, v: losses.catalogue_softmax(u, v, ids).mean(), argnums=(0, 1)))
    value, _ = run(v_user, v_item)
    seconds = harness.seconds(run, v_user, v_item, repeats=cell["repeats"])["seconds"]
    return {"seconds": seconds, "value": float(value)}


MEASURES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {  # cell['what'] -> the project's own part
    "ease": _measure_ease,
    "bpr": _measure_bpr,
    "softmax": _measure_softmax,
}
