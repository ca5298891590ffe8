"""New users and new films: how well does each model predict after 0, 1, 2, 5, 10 ratings?

A share of the users is left out of training; in a second part, a share of the films. For each new user or film, some
ratings are given and the rest are predicted. Nothing is trained again: matrix factorization folds the new row in by its
closed form, the towers see the given ratings as history (with unknown ids), and biases and popularity count them.

Error: RMSE over the other ratings of the new users or films, clipped to the scale. Ranking: for users NDCG at 10 of the
films they liked (4 and above), ranked in the full catalog without the given ones; for films the AUC of who liked them
among those who rated them.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import films, harness, hybrid
from jaxrec import data, evaluation, metrics, models, solvers, training
from jaxrec.models import baselines
from jaxrec.models.hybrid import Content, as_factors
from jaxrec.models.two_tower import TwoTower
from jaxrec.types import Factors, Ratings


@dataclass(frozen=True)
class Settings(harness.Settings):
    """As experiments.als and experiments.hybrid chose them on u1's validation part; the new users and films."""

    newcomers: float = 0.2  # the share of the users, then of the films, that are new
    kept_for_test: float = 0.5  # of the ratings of each new user or film
    given: tuple[int, ...] = (0, 1, 2, 5, 10)
    liked: float = 4.0
    als_rank: int = 8
    als_l2: float = 12.0
    als_l2_bias: float = 3.0
    sweeps: int = 30
    layers: tuple[int, ...] = (256, 128, 32)
    dropout: float = 0.0
    rank: int = 8
    width: int = 32
    held_out_fraction: float = 0.3
    cold_probability: float = 0.05
    id_dropout: float = 0.1
    l2: float = 10.0
    l2_bias: float = 3.0
    decay: float = 1e-3
    rate: float = 2e-3
    steps: int = 300


class Measured(NamedTuple):
    """Measures by their names, their standard errors over users, and the users' own where they have any."""

    mean: dict[str, float]
    error: dict[str, float]
    by_user: dict[str, evaluation.Evaluation]


BASELINES = ("popularity", "damped biases", "ALS, folded in")


def main(settings: Settings) -> dict[str, Any]:
    """Measures new users, then new films; returns what it wrote to OUT/cold_start.json."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    scale = dataset.scale or (1.0, 5.0)
    content, *_ = films.content(dataset)
    values: dict[str, Any] = {}
    curves: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    comparison: dict[str, Any] = {}
    for side in ("user", "item"):
        ratings = dataset.ratings if side == "user" else _flip(dataset.ratings)
        rng = np.random.default_rng(settings.seed)
        parts = data.splits.by_user(
            ratings, test_fraction=settings.newcomers, given_fraction=1 - settings.kept_for_test, rng=rng
        )
        given = parts.given.take(rng.permutation(len(parts.given)))
        order = harness.occurrence(given.user)
        known = np.isin(np.arange(ratings.n_users), parts.train.user)
        train, test = (part if side == "user" else _flip(part) for part in (parts.train, parts.test))
        harness.audit(train, test, settings, name=f"new {side}s")
        n_new = len(np.unique(parts.test.user))
        print(f"{side}s: {len(train)} ratings to train, {n_new} newcomers, {len(test)} to predict")
        trained = _train(train, content, known, side, scale, settings)
        curve: dict[str, dict[int, dict[str, float]]] = {name: {} for name in trained}
        found: dict[int, dict[str, Measured]] = {}
        for n in settings.given:
            part = given.take(order < n)
            part = part if side == "user" else _flip(part)
            measured = {name: _measure(f(part), part, test, side, scale, settings) for name, f in trained.items()}
            found[n] = measured
            for name, each in measured.items():
                curve[name][n] = each.mean
        curves[side] = curve
        for measure in curve["hybrid"][settings.given[0]]:
            shown = {name: row for name, row in curve.items() if measure in row[settings.given[0]]}
            print(f"\n{side}s, {measure}:")
            rows: list[dict[str, Any]] = []
            for n in settings.given:
                errors = {name: found[n][name].error[measure] for name in shown}
                rows.append({"given": n, **{name: row[n][measure] for name, row in shown.items()}})
                rows.append({"given": "±", **errors})
                values |= {
                    f"{side}_{measure}_{name.replace(' ', '_')}_given_{n}_se": error
                    for name, error in errors.items()
                    if not np.isnan(error)
                }
            harness.table(rows)
            values |= {
                f"{side}_{measure}_{name.replace(' ', '_')}_given_{n}": row[n][measure]
                for name, row in shown.items()
                for n in settings.given
            }
            if measure == "AUC":  # of all ratings together: no user has one of their own
                continue
            metric = "squared_error" if measure == "RMSE" else "ndcg"
            for n in settings.given:
                print(f"given {n}: ", end="")
                comparison[f"{side}_{measure}_given_{n}"] = harness.compare(
                    {name: found[n][name].by_user[measure] for name in shown},
                    [name for name in BASELINES if name in shown],
                    metric=metric,
                    lower_is_better=measure == "RMSE",
                )
    harness.plot("cold_start", settings, lambda axes: _draw(axes, curves["user"], settings))
    return harness.report("cold_start", settings, values, time.perf_counter() - start, comparison=comparison)


def _train(
    train: Ratings, content: Content, known: np.ndarray, side: str, scale: tuple[float, float], settings: Settings
) -> dict[str, Any]:
    """Name -> (given ratings -> Factors). Each model is trained once, without the new users or films."""
    mu = float(train.value.mean())
    init = models.init(train.n_users, train.n_items, settings.als_rank, key=jax.random.key(settings.seed), mu=mu)
    rows = [data.rows(train, name) for name in ("user", "item")]
    penalties: dict[str, Any] = {"l2": settings.als_l2, "l2_bias": settings.als_l2_bias}
    als, _ = solvers.als((rows[0], rows[1]), init=init, **penalties, sweeps=settings.sweeps, progress=False)
    linked, seed = data.linked(train), {"seed": settings.seed + jnp.arange(1)}
    declared = training.grid(
        partial(hybrid.run_declared, settings=settings, dropout=0.0, scale=scale, learned=True),
        seed,
        content,
        linked,
        progress=False,
    )
    all_known = {"user": jnp.ones(train.n_users, bool), "item": jnp.ones(train.n_items, bool)}
    trained_known = all_known | {side: jnp.asarray(known)}
    none_known = tuple(jnp.zeros_like(mask) for mask in all_known.values())
    towers = TwoTower(layers=tuple(settings.layers), dropout=settings.dropout)

    def fit(ids: bool) -> Any:
        def run(member: dict[str, Any], content: Content, linked: Any) -> Any:
            options: dict[str, Any] = {"seed": member["seed"], "dropout": settings.dropout, "ids": ids}
            return hybrid.train_hybrid(content, linked, settings, **options)[1]

        return training.grid(run, seed, content, linked, progress=False)

    first = lambda stacked: jax.tree.map(lambda leaf: leaf[0], stacked)
    with_ids, without_ids = first(fit(True)), first(fit(False))
    factors = jax.jit(partial(as_factors, towers))

    def with_history(params: Any, known: Any) -> Any:
        return lambda given: factors(params, content, data.linked(harness.together(train, given)), known=known)

    return {
        "popularity": lambda given: baselines.popularity(harness.together(train, given)),
        "damped biases": lambda given: baselines.damped_biases(harness.together(train, given)),
        "ALS, folded in": lambda given: _fold_in(als, given, side, penalties),
        "declared features": lambda given: first(declared),
        "features and histories": with_history(without_ids, none_known),
        "hybrid": with_history(with_ids, (trained_known["user"], trained_known["item"])),
    }


def _fold_in(als: Factors, given: Ratings, side: str, penalties: dict[str, Any]) -> Factors:
    """Factors with the rows in `given` solved in closed form; all other rows stay as they were trained."""
    folded = solvers.fold_in(als, data.rows(given, side), **penalties)
    new = np.isin(np.arange(given.n_users if side == "user" else given.n_items), getattr(given, side))

    def merged(name: str) -> jax.Array:
        mask = jnp.asarray(new)[(...,) + (None,) * (getattr(als, name).ndim - 1)]
        return jnp.where(mask, getattr(folded, name), getattr(als, name))

    names = {"user": ("w", "b"), "item": ("x", "c")}[side]
    return Factors(**{**vars(als), **{name: merged(name) for name in names}})


def _measure(
    factors: Factors, given: Ratings, test: Ratings, side: str, scale: tuple[float, float], settings: Settings
) -> Measured:
    """RMSE and the side's ranking metric; popularity has no RMSE, since its predictions are counts, not ratings."""
    out, errors, by_user = {}, {}, {}
    if not bool(jnp.all(factors.c == jnp.round(factors.c))) if factors.c is not None else True:
        found = harness.errors(factors, test, scale)
        out["RMSE"], errors["RMSE"] = found["rmse"], found.get("rmse_se", np.nan)
        by_user["RMSE"] = harness.squared_errors(harness.clipped(factors, test, scale), test)
    if side == "user":
        liked = test.take(np.flatnonzero(test.value >= settings.liked))
        by_user["NDCG at 10"] = ranked = harness.ranked(factors, given, liked)
        out["NDCG at 10"], errors["NDCG at 10"] = (each["ndcg@10"] for each in (ranked.mean, ranked.standard_error))
    else:
        score = models.predict(factors, jnp.asarray(test.user), jnp.asarray(test.item))
        liked_too = jnp.asarray(test.value >= settings.liked)
        out["AUC"] = float(metrics.auc(score, liked_too))
        errors["AUC"] = harness.auc_error(score, liked_too, test)
    return Measured(out, errors, by_user)


def _flip(ratings: Ratings) -> Ratings:
    """The same ratings with users as items and items as users."""
    return Ratings(ratings.item, ratings.user, ratings.value, ratings.n_items, ratings.n_users)


def _draw(axes: Any, curve: dict[str, dict[int, dict[str, float]]], settings: Settings) -> None:
    for name, row in curve.items():
        if "RMSE" in row[settings.given[0]]:
            axes.plot(list(row), [measures["RMSE"] for measures in row.values()], marker="o", label=name)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(
        xlabel="ratings given by a new user",
        ylabel="RMSE of the others",
        title=f"New users of {settings.data}",
    )
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
