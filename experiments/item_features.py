"""Items given users: how many ratings does a new film need to learn its features, with the users' factors fixed?

The notes' second algorithm. The users' (w, b) are learned on one part of the films. The others are not in training:
their x(i) and c(i) are solved in closed form from a few ratings each, and the rest of their ratings are the test.
Gradient descent on x and c alone reaches the same solution; the number of steps that it takes is printed.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import harness
from jaxrec import data, losses, models, solvers
from jaxrec.training import fit
from jaxrec.types import Factors, Ratings


@dataclass(frozen=True)
class Settings(harness.Settings):
    """Rank and penalties as experiments.als chose them; how many ratings new films may have."""

    rank: int = 8
    l2: float = 12.0
    l2_bias: float = 3.0
    sweeps: int = 30
    new_films: float = 0.2  # the share of the films with enough ratings that are new
    given: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    at_least: int = 60  # ratings of a tested film: enough to give 50 and to predict some
    iterations: int = 500


def main(settings: Settings) -> dict[str, Any]:
    """Learns users on one part of the films, then the other films' features; returns what it wrote to OUT."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    ratings = dataset.ratings
    rng = np.random.default_rng(settings.seed)
    tested = np.flatnonzero(np.bincount(ratings.item, minlength=ratings.n_items) >= settings.at_least)
    if len(tested) < 2:
        raise ValueError(f"at_least: no two films have {settings.at_least} ratings.")
    new = np.zeros(ratings.n_items, bool)
    new[rng.permutation(tested)[: max(1, round(settings.new_films * len(tested)))]] = True
    old, new_ratings = ratings.take(~new[ratings.item]), ratings.take(new[ratings.item])
    users = _learn_users(old, settings)
    print(
        f"users learned on {len(old)} ratings; {int(new.sum())} films with {len(new_ratings)} ratings are new to them"
    )

    new_ratings = new_ratings.take(rng.permutation(len(new_ratings)))
    order = harness.occurrence(new_ratings.item)
    test = new_ratings.take(order >= max(settings.given))  # the same test for every number of given ratings
    harness.audit(old, test, settings)
    fitted = {}
    for n in settings.given:
        part = new_ratings.take(order < n)
        biases = models.baselines.damped_biases(harness.together(old, part))
        fitted[n] = {"closed form": _solve_items(part, users, settings), "damped biases": biases}
    found, comparison = harness.by_given(fitted, ("damped biases",), test, dataset.scale, "ratings given")
    curve = {n: {name: each["rmse"] for name, each in row.items()} for n, row in found.items()}

    given = new_ratings.take(order < max(settings.given))
    steps, excess = _by_descent(given, users, settings)
    print(f"Adam on x and c alone comes within {excess:.1g} of the closed form's cost in {steps} steps.")
    harness.plot("item_features", settings, lambda axes: _draw(axes, curve, settings))
    values = {f"rmse_given_{n}": row["closed form"] for n, row in curve.items()}
    values |= {f"damped_biases_rmse_given_{n}": row["damped biases"] for n, row in curve.items()}
    values |= {
        f"{prefix}rmse_given_{n}_se": row[name]["rmse_se"]
        for n, row in found.items()
        for prefix, name in (("", "closed form"), ("damped_biases_", "damped biases"))
        if "rmse_se" in row[name]
    }
    values |= {"new_films": int(new.sum()), "test_ratings": len(test), "descent_steps": steps, "descent_apart": excess}
    return harness.report("item_features", settings, values, time.perf_counter() - start, comparison=comparison)


def _learn_users(old: Ratings, settings: Settings) -> Factors:
    sides = data.rows(old, "user"), data.rows(old, "item")
    key, mu = jax.random.key(settings.seed), float(old.value.mean())
    init = models.init(old.n_users, old.n_items, settings.rank, key=key, mu=mu)
    factors, _ = solvers.als(sides, init=init, l2=settings.l2, l2_bias=settings.l2_bias, sweeps=settings.sweeps)
    return factors


def _solve_items(ratings: Ratings, users: Factors, settings: Settings) -> Factors:
    rows = data.rows(ratings, "item")
    return solvers.fold_in(users, rows, l2=settings.l2, l2_bias=settings.l2_bias)


def _by_descent(ratings: Ratings, users: Factors, settings: Settings) -> tuple[int, float]:
    """(steps, relative excess over the closed form's cost) of gradient descent on the items, users held fixed."""
    linked = data.linked(ratings)
    cost = partial(losses.closed_form.cost, l2=settings.l2, l2_bias=settings.l2_bias)
    items_only = lambda items, batch: cost(replace(users, x=items[0], c=items[1]), batch)
    best = float(cost(_solve_items(ratings, users, settings), linked))
    zero = jnp.zeros_like(users.x), jnp.zeros_like(users.x[:, 0])
    _, history = fit(
        items_only,
        zero,
        [linked],
        optimizer=optax.adam(0.05),
        key=jax.random.key(settings.seed),
        epochs=settings.iterations,
        progress=False,
        callback=lambda _, state, __: float(items_only(state.params, linked)) <= best * (1 + 1e-4),
    )
    return len(history.loss), float(items_only(history.state.params, linked)) / best - 1


def _draw(axes: Any, curve: dict[int, dict[str, float]], settings: Settings) -> None:
    for name in next(iter(curve.values())):
        axes.semilogx(list(curve), [row[name] for row in curve.values()], marker="o", label=name)
    axes.set(xlabel="ratings given of a new film", ylabel="RMSE of the others", title=f"New films on {settings.data}")
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
