"""New users: how good are recommendations after 1, 2, 5, ... of a user's ratings, without training again?

A share of the users is left out of training. For each of these new users (w, b) are solved in closed form from some of
their ratings (`solvers.fold_in`), and the rest of their ratings are predicted. The comparison trains the whole model
again with those ratings, which is what fold-in saves.
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments import harness
from jaxrec import data, models, solvers
from jaxrec.types import Factors, Ratings


@dataclass(frozen=True)
class Settings(harness.Settings):
    """Rank and penalties as experiments.als chose them; the new users, and how many ratings they give."""

    rank: int = 8
    l2: float = 12.0
    l2_bias: float = 3.0
    sweeps: int = 30
    newcomers: float = 0.2  # the share of the users
    kept_for_test: float = 0.5  # of each new user's ratings
    given: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50)


def main(settings: Settings) -> dict[str, Any]:
    """Trains without the new users, folds them in; returns what it wrote to OUT/fold_in.json."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    rng = np.random.default_rng(settings.seed)
    train, given, test = data.splits.by_user(
        dataset.ratings, test_fraction=settings.newcomers, given_fraction=1 - settings.kept_for_test, rng=rng
    )
    harness.audit(train, test, settings)
    print(f"train {len(train)} ratings; newcomers: {len(given)} to give, {len(test)} to predict")
    factors = _train(train, settings)

    given = given.take(rng.permutation(len(given)))
    order = harness.occurrence(given.user)
    fitted = {}
    for n in settings.given:
        part = given.take(order < n)
        folded = solvers.fold_in(factors, data.rows(part, "user"), l2=settings.l2, l2_bias=settings.l2_bias)
        together = harness.together(train, part)
        fitted[n] = {
            "fold-in": folded,
            "trained again": _train(together, settings),
            "damped biases": models.baselines.damped_biases(together),
        }
    found, comparison = harness.by_given(fitted, ("damped biases",), test, dataset.scale, "ratings given")
    curve = {n: {name: each["rmse"] for name, each in row.items()} for n, row in found.items()}

    # The time of one fold-in of all new users, once compiled.
    rows = data.rows(given, "user")
    fold = lambda: jax.block_until_ready(solvers.fold_in(factors, rows, l2=settings.l2, l2_bias=settings.l2_bias))
    fold()
    began = time.perf_counter()
    fold()
    milliseconds = 1e3 * (time.perf_counter() - began)
    n_new = len(np.unique(given.user))
    print(f"Folding {n_new} newcomers with {len(given)} ratings in takes {milliseconds:.1f} ms once compiled.")
    harness.plot("fold_in", settings, lambda axes: _draw(axes, curve, settings))
    values: dict[str, Any] = {f"rmse_given_{n}": row["fold-in"] for n, row in curve.items()}
    values |= {f"trained_again_rmse_given_{n}": row["trained again"] for n, row in curve.items()}
    values |= {f"damped_biases_rmse_given_{n}": row["damped biases"] for n, row in curve.items()}
    values |= {
        f"{prefix}rmse_given_{n}_se": row[name]["rmse_se"]
        for n, row in found.items()
        for prefix, name in (("", "fold-in"), ("trained_again_", "trained again"), ("damped_biases_", "damped biases"))
        if "rmse_se" in row[name]
    }
    values |= {"newcomers": n_new, "fold_in_ms": round(milliseconds, 3), "test_ratings": len(test)}
    return harness.report("fold_in", settings, values, time.perf_counter() - start, comparison=comparison)


def _train(train: Ratings, settings: Settings) -> Factors:
    sides = data.rows(train, "user"), data.rows(train, "item")
    key, mu = jax.random.key(settings.seed), float(train.value.mean())
    init = models.init(train.n_users, train.n_items, settings.rank, key=key, mu=mu)
    factors, _ = solvers.als(
        sides, init=init, l2=settings.l2, l2_bias=settings.l2_bias, sweeps=settings.sweeps, progress=False
    )
    return factors


def _draw(axes: Any, curve: dict[int, dict[str, float]], settings: Settings) -> None:
    for name in ("fold-in", "trained again", "damped biases"):
        axes.plot(list(curve), [row[name] for row in curve.values()], marker="o", label=name)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlabel="ratings given by a new user", ylabel="RMSE of the others", title=f"New users of {settings.data}")
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
