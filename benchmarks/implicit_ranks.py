"""Implicit ALS at high ranks: objective against seconds of exact sweeps, conjugate gradients and blocks of coordinates.

In every round the exact method makes one sweep, then each other one makes sweeps until it has had as many seconds. So
all have run on the same machine at the same time, and a ratio of seconds means something also where other processes
run. Seconds of compilation are left out, and given apart. Before a row is written, each objective is compared with
`implicit_cost`, and it may not rise.

The data are synthetic, with the counts per user and item of a power law: of twice as many drawn ratings the half with
the highest values are the clicks, so that they have the structure of a model of low rank. Or they are all ratings of a
data set.

With n clicks, R rows of both sides, rank d, s steps or blocks of B coordinates, the work of a sweep is as below without
padding. (Exact sweeps do less where many rows have fewer than d / 2 clicks: those are solved in the dual.) ::

    method    flops                                bytes gathered
    exact     4 n d^2 + R d^3 / 3                  2 n (4 d + 8)
    cg        4 (2 s + 1) n d + 8 R d^2            2 n (4 d + 8)
    blocks    4 n d B + 12 n d + R d B^2 / 3 + 10 R d^2    3 * 2 n (4 d + 8)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, inputs
from experiments import harness as experiment
from jaxrec import data, models, solvers
from jaxrec.types import Ratings

COLUMNS = ("rank", "method", "sweep s", "/ exact", "sweeps", "objective", "bound s", "compile s")


@dataclass(frozen=True)
class Settings:
    """Which data, ranks and methods. A method is 'exact', 'cg' and a number of steps, or 'blocks' and their size."""

    data: str = "drawn"  # or a name that data.load knows
    path: str = ""  # the folder of its files; '' searches the usual places
    n_users: int = 138_493
    n_items: int = 26_744
    ratings: int = 20_000_000
    ranks: tuple[int, ...] = (512,)
    methods: tuple[str, ...] = ("exact", "cg1", "cg3", "blocks32", "blocks64")
    l2: float = 0.003  # times count + unobserved_weight * n_others, as Rendle et al. scale it
    unobserved_weight: float = 0.1
    rounds: int = 3
    max_sweeps: int = 30  # of each method
    timeout: float = 3600.0
    seed: int = 0
    out: str = "results"


def main(settings: Settings) -> dict[str, Any]:
    """Measures each rank in a process of its own; returns what it wrote to OUT/implicit_ranks.json."""
    start, rows, curves = time.perf_counter(), [], {}
    for name in settings.methods:
        _options(name)  # an unknown method is refused before anything runs
    for rank in settings.ranks:
        cell = {**settings.__dict__, "rank": rank}
        answer = harness.in_fresh_process(__spec__.name, cell, timeout=settings.timeout)
        if "failed" in answer:
            raise RuntimeError(f"rank {rank}: {answer['failed']}")
        rows += answer["rows"]
        curves[str(rank)] = answer["curves"]
    experiment.table([{name: row[name] for name in COLUMNS} for row in rows])
    experiment.plot("implicit_ranks", settings, partial(_draw, curves))
    return experiment.report("implicit_ranks", settings, {"rows": rows, "curves": curves}, time.perf_counter() - start)


def _options(method: str) -> dict[str, int]:
    """The options of `implicit_sweep`."""
    for prefix, option in (("cg", "cg_steps"), ("blocks", "block_size")):
        if method.startswith(prefix) and method.removeprefix(prefix).isdecimal():
            return {option: int(method.removeprefix(prefix))}
    if method != "exact":
        raise ValueError(f"methods: expected 'exact', 'cg3' or 'blocks64' with any numbers, got {method!r}.")
    return {}


def work(method: str, n: int, rows: int, d: int) -> tuple[float, float]:
    """(flops, bytes) of a sweep, as in the module's table."""
    options, gathered = _options(method), 2.0 * n * (4 * d + 8)
    if steps := options.get("cg_steps"):
        return 4 * (2 * steps + 1) * n * d + 8 * rows * d**2, gathered
    if size := options.get("block_size"):
        flops = 4 * n * d * size + 12 * n * d + rows * d * size**2 / 3 + 10 * rows * d**2
        return flops, 3 * gathered
    return 4 * n * d**2 + rows * d**3 / 3, gathered


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Measures all methods at one rank; called in its own process."""
    clicks, d = _clicks(cell), cell["rank"]
    sides = tuple(data.rows(clicks, side, devices=jax.devices()) for side in ("user", "item"))
    l2 = solvers.frequency_scaled_l2(clicks, cell["l2"], unobserved_weight=cell["unobserved_weight"])
    options: dict[str, Any] = {"l2": l2, "unobserved_weight": cell["unobserved_weight"]}
    init = models.init(clicks.n_users, clicks.n_items, d, key=jax.random.key(cell["seed"]), item_bias=False)
    init = sides[0].replicate(init)
    cost = jax.jit(partial(solvers.implicit_cost, **options))
    states = {name: _State(init, float(cost(init, sides[0]))) for name in cell["methods"]}
    runs: dict[str, Callable[..., Any]] = {}
    compile_seconds = {}
    for name in cell["methods"]:
        began = time.perf_counter()
        arguments: dict[str, Any] = options | _options(name)
        runs[name] = jax.jit(partial(solvers.implicit_sweep, **arguments)).lower(init, *sides).compile()
        compile_seconds[name] = time.perf_counter() - began
    for _ in range(cell["rounds"]):
        for name, state in states.items():
            state.sweep(runs[name], sides)
            while name != cell["methods"][0] and state.total < states[cell["methods"][0]].total:
                if len(state.seconds) >= cell["max_sweeps"]:
                    break
                state.sweep(runs[name], sides)
    flops_per_second, bytes_per_second = _rates()
    rows = []
    for name, state in states.items():
        state.check(float(cost(state.factors, sides[0])))
        flops, bytes_ = work(name, len(clicks), clicks.n_users + clicks.n_items, d)
        seconds = float(np.median(state.seconds))
        rows.append(
            {
                "rank": d,
                "method": name,
                "sweep s": seconds,
                "/ exact": seconds / float(np.median(states[cell["methods"][0]].seconds)),
                "sweeps": len(state.seconds),
                "objective": state.trace[-1],
                "bound s": max(flops / flops_per_second, bytes_ / bytes_per_second),
                "compile s": compile_seconds[name],
                "flops": flops,
                "bytes": bytes_,
            }
        )
    curves = {
        name: {"seconds": [0.0, *np.cumsum(state.seconds).tolist()], "objective": state.trace}
        for name, state in states.items()
    }
    return {"rows": rows, "curves": curves, "peak": harness.peak_resident()}


class _State:
    """A method's factors, its objectives, and the seconds of its sweeps."""

    def __init__(self, factors: Any, objective: float) -> None:
        self.factors, self.trace, self.seconds = factors, [objective], list[float]()

    @property
    def total(self) -> float:
        return sum(self.seconds)

    def sweep(self, run: Callable[..., Any], sides: Any) -> None:
        began = time.perf_counter()
        self.factors, objective = jax.block_until_ready(run(self.factors, *sides))
        self.seconds.append(time.perf_counter() - began)
        self.trace.append(float(objective))

    def check(self, cost: float) -> None:
        """Raises unless the last objective is the cost of the factors, and no objective rose."""
        np.testing.assert_allclose(self.trace[-1], cost, rtol=1e-4)
        assert (np.diff(self.trace) <= 1e-5 * self.trace[0]).all(), self.trace


def _clicks(cell: dict[str, Any]) -> Ratings:
    if cell["data"] != "drawn":
        ratings = inputs.load_dataset(cell["data"], path=cell["path"], seed=cell["seed"]).ratings
    else:
        ratings = data.synthetic.low_rank(
            cell["n_users"], cell["n_items"], 2 * cell["ratings"], rng=cell["seed"]
        ).ratings
        ratings = ratings.take(np.sort(np.argpartition(-ratings.value, cell["ratings"])[: cell["ratings"]]))
    return Ratings(ratings.user, ratings.item, np.ones(len(ratings)), ratings.n_users, ratings.n_items)


def _rates() -> tuple[float, float]:
    """Flops per second of a product in full precision, bytes per second of a sum, both now."""
    matrix, vector = jnp.ones((1024, 1024)), jnp.ones(2**24)
    multiply = jax.jit(partial(jnp.matmul, precision="highest"))
    product_seconds = harness.seconds(multiply, matrix, matrix, repeats=3)["seconds"]
    return 2 * 1024**3 / product_seconds, 4 * 2**24 / harness.seconds(jax.jit(jnp.sum), vector, repeats=3)["seconds"]


def _draw(curves: dict[str, Any], axes: Any) -> None:
    """Objective against seconds, both logarithmic; the initial objective is left out."""
    for rank, by_method in curves.items():
        for name, curve in by_method.items():
            axes.plot(curve["seconds"][1:], curve["objective"][1:], marker=".", label=f"{name}, d = {rank}")
    axes.set(yscale="log", xscale="log", xlabel="seconds of sweeps", ylabel="objective")
    axes.legend(frameon=False)


if __name__ == "__main__":
    if not harness.serve(measure):
        experiment.run(main, Settings)
