"""Users given items: with the films' features known, how well does a ridge regression per user predict ratings?

The notes' first algorithm. x(i) is the film's genres (and decade), the offset its mean rating, and each user's (w, b)
has a closed form. l2 is found without a validation part: the exact leave-one-out error of all users' regressions is a
differentiable function of l2, so gradient descent on log l2 finds the minimum. A search on a validation part of train
then checks the result.
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import harness
from jaxrec import data, models, solvers
from jaxrec.training import descend
from jaxrec.types import Dataset, Factors, Ratings, Rows


@dataclass(frozen=True)
class Settings(harness.Settings):
    """Where the descent on log l2 starts, and the values that the search tries."""

    start: float = 100.0
    steps: int = 60
    rate: float = 0.2
    l2s: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    l2_bias: float = 1.0


def main(settings: Settings) -> dict[str, Any]:
    """Finds l2 by leave-one-out on train and by validation, reports on test; returns what it wrote to OUT."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    train, test = harness.split(dataset, settings)
    x = features(dataset)
    print(f"{x.shape[1]} features of {x.shape[0]} films")

    factors, rows = model(train, x), data.rows(train, "user")
    l2, trace = descend_leave_one_out(rows, factors, settings)
    curve = {s: _leave_one_out_rmse(rows, factors, s, settings) for s in settings.l2s}

    part, validation = data.splits.random(train, test_fraction=0.1, rng=settings.seed)
    searched = {s: harness.errors(_fit(part, x, s, settings), validation, dataset.scale)["rmse"] for s in settings.l2s}
    by_search = min(searched, key=searched.__getitem__)

    models_ = {
        "item mean": models.baselines.item_mean(train),
        "damped biases": models.baselines.damped_biases(train),
        f"ridge, l2 {l2:.3g} by leave-one-out": _fit(train, x, l2, settings),
        f"ridge, l2 {by_search:g} by validation": _fit(train, x, by_search, settings),
    }
    fitted = {name: harness.errors(factors, test, dataset.scale) for name, factors in models_.items()}
    harness.table([{"model": name} | harness.error_cells(e) for name, e in fitted.items()])
    comparison = harness.compare_errors(models_, ("item mean", "damped biases"), test, dataset.scale)
    harness.plot("user_ridge", settings, lambda axes: _draw(axes, curve, searched, l2, settings))
    by_loo, by_validation = list(fitted.values())[2:]
    named = dict(
        zip(
            ("item_mean_test_rmse", "damped_biases_test_rmse", "test_rmse", "by_validation_test_rmse"),
            fitted.values(),
            strict=True,
        )
    )
    values = {
        "features": x.shape[1],
        "l2_by_leave_one_out": l2,
        "l2_by_validation": by_search,
        "leave_one_out_rmse": float(trace[-1]),
        "validation_rmse": searched[by_search],
        "test_rmse": by_loo["rmse"],
        "test_mae": by_loo["mae"],
        "by_validation_test_rmse": by_validation["rmse"],
        "item_mean_test_rmse": fitted["item mean"]["rmse"],
        "damped_biases_test_rmse": fitted["damped biases"]["rmse"],
    }
    values |= {f"{name}_se": found["rmse_se"] for name, found in named.items() if "rmse_se" in found}
    return harness.report("user_ridge", settings, values, time.perf_counter() - start, comparison=comparison)


def features(dataset: Dataset) -> np.ndarray:
    """Features x [films, features]: genres and decade as 0 and 1, centered; for synthetic ratings the true features."""
    if dataset.truth is not None:
        return np.asarray(dataset.truth.x)
    if dataset.items is None or "genres" not in dataset.items.columns:
        raise ValueError(f"data: expected a dataset whose films have genres, got {dataset.name!r}. Try ml-100k.")
    film_genres = dataset.items["genres"].to_list()
    genres = sorted({genre for tags in film_genres for genre in tags})
    table = np.array([[genre in tags for genre in genres] for tags in film_genres], np.float32)
    if "year" in dataset.items.columns:
        decade = dataset.items["year"].fill_null(0).to_numpy() // 10
        table = np.concatenate([table, (decade[:, None] == np.unique(decade)).astype(np.float32)], axis=1)
    return table - table.mean(0)


def model(train: Ratings, x: np.ndarray) -> Factors:
    """Factors with x as the items' features and the items' means as offset; the users' (w, b) are 0."""
    means = data.normalize.means_by_item(train)
    w, b = jnp.zeros((train.n_users, x.shape[1])), jnp.zeros(train.n_users)
    return Factors(w, b, x=jnp.asarray(x), c=None, mu=jnp.asarray(means.item))


def descend_leave_one_out(rows: Rows, factors: Factors, settings: Settings) -> tuple[float, np.ndarray]:
    """(l2 with the lowest leave-one-out error, RMSE of each step): Adam on log l2, through the ridge solution."""

    def cost(log_l2: jax.Array, batch: tuple[Rows, Factors]) -> jax.Array:
        rows, factors = batch
        return solvers.leave_one_out(factors, rows, l2=jnp.exp(log_l2), l2_bias=settings.l2_bias).mean()

    @jax.jit
    def run(log_l2: jax.Array, batches: tuple[Rows, Factors]) -> tuple[jax.Array, jax.Array]:
        optimizer = optax.adam(settings.rate)
        return descend(cost, log_l2, batches, optimizer=optimizer, key=jax.random.key(0), steps=settings.steps)

    one_batch = jax.tree.map(lambda leaf: leaf[None], (rows, factors))
    log_l2, losses = run(jnp.log(jnp.asarray(settings.start)), one_batch)
    return float(jnp.exp(log_l2)), np.sqrt(np.asarray(losses))


def _leave_one_out_rmse(rows: Rows, factors: Factors, l2: float, settings: Settings) -> float:
    return float(jnp.sqrt(solvers.leave_one_out(factors, rows, l2=l2, l2_bias=settings.l2_bias).mean()))


def _fit(train: Ratings, x: np.ndarray, l2: float, settings: Settings) -> Factors:
    rows = data.rows(train, "user")
    return solvers.fold_in(model(train, x), rows, l2=l2, l2_bias=settings.l2_bias)


def _draw(axes: Any, curve: dict[float, float], searched: dict[float, float], l2: float, settings: Settings) -> None:
    axes.semilogx(list(curve), list(curve.values()), marker="o", label="leave-one-out, train")
    axes.semilogx(list(searched), list(searched.values()), marker="o", label="validation")
    axes.axvline(l2, color="gray", linestyle="--", label="found by the derivative")
    axes.set(xlabel="l2", ylabel="RMSE", title=f"Each user's ridge on {settings.data} {settings.split}")
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
