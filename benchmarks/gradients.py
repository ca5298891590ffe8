"""What does the gradient of J cost, by autodiff or in closed form, on the dense table or on the observed ratings?

Value and gradient of the joint cost J(w, b, x), with item biases, each formulation in a fresh process:

    dense      Y and R as tables, the notes' form                autodiff | closed form (two matrix products)
    observed   user, item, value in any order                    autodiff | closed form (dots in chunks, scatter-adds)
    linked     sorted by user, linked to the order by item  autodiff | closed form (dots in chunks, sparse products)

Every answer is checked against the definition in float64 NumPy before it is timed. The ratio is the time of the fastest
autodiff on observed or linked ratings over the time of the linked closed form. Cells that do not fit into memory are
reported as such.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import harness, inputs
from experiments import harness as experiment
from jaxrec import data, losses
from jaxrec.types import Factors, Ratings

L2 = 0.5
LAYOUTS: dict[str, Callable[..., Any]] = {"dense": data.dense, "observed": data.observed, "linked": data.linked}
GRADIENTS: dict[str, Callable[..., Any]] = {
    "autodiff": jax.value_and_grad(partial(losses.cost, l2=L2)),
    "closed form": partial(losses.closed_form.value_and_gradient, l2=L2),
}


@dataclass(frozen=True)
class Settings:
    """Sizes. 100,000 ratings have MovieLens 100K's tables; all others have n_users and n_items."""

    ratings: tuple[int, ...] = (100_000, 2_000_000, 6_000_000, 20_000_000)
    ranks: tuple[int, ...] = (16, 32, 128)
    n_users: int = 138_000
    n_items: int = 27_000
    repeats: int = 5
    timeout: float = 900.0  # seconds per cell
    seed: int = 0
    out: str = "results"


def main(settings: Settings) -> dict[str, Any]:
    """Measures every cell, prints the table; returns what it wrote to OUT/gradients.json."""
    start = time.perf_counter()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n in settings.ratings:
            tables = (943, 1682) if n == 100_000 else (settings.n_users, settings.n_items)
            path = _draw(*tables, n, settings.seed, Path(folder))
            for rank in settings.ranks:
                for layout in LAYOUTS:
                    for gradient in GRADIENTS:
                        names = {"ratings": n, "rank": rank, "layout": layout, "gradient": gradient}
                        cell = names | {"path": str(path), "repeats": settings.repeats, "seed": settings.seed}
                        rows.append(names | harness.in_fresh_process(__spec__.name, cell, timeout=settings.timeout))
                        print(_line(rows[-1]), flush=True)
            path.unlink()
    ratios = _ratios(rows)
    experiment.table(ratios)
    experiment.plot("gradients", settings, lambda axes: _plot(axes, rows))
    values = {"rows": rows, "ratios": ratios}
    if wrong := [_line(row) for row in rows if row.get("wrong")]:
        raise RuntimeError("cells that failed for another reason than memory or time:\n" + "\n".join(wrong))
    return experiment.report("gradients", settings, values, time.perf_counter() - start)


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Measures the memory of one cell, checks its answer, then times it; called in its own process."""
    ratings = inputs.load_ratings(cell["path"])
    # while the layout is built, the host and the device each hold a copy
    if failure := harness.fits(2 * data.memory(ratings)[cell["layout"]]):
        return {"failed": failure}
    layout = LAYOUTS[cell["layout"]](ratings)
    factors = inputs.random_factors(ratings, cell["rank"], seed=cell["seed"])
    before = harness.peak_resident()
    compiled, weights = harness.compile_and_weigh(GRADIENTS[cell["gradient"]], factors, layout)
    if failure := harness.fits(weights["temporary_bytes"] + weights["output_bytes"]):
        return weights | {"failed": failure}
    check(ratings, factors, compiled(factors, layout))
    timings = harness.seconds(compiled, factors, layout, repeats=cell["repeats"])
    peak = harness.peak_resident()
    return weights | timings | {"peak_resident": peak, "resident_of_the_gradient": peak - before}


def check(ratings: Ratings, factors: Factors, answer: tuple[Any, Any], *, n_rows: int = 20) -> None:
    """Raises where the value, or the gradient of some users and items, differs from the definition in float64."""
    w, b, x, c, mu = (np.asarray(a, np.float64) for a in (factors.w, factors.b, factors.x, factors.c, factors.mu))
    value, gradient = answer
    expected = L2 / 2 * ((w**2).sum() + (x**2).sum())
    for first in range(0, len(ratings), 1_000_000):
        part = ratings.take(slice(first, first + 1_000_000))
        j, i = part.user, part.item
        expected += 0.5 * ((np.einsum("nd,nd->n", w[j], x[i]) + b[j] + c[i] + mu - part.value) ** 2).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    rng = np.random.default_rng(0)
    for j in rng.choice(ratings.n_users, n_rows):
        mask = ratings.user == j
        i = ratings.item[mask]
        e = x[i] @ w[j] + b[j] + c[i] + mu - ratings.value[mask]
        np.testing.assert_allclose(gradient.w[j], e @ x[i] + L2 * w[j], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(gradient.b[j], e.sum(), rtol=1e-3, atol=1e-3)
    for i in rng.choice(ratings.n_items, n_rows):
        mask = ratings.item == i
        j = ratings.user[mask]
        e = w[j] @ x[i] + b[j] + c[i] + mu - ratings.value[mask]
        rounding = 1e-6 * np.abs(e).sum()  # of a float32 sum of these terms
        np.testing.assert_allclose(gradient.x[i], e @ w[j] + L2 * x[i], rtol=1e-3, atol=1e-3 + rounding)
        np.testing.assert_allclose(gradient.c[i], e.sum(), rtol=1e-3, atol=1e-3 + rounding)


def _draw(n_users: int, n_items: int, n: int, seed: int, folder: Path) -> Path:
    ratings = data.synthetic.low_rank(n_users, n_items, n, rng=seed).ratings
    print(f"\n{ratings}")
    path = folder / f"{n}.npz"
    inputs.save_ratings(path, ratings)
    return path


def _line(row: dict[str, Any]) -> str:
    head = f"  {row['ratings']:>10,} rank {row['rank']:3}  {row['layout']:8} {row['gradient']:11}"
    if "failed" in row:
        return f"{head} {row['failed']}"
    return (
        f"{head} {1e3 * row['seconds']:9.1f} ms ({1e3 * row['fastest']:.1f} to {1e3 * row['slowest']:.1f}), "
        f"compiled in {row['compile_seconds']:.2f} s, temporaries {row['temporary_bytes'] / 1e6:.0f} MB, "
        f"resident +{row['resident_of_the_gradient'] / 1e6:.0f} MB"
    )


def _ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per number of ratings and rank: the fastest sparse autodiff, the linked closed form, and their ratios."""
    out = []
    for n, rank in dict.fromkeys((row["ratings"], row["rank"]) for row in rows):
        cells = [row for row in rows if (row["ratings"], row["rank"]) == (n, rank) and "failed" not in row]
        autodiff = [row for row in cells if row["gradient"] == "autodiff" and row["layout"] != "dense"]
        closed = [row for row in cells if row["gradient"] == "closed form" and row["layout"] == "linked"]
        line: dict[str, Any] = {"ratings": n, "rank": rank, "autodiff s": "does not fit", "closed form s": "-"}
        line |= {"ratio": "-", "autodiff MB": "-", "closed form MB": "-", "memory ratio": "-"}
        if closed:
            line |= {"closed form s": closed[0]["seconds"]}
            line |= {"closed form MB": round(closed[0]["temporary_bytes"] / 1e6)}
        if autodiff:
            fastest = min(autodiff, key=lambda row: row["seconds"])
            line |= {"autodiff s": fastest["seconds"], "autodiff MB": round(fastest["temporary_bytes"] / 1e6)}
        if autodiff and closed:
            line["ratio"] = fastest["seconds"] / closed[0]["seconds"]
            line["memory ratio"] = closed[0]["temporary_bytes"] / max(1, fastest["temporary_bytes"])
        out.append(line)
    return out


def _plot(axes: Any, rows: list[dict[str, Any]]) -> None:
    rank = 32 if any(row["rank"] == 32 for row in rows) else rows[0]["rank"]
    for layout in LAYOUTS:
        for gradient, style in (("autodiff", "--"), ("closed form", "-")):
            line = [row for row in rows if (row["layout"], row["gradient"], row["rank"]) == (layout, gradient, rank)]
            line = [row for row in line if "failed" not in row]
            color = {"dense": "tab:gray", "observed": "tab:orange", "linked": "tab:blue"}[layout]
            if line:
                x, y = [row["ratings"] for row in line], [row["seconds"] for row in line]
                axes.loglog(x, y, style, color=color, marker="o", label=f"{layout}, {gradient}")
    axes.set(xlabel="ratings", ylabel="seconds", title=f"Value and gradient of J, rank {rank}")
    if axes.lines:
        axes.legend(frameon=False)


if __name__ == "__main__":
    if not harness.serve(measure):
        experiment.run(main, Settings)
