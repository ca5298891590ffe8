"""New users and new films: what does each model know after 0, 1, 2, 5, 10 ratings?

A share of the users is kept out of training altogether; then, in a second part, a share of the films. Of each some
ratings are given, the rest is predicted. Nothing is trained again: matrix factorization folds the newcomer in by its
closed form, the towers see the given ratings in her history (ids unknown), biases and popularity count them.

Error: RMSE over the newcomers' other ratings, clipped to the scale. Ranking: for users NDCG at 10 of what they liked
(4 and above) in the whole catalogue less what they gave; for films the area under the curve of who liked them among
those who rated them.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import films, harness, hybrid
from jaxrec import data, metrics, models, solvers, training
from jaxrec.models import baselines
from jaxrec.models.hybrid import Content, as_factors
from jaxrec.models.two_tower import TwoTower
from jaxrec.types import Factors, Ratings


@dataclass(frozen=True)
class Settings(harness.Settings):
    """As experiments.als and experiments.hybrid chose them on u1's validation part; the newcomers."""

    newcomers: float = 0.2  # the share of the users, then of the films
    kept_for_test: float = 0.5  # of each newcomer's ratings
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
    held: float = 0.3
    cold: float = 0.05
    drop: float = 0.1
    l2: float = 10.0
    l2_bias: float = 3.0
    decay: float = 1e-3
    rate: float = 2e-3
    steps: int = 300


def main(settings: Settings) -> dict[str, Any]:
    """Both parts; returns what it wrote to OUT/cold_start.json."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    scale = dataset.scale or (1.0, 5.0)
    content, *_ = films.content(dataset)
    values: dict[str, Any] = {}
    curves: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
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
        n_new = len(np.unique(parts.test.user))
        print(f"{side}s: {len(train)} ratings to train, {n_new} newcomers, {len(test)} to predict")
        trained = _train(train, content, known, side, scale, settings)
        curve: dict[str, dict[int, dict[str, float]]] = {name: {} for name in trained}
        for n in settings.given:
            part = given.take(order < n)
            part = part if side == "user" else _flip(part)
            for name, factors_after in trained.items():
                curve[name][n] = _measure(factors_after(part), part, test, side, scale, settings)
        curves[side] = curve
        for measure in curve["hybrid"][settings.given[0]]:
            shown = {name: row for name, row in curve.items() if measure in row[settings.given[0]]}
            print(f"\n{side}s, {measure}:")
            harness.table(
                [
                    {"given_fraction": n, **{name: row[n][measure] for name, row in shown.items()}}
                    for n in settings.given
                ]
            )
            values |= {
                f"{side}_{measure}_{name.replace(' ', '_')}_given_{n}": row[n][measure]
                for name, row in shown.items()
                for n in settings.given
            }
    harness.plot("cold_start", settings, lambda axes: _draw(axes, curves["user"], settings))
    return harness.report("cold_start", settings, values, time.perf_counter() - start)


def _train(
    train: Ratings, content: Content, known: np.ndarray, side: str, scale: tuple[float, float], settings: Settings
) -> dict[str, Any]:
    """Name -> (ratings given -> Factors), each trained once, without the newcomers."""
    mu = float(train.value.mean())
    init = models.init(train.n_users, train.n_items, settings.als_rank, key=jax.random.key(settings.seed), mu=mu)
    rows = [data.rows(train, each) for each in ("user", "item")]
    strengths: dict[str, Any] = {"l2": settings.als_l2, "l2_bias": settings.als_l2_bias}
    als, _ = solvers.als((rows[0], rows[1]), init=init, **strengths, sweeps=settings.sweeps, progress=False)
    linked, seed = data.linked(train), {"seed": settings.seed + jnp.arange(1)}
    declared = training.grid(
        partial(hybrid.run_declared, settings=settings, dropout=0.0, scale=scale, learned=True),
        seed,
        content,
        linked,
        progress=False,
    )
    everybody = {"user": jnp.ones(train.n_users, bool), "item": jnp.ones(train.n_items, bool)}
    some = everybody | {side: jnp.asarray(known)}
    nobody = tuple(jnp.zeros_like(each) for each in everybody.values())
    towers = TwoTower(layers=tuple(settings.layers), dropout=settings.dropout)
    fit = lambda ids: training.grid(
        lambda member, content, linked: hybrid.train_hybrid(
            content, linked, settings, seed=member["seed"], dropout=settings.dropout, ids=ids
        )[1],
        seed,
        content,
        linked,
        progress=False,
    )
    one = lambda stacked: jax.tree.map(lambda leaf: leaf[0], stacked)
    with_ids, without = one(fit(True)), one(fit(False))
    run = jax.jit(partial(as_factors, towers))
    after = lambda params, known: (
        lambda given: run(params, content, data.linked(harness.together(train, given)), known=known)
    )
    fold = lambda given: _fold(als, given, side, strengths)
    return {
        "popularity": lambda given: baselines.popularity(harness.together(train, given)),
        "damped biases": lambda given: baselines.damped_biases(harness.together(train, given)),
        "ALS, folded in": fold,
        "declared features": lambda given: one(declared),
        "features and histories": after(without, nobody),
        "hybrid": after(with_ids, (some["user"], some["item"])),
    }


def _fold(als: Factors, given: Ratings, side: str, strengths: dict[str, Any]) -> Factors:
    """The newcomers' rows by the closed form; everybody else's stay as they were trained."""
    folded = solvers.fold_in(als, data.rows(given, side), **strengths)
    new = np.isin(np.arange(given.n_users if side == "user" else given.n_items), getattr(given, side))
    kept = {"user": ("w", "b"), "item": ("x", "c")}[side]
    pick = lambda name: jnp.where(
        jnp.asarray(new)[(...,) + (None,) * (getattr(als, name).ndim - 1)], getattr(folded, name), getattr(als, name)
    )
    return Factors(**{**vars(als), **{name: pick(name) for name in kept}})


def _measure(
    factors: Factors, given: Ratings, test: Ratings, side: str, scale: tuple[float, float], settings: Settings
) -> dict[str, float]:
    out = {}
    if not bool(jnp.all(factors.c == jnp.round(factors.c))) if factors.c is not None else True:  # counts are no ratings
        out["RMSE"] = harness.errors(factors, test, scale)["rmse"]
    if side == "user":
        liked = test.take(np.flatnonzero(test.value >= settings.liked))
        out["NDCG at 10"] = harness.ranking_metrics(factors, given, liked)["ndcg"]
    else:
        score = models.predict(factors, jnp.asarray(test.user), jnp.asarray(test.item))
        out["AUC"] = float(metrics.auc(score, jnp.asarray(test.value >= settings.liked)))
    return out


def _flip(ratings: Ratings) -> Ratings:
    return Ratings(ratings.item, ratings.user, ratings.value, ratings.n_items, ratings.n_users)


def _draw(axes: Any, curve: dict[str, dict[int, dict[str, float]]], settings: Settings) -> None:
    for name, row in curve.items():
        if "RMSE" in row[settings.given[0]]:
            axes.plot(list(row), [each["RMSE"] for each in row.values()], marker="o", label=name)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(
        xlabel="ratings given_fraction by a new user",
        ylabel="RMSE of the others",
        title=f"New users of {settings.data}",
    )
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
