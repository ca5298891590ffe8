"""How good is matrix factorization with biases, honestly tuned?

Rank, l2 and l2_bias are chosen by the lowest RMSE on a validation part of train (a tenth, drawn with the seed). The
chosen model is then trained on all of train, and test is read once. Predictions are clipped to the scale.
"""

import time
from dataclasses import dataclass
from typing import Any

import jax

from experiments import harness
from jaxrec import data, models, solvers
from jaxrec.types import Factors, Ratings


@dataclass(frozen=True)
class Settings(harness.Settings):
    """The grid to choose from."""

    ranks: tuple[int, ...] = (4, 8, 12, 16)
    l2s: tuple[float, ...] = (8.0, 10.0, 12.0, 14.0, 17.0)
    l2_biases: tuple[float, ...] = (1.0, 3.0, 6.0)
    sweeps: int = 60


def main(settings: Settings) -> dict[str, Any]:
    """Chooses on validation, fits on train, reports on test; returns what it wrote to OUT/als.json."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    train, test = harness.split(dataset, settings)
    part, validation = data.splits.random(train, test_fraction=0.1, rng=settings.seed)

    grid = {}
    layouts = data.rows(part, "user"), data.rows(part, "item")
    for rank in settings.ranks:
        for l2 in settings.l2s:
            for l2_bias in settings.l2_biases:
                factors, _ = _fit(part, layouts, rank, l2, l2_bias, settings, progress=False)
                grid[rank, l2, l2_bias] = harness.errors(factors, validation, dataset.scale)["rmse"]
        best = min((point for point in grid if point[0] == rank), key=grid.__getitem__)
        print(f"rank {rank:3}: validation RMSE {grid[best]:.4f} at l2 {best[1]:g}, l2_bias {best[2]:g}")
    rank, l2, l2_bias = min(grid, key=grid.__getitem__)

    layouts = data.rows(train, "user"), data.rows(train, "item")
    _fit(train, layouts, rank, l2, l2_bias, settings, progress=False)  # compiles; the next call is timed
    fit_start = time.perf_counter()
    factors, info = _fit(train, layouts, rank, l2, l2_bias, settings, progress=True)
    fit_seconds = time.perf_counter() - fit_start
    result = harness.errors(factors, test, dataset.scale)
    by_biases = models.baselines.damped_biases(train)
    biases = harness.errors(by_biases, test, dataset.scale)
    by_als = f"ALS, rank {rank}, l2 {l2:g}"
    harness.table(
        [
            {"model": "damped biases"} | harness.error_cells(biases),
            {"model": by_als} | harness.error_cells(result),
        ]
    )
    models_ = {"damped biases": by_biases, by_als: factors}
    comparison = harness.compare_errors(models_, ("damped biases",), test, dataset.scale)
    harness.plot("als", settings, lambda axes: _draw(axes, grid, l2_bias, settings))
    named = {"test_rmse_se": result, "damped_biases_test_rmse_se": biases}
    values = {
        "test_rmse": result["rmse"],
        "test_mae": result["mae"],
        "validation_rmse": grid[rank, l2, l2_bias],
        "damped_biases_test_rmse": biases["rmse"],
        "rank": rank,
        "l2": l2,
        "l2_bias": l2_bias,
        "sweeps": info.steps,
        "converged": info.converged,
        "fit_seconds": round(fit_seconds, 3),
    }
    values |= {name: found["rmse_se"] for name, found in named.items() if "rmse_se" in found}
    return harness.report("als", settings, values, time.perf_counter() - start, comparison=comparison)


def _fit(
    train: Ratings, layouts: Any, rank: int, l2: float, l2_bias: float, settings: Settings, *, progress: bool
) -> tuple[Factors, Any]:
    key, mu = jax.random.key(settings.seed), float(train.value.mean())
    init = models.init(train.n_users, train.n_items, rank, key=key, mu=mu)
    by_user, by_item = layouts
    return solvers.als((by_user, by_item), init=init, l2=l2, l2_bias=l2_bias, sweeps=settings.sweeps, progress=progress)


def _draw(axes: Any, grid: dict[Any, float], l2_bias: float, settings: Settings) -> None:
    for rank in settings.ranks:
        axes.plot(settings.l2s, [grid[rank, l2, l2_bias] for l2 in settings.l2s], marker="o", label=f"rank {rank}")
    axes.set(
        xlabel="l2", ylabel="validation RMSE", title=f"ALS on {settings.data} {settings.split}, l2_bias {l2_bias:g}"
    )
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
