"""What do features add to collaborative filtering, and the other way round?

Three kinds of two-tower models (256-128-32): on declared features alone (age, sex, occupation, region; year, genres);
on these and the rating histories of users and films, without ids; and the hybrid, which has ids as well. The dropout is
chosen for each on a validation part of train (a tenth, drawn with the seed), by the mean RMSE of several single models
(models that differ only in their seed are 0.001 apart, more than the choices). The chosen model is trained on all of
train with several seeds, and test is read once: the mean of single models with its standard deviation, and the average
of their predictions. For the declared features, two ways to map products of unit vectors to ratings are compared on
validation: ratings rescaled to [-1, 1], or a learned scale and offset. Predictions are clipped to the scale.
"""

import dataclasses
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments import films, harness
from jaxrec import data, losses, metrics, models, solvers, training
from jaxrec.losses import penalty
from jaxrec.models import baselines, history, hybrid
from jaxrec.models.two_tower import TwoTower
from jaxrec.types import Factors, Linked, Ratings


@dataclass(frozen=True)
class Settings(harness.Settings):
    """The networks and their training."""

    layers: tuple[int, ...] = (256, 128, 32)
    dropouts: tuple[float, ...] = (0.0, 0.1, 0.2)
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
    seeds: int = 8
    seeds_to_choose: int = 4


def train_hybrid(
    content: hybrid.Content,
    ratings: Linked,
    settings: Any,
    *,
    seed: Array | int,
    dropout: float,
    ids: bool = True,
) -> tuple[TwoTower, hybrid.Hybrid]:
    """(the networks, their parameters), trained by full-batch steps of Adam; a pure function, to be jitted.

    Each step draws a new split of the ratings into histories and targets (`history.sample_mask`). With `ids=False` all
    ids are unknown, so that only features and histories are used.
    """
    towers = TwoTower(layers=tuple(settings.layers), dropout=dropout)
    n = len(ratings.value)
    none_known = jnp.zeros(len(content.users), bool), jnp.zeros(len(content.items), bool)

    def cost(params: hybrid.Hybrid, batch: Any, *, key: Array) -> Array:
        del batch  # content and ratings are traced arguments of the enclosing function
        key_part, key_drop = jax.random.split(key)
        keep = history.sample_mask(
            ratings,
            key=key_part,
            held_out_fraction=settings.held_out_fraction,
            cold_probability=settings.cold_probability,
        )
        factors = hybrid.as_factors(
            towers,
            params,
            content,
            ratings,
            keep,
            known=None if ids else none_known,
            key=key_drop,
            id_dropout=settings.id_dropout,
        )
        held = dataclasses.replace(ratings, where=ratings.where & ~keep)
        error = losses.closed_form.cost(factors, held, l2=0.0) / jnp.sum(held.where, dtype=jnp.float32)
        return error + penalty.l2_penalty(params.ids, l2=settings.l2, l2_bias=settings.l2_bias) / n

    mu = jnp.mean(ratings.value)
    key = jax.random.key(seed)
    init = hybrid.init_params(towers, content, ratings, key=key, rank=settings.rank, width=settings.width, mu=mu)
    rate = optax.cosine_decay_schedule(settings.rate, settings.steps)
    optimizer = optax.adamw(rate, weight_decay=settings.decay, mask=hybrid.weight_decay_mask)
    params, _ = training.descend(cost, init, jnp.zeros(1), optimizer=optimizer, key=key, steps=settings.steps)
    return towers, params


def run_hybrid(
    member: dict[str, Array],
    content: hybrid.Content,
    ratings: Linked,
    *,
    settings: Any,
    dropout: float,
    ids: bool,
) -> Factors:
    """Factors of one member of a grid of seeds, with all of `ratings` as history."""
    towers, params = train_hybrid(content, ratings, settings, seed=member["seed"], dropout=dropout, ids=ids)
    none_known = jnp.zeros(len(content.users), bool), jnp.zeros(len(content.items), bool)
    return hybrid.as_factors(towers, params, content, ratings, known=None if ids else none_known)


def run_declared(
    member: dict[str, Array],
    content: hybrid.Content,
    ratings: Linked,
    *,
    settings: Any,
    dropout: float,
    scale: tuple[float, float],
    learned: bool,
) -> Factors:
    """Factors of the notes' two towers on declared features alone.

    The prediction is slope * (unit user vector . unit item vector) + offset. Slope and offset are learned, or map
    [-1, 1] to the scale.
    """
    towers = TwoTower(layers=tuple(settings.layers), dropout=dropout)
    low, high = scale

    def factors(params: Any, **options: Any) -> Factors:
        vectors: Any = towers.apply(params["towers"], content.users, content.items, **options)
        slope, offset = (params["scale"], params["offset"]) if learned else ((high - low) / 2, (high + low) / 2)
        b = offset * jnp.ones(len(content.users))
        return Factors(w=slope * vectors[0], b=b, x=vectors[1])

    def cost(params: Any, batch: Any, *, key: Array) -> Array:
        del batch
        error = losses.closed_form.cost(factors(params, train=True, rngs={"dropout": key}), ratings, l2=0.0)
        return error / len(ratings.value)

    key = jax.random.key(member["seed"])
    init: dict[str, Any] = {"towers": towers.init(key, content.users, content.items)}
    if learned:
        init |= {"scale": jnp.ones(()), "offset": jnp.mean(ratings.value)}
    rate = optax.cosine_decay_schedule(settings.rate, settings.steps)
    optimizer = optax.adamw(rate, weight_decay=settings.decay)
    params, _ = training.descend(cost, init, jnp.zeros(1), optimizer=optimizer, key=key, steps=settings.steps)
    return factors(params)


def main(settings: Settings) -> dict[str, Any]:
    """Chooses on validation, fits on train, reports on test; returns what it wrote to OUT/hybrid.json."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    scale = dataset.scale or (1.0, 5.0)
    train, test = harness.split(dataset, settings)
    part, validation = data.splits.random(train, test_fraction=0.1, rng=settings.seed)
    content, user_encoder, item_encoder = films.content(dataset)
    print(f"declared: {len(user_encoder.names)} features of users, {len(item_encoder.names)} of films")

    models_ = {
        "declared features, rescaled": partial(run_declared, scale=scale, learned=False),
        "declared features": partial(run_declared, scale=scale, learned=True),
        "features and histories": partial(run_hybrid, ids=False),
        "hybrid": partial(run_hybrid, ids=True),
    }
    als = _als(train, settings)
    values: dict[str, Any] = {}
    predictions: dict[str, np.ndarray] = {  # of test, by all seeds together
        "damped biases": _predict(baselines.damped_biases(train), test, scale),
        "ALS, rank 8": _predict(als, test, scale),
    }
    rows = [
        _row("damped biases", predictions["damped biases"][None], test),
        _row("ALS, rank 8", predictions["ALS, rank 8"][None], test),
    ]
    for name, run in models_.items():
        tried = {}
        for dropout in settings.dropouts:
            predicted = _train(run, dropout, settings.seeds_to_choose, part, validation, content, settings, scale)
            tried[dropout] = float(np.mean([_rmse(single, validation) for single in predicted]))
        dropout = min(tried, key=tried.__getitem__)
        began = time.perf_counter()
        predicted = _train(run, dropout, settings.seeds, train, test, content, settings, scale)
        row = _row(f"{name}, dropout {dropout:g}", predicted, test)
        row["seconds a model"] = (time.perf_counter() - began) / settings.seeds
        rows.append(row)
        predictions[name] = predicted.mean(axis=0)
        key = _key(name)
        values |= {f"{key}_validation_rmse": tried[dropout], f"{key}_dropout": dropout}
        values |= {f"{key}_rmse": row["one, RMSE"], f"{key}_together_rmse": row["together, RMSE"]}
        print(f"{name}: validation RMSE " + ", ".join(f"{d:g}: {e:.4f}" for d, e in tried.items()))
    for row in rows:
        row.setdefault("seconds a model", 0.0)
    errors = [harness.rmse_error(predicted, test) for predicted in predictions.values()]
    keys = ("damped_biases", "als", *(f"{_key(name)}_together" for name in models_))
    values |= {f"{key}_rmse_se": error for key, error in zip(keys, errors, strict=True) if not np.isnan(error)}
    harness.table(
        [
            row | {"together, RMSE": harness.with_error(row["together, RMSE"], error)}
            for row, error in zip(rows, errors, strict=True)
        ]
    )
    comparison = harness.compare(
        {name: harness.squared_errors(predicted, test) for name, predicted in predictions.items()},
        ("damped biases", "ALS, rank 8"),
        metric="squared_error",
        lower_is_better=True,
    )
    values |= {"damped_biases_rmse": rows[0]["one, RMSE"], "als_rmse": rows[1]["one, RMSE"]}
    harness.plot("hybrid", settings, lambda axes: _draw(axes, rows))
    return harness.report("hybrid", settings, values, time.perf_counter() - start, comparison=comparison)


def _key(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")


def _train(
    run: Any,
    dropout: float,
    seeds: int,
    train: Ratings,
    test: Ratings,
    content: hybrid.Content,
    settings: Settings,
    scale: tuple[float, float],
) -> np.ndarray:
    """[seeds, n] predictions of test's ratings by models trained on train; one compilation for all seeds."""
    run = partial(run, settings=settings, dropout=dropout)
    members = {"seed": settings.seed + jnp.arange(seeds)}
    trained = training.grid(run, members, content, data.linked(train), progress=False)
    by_seed = [jax.tree.map(lambda leaf, k=k: leaf[k], trained) for k in range(seeds)]
    return np.stack([_predict(factors, test, scale) for factors in by_seed])


def _predict(factors: Factors, test: Ratings, scale: tuple[float, float]) -> np.ndarray:
    return np.asarray(models.predict(factors, jnp.asarray(test.user), jnp.asarray(test.item)).clip(*scale))


def _rmse(predicted: np.ndarray, test: Ratings) -> float:
    return float(metrics.rmse(jnp.asarray(predicted), jnp.asarray(test.value)))


def _row(name: str, predicted: np.ndarray, test: Ratings) -> dict[str, Any]:
    """A table row from [seeds, n] predictions: single models, and the mean of their predictions."""
    rmses = [_rmse(single, test) for single in predicted]
    mean = predicted.mean(axis=0)
    mae = float(metrics.mae(jnp.asarray(mean), jnp.asarray(test.value)))
    row: dict[str, Any] = {"model": name, "one, RMSE": float(np.mean(rmses)), "deviation": float(np.std(rmses))}
    return row | {"together, RMSE": _rmse(mean, test), "together, MAE": mae}


def _als(train: Ratings, settings: Settings) -> Factors:
    init = models.init(train.n_users, train.n_items, 8, key=jax.random.key(settings.seed), mu=float(train.value.mean()))
    rows = data.rows(train, "user"), data.rows(train, "item")
    return solvers.als(rows, init=init, l2=12.0, l2_bias=3.0, progress=False)[0]


def _draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    names = [row["model"] for row in rows]
    axes.barh(names, [row["one, RMSE"] for row in rows], color="#b8c4d6", label="one model")
    axes.barh(names, [row["together, RMSE"] for row in rows], color="#3b5b8c", height=0.4, label="all seeds together")
    axes.set(xlabel="test RMSE", xlim=(0.85, 1.05))
    axes.invert_yaxis()
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
