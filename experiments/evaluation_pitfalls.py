"""Five ways to measure the same models: which of them change which model is better, or flatter all of them?

Part (a): each user's last film, ranked among the whole catalog, or among 99 sampled films that the user has not rated,
as many papers do (sampled metrics reorder models: Krichene and Rendle 2020). Part (b): the films of train masked, as
they are when films are recommended, or ranked too. Part (c): films of equal score ordered by the lowest id, the worst
case or the expected value over all orders, for scores with many ties; a constant model is as good as popularity if ids
happen to be sorted by popularity. Part (d): the test part drawn at random, or all ratings after a moment. Part (e):
the mean and the films' means fitted to all ratings, or to train alone.

The models are fitted to train with the same settings everywhere: popularity; the films' mean ratings; the cosine of the
users who rated two films; a linear model of films (EASE, Steck 2019); ALS on the ratings, and on who rated what (iALS,
of three ranks). They are not tuned, except that l2 of ALS is what experiments.als chose on u1: the question is how they
are measured. Every rating of test is relevant. Of each pair of models whose order changes both differences are printed,
each with its 95 % interval over users, without correction for the number of pairs: the order is shown to change if
neither interval holds 0.
"""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments import harness
from jaxrec import data, evaluation, models, solvers
from jaxrec.evaluation import Evaluation
from jaxrec.models import baselines
from jaxrec.types import Dataset, Factors, Ratings, Rows

MEASURES = ("ndcg", "hit_rate")
SHORT = {"ndcg": "NDCG", "hit_rate": "HR"}
TIES = ("lowest_id", "expected", "worst")


@dataclass(frozen=True)
class Settings(harness.Settings):
    """The models and the protocols; the splits are the experiment's own, so `split` is not used."""

    split: str = ""
    k: int = 10
    negatives: int = 99
    test_fraction: float = 0.2
    rank: int = 8
    l2: float = 12.0  # of ALS on ratings, as experiments.als chose it
    l2_bias: float = 3.0
    implicit_ranks: tuple[int, ...] = (8, 16, 32)
    implicit_l2: float = 5.0
    unobserved_weight: float = 0.1
    linear_l2: float = 100.0
    sweeps: int = 10


Results = Mapping[str, Evaluation]


def main(settings: Settings) -> dict[str, Any]:
    """Runs all parts; returns what it wrote to OUT/evaluation_pitfalls.json."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    ratings = dataset.ratings
    values: dict[str, Any] = {}
    comparison: dict[str, Any] = {}
    last = data.splits.leave_last(ratings, order="position" if ratings.time is None else "time")
    drawn = data.splits.random(ratings, test_fraction=settings.test_fraction, rng=settings.seed)
    splits = {"last": last, "random": drawn}
    if ratings.time is None:
        print(f"(d) is left out: {dataset.name} has no times.")
    else:
        options: dict[str, Any] = {"target": "all", "new_users": "drop", "test_fraction": settings.test_fraction}
        parts = data.splits.global_time(ratings, **options)
        splits["time"] = data.splits.Split(parts.train, parts.test)
    fitted, als_of = {}, {}
    for name, (train, test) in splits.items():
        harness.audit(train, test, settings, name=name)
        fitted[name], als_of[name] = fit(train, ratings, settings)

    negatives = sampled_negatives(ratings, settings)
    full = measure(fitted["last"], *last, settings)
    sampled = measure(fitted["last"], *last, settings, negatives=negatives)
    among = {"whole catalog": full, f"{settings.negatives} negatives": sampled}
    comparison["a_sampled"] = _show("(a) The last film of each user", among, MEASURES, settings, values)

    seen_ranked = measure(fitted["last"], *last, settings, mask_seen=False)
    masked = {"seen masked": full, "seen ranked": seen_ranked}
    comparison["b_seen"] = _show("(b) The films of train", masked, ("ndcg",), settings, values)
    comparison["c_ties"] = _ties(*last, fitted["last"], settings, values)
    shown = {"last, catalog": full, f"last, {settings.negatives}": sampled, "last, seen ranked": seen_ranked}
    if "time" in splits:
        by_split = {name: measure(fitted[name], *splits[name], settings) for name in ("random", "time")}
        comparison["d_split"] = _show("(d) The split", by_split, ("ndcg",), settings, values)
        shown |= by_split
        _errors_by_split(als_of, splits, dataset, settings, values)
    comparison["e_leak"] = _leakage(*drawn, dataset, als_of["random"], settings, values)
    harness.plot("evaluation_pitfalls", settings, lambda axes: _draw(axes, shown, settings))
    seconds = time.perf_counter() - start
    return harness.report("evaluation_pitfalls", settings, values, seconds, comparison=comparison)


# ------------------------------------------------------------------------------------------- the models


def fit(train: Ratings, everything: Ratings, settings: Settings) -> tuple[dict[str, Array], Factors]:
    """(name -> scores [n_users, n_items], the factors of ALS on ratings), fitted to train."""
    seen = np.zeros((train.n_users, train.n_items), np.float32)
    seen[train.user, train.item] = 1
    by_ratings = als(train, everything, settings)
    scores: dict[str, Any] = {
        "popularity": np.tile(seen.sum(axis=0), (train.n_users, 1)),
        "item mean": models.predict_all(baselines.item_mean(train)),
        "item cosine": seen @ cosines(seen),
        "linear": seen @ linear(seen, settings.linear_l2),
        "ALS": models.predict_all(by_ratings),
    }
    penalties: dict[str, Any] = {"l2": settings.implicit_l2, "unobserved_weight": settings.unobserved_weight}
    clicks = _rows(train, dataclasses.replace(everything, value=np.ones(len(everything), np.float32)))
    for rank in settings.implicit_ranks:
        start = padded_start(train, rank, settings)
        fitted, _ = solvers.implicit_als(clicks, init=start, **penalties, sweeps=settings.sweeps, progress=False)
        scores[f"iALS, {rank}"] = models.predict_all(fitted)
    return {name: jnp.asarray(table, jnp.float32) for name, table in scores.items()}, by_ratings


def padded_start(train: Ratings, rank: int, settings: Settings) -> Factors:
    """Initial factors of this rank, with zeros up to the largest rank, so that all ranks are compiled once.

    Zeros stay: the solution for the users is 0 where the items' factors are 0 and the penalty is not, and vice versa.
    """
    key = jax.random.key(settings.seed)
    start = models.init(train.n_users, train.n_items, rank, key=key, item_bias=False)
    padded = lambda table: jnp.pad(table, ((0, 0), (0, max(settings.implicit_ranks) - rank)))
    return dataclasses.replace(start, w=padded(start.w), x=padded(start.x))


def als(train: Ratings, everything: Ratings, settings: Settings, mu: Any = None) -> Factors:
    """ALS on the ratings of train, with offsets mu: the mean of train, or as passed."""
    # one offset per film also where all are the same: all fits are compiled once
    mu = jnp.broadcast_to(jnp.asarray(train.value.mean() if mu is None else mu, jnp.float32), train.n_items)
    start = models.init(train.n_users, train.n_items, settings.rank, key=jax.random.key(settings.seed), mu=mu)
    penalties: dict[str, Any] = {"l2": settings.l2, "l2_bias": settings.l2_bias}
    rows = _rows(train, everything)
    return solvers.als(rows, init=start, **penalties, sweeps=settings.sweeps, progress=False).factors


def looked_up(scores: Array, users: Array) -> Array:
    """Scores [n, n_items] of users, from those of all: one function for all models, which is compiled once."""
    return scores[users]


def cosines(seen: np.ndarray) -> np.ndarray:
    """[n_items, n_items], the cosine of the users who rated two films; 0 of a film with itself."""
    norm = np.sqrt(np.maximum(seen.sum(axis=0), 1))
    weights = (seen / norm).T @ (seen / norm)
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32)


def linear(seen: np.ndarray, l2: float) -> np.ndarray:
    """[n_items, n_items], the minimum of ‖seen - seen B‖^2 + l2 ‖B‖^2 with a diagonal of 0.

    B = I - P / diag(P), with P = (seen' seen + l2 I)^-1. Source: Steck 2019, Embarrassingly shallow autoencoders.
    """
    gram = seen.T.astype(np.float64) @ seen
    inverse = np.linalg.inv(gram + l2 * np.eye(len(gram)))
    return (np.eye(len(gram)) - inverse / np.diag(inverse)).astype(np.float32)


def _rows(train: Ratings, everything: Ratings) -> Any:
    """The padded rows of all ratings, with those that are not in train masked: all splits have the same shapes."""
    pair = lambda part: part.user * np.int64(part.n_items) + part.item
    tagged = dataclasses.replace(everything, weights=np.isin(pair(everything), pair(train)).astype(np.float32))

    def train_only(rows: Rows) -> Rows:
        only = lambda bucket: dataclasses.replace(bucket, where=bucket.where & (bucket.weights > 0), weights=None)
        return dataclasses.replace(rows, buckets=tuple(map(only, rows.buckets)))

    return train_only(data.rows(tagged, "user")), train_only(data.rows(tagged, "item"))


# ------------------------------------------------------------------------------------------- the parts


def measure(scores: Mapping[str, Array], train: Ratings, test: Ratings, settings: Settings, **protocol: Any) -> Results:
    """Name -> NDCG and hit rate at k of every user."""
    options: dict[str, Any] = {"k": settings.k, "metrics": MEASURES} | protocol
    return {name: evaluation.evaluate(looked_up, train, test, state=table, **options) for name, table in scores.items()}


def sampled_negatives(ratings: Ratings, settings: Settings) -> np.ndarray:
    """[n_users, negatives], for each user films drawn uniformly, without repeats, from those that they never rated."""
    draw = np.random.default_rng(settings.seed).random((ratings.n_users, ratings.n_items))
    draw[ratings.user, ratings.item] = np.inf
    negatives = np.argsort(draw, axis=1)[:, : settings.negatives]
    n_unrated = ratings.n_items - int(np.bincount(ratings.user).max())
    if settings.negatives > n_unrated:
        raise ValueError(f"negatives: expected at most {n_unrated}, which every user has, got {settings.negatives}.")
    return negatives


def reversals(one: Results, other: Results, metric: str) -> list[dict[str, Any]]:
    """The pairs of models whose order is another in `other`, with their paired differences and intervals in both."""
    found = []
    for a, b in combinations(one, 2):
        mean = [results[a].mean[metric] - results[b].mean[metric] for results in (one, other)]
        if mean[0] * mean[1] >= 0:
            continue
        first, second = (evaluation.compare(results[a], results[b], metric=metric) for results in (one, other))
        is_shown = all(each.low > 0 or each.high < 0 for each in (first, second))
        found.append({"a": a, "b": b, "shown": is_shown, "one": first.to_dict(), "other": second.to_dict()})
    return found


def _show(
    title: str, protocols: Mapping[str, Results], measures: tuple[str, ...], settings: Settings, values: dict[str, Any]
) -> list[dict[str, Any]]:
    """Prints the models under two protocols, with standard errors and ranks, and the pairs whose order changes."""
    print(f"\n{title}: mean ± standard error over users (rank)")
    rows: dict[str, dict[str, Any]] = {name: {"model": name} for name in next(iter(protocols.values()))}
    found: list[dict[str, Any]] = []
    for measure in measures:
        metric = f"{measure}@{settings.k}"
        for protocol, results in protocols.items():
            mean = {name: result.mean[metric] for name, result in results.items()}
            for name, result in results.items():
                rank = 1 + sum(other > mean[name] for other in mean.values())
                error = result.standard_error[metric]
                rows[name][f"{SHORT[measure]}, {protocol}"] = f"{harness.with_error(mean[name], error)} ({rank})"
                key = _label(f"{title[1]}_{name}_{protocol}_{measure}")
                values |= {key: mean[name], f"{key}_se": error, f"{key}_rank": rank}
        one, other = protocols.values()
        found += [{"metric": metric} | each for each in reversals(one, other, metric)]
    harness.table(list(rows.values()))
    _print_reversals(found, tuple(protocols))
    values[f"{title[1]}_reversals"] = len(found)
    values[f"{title[1]}_reversals_shown"] = sum(each["shown"] for each in found)
    return found


def _print_reversals(found: list[dict[str, Any]], protocols: tuple[str, ...]) -> None:
    for each in found:
        print(f"  {each['metric']}, {each['a']} minus {each['b']}" + (" (both intervals exclude 0)" * each["shown"]))
        for protocol, side in zip(protocols, ("one", "other"), strict=True):
            c = each[side]
            print(f"    {protocol:<14} {c['difference']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}], p = {c['p']:.2g}")
    shown = sum(each["shown"] for each in found)
    print(f"  {len(found)} pairs of models change their order; of {shown} both intervals exclude 0.")


def _ties(
    train: Ratings, test: Ratings, fitted: Mapping[str, Array], settings: Settings, values: dict[str, Any]
) -> dict[str, Any]:
    """Part (c): scores with many ties, in three orders of tied films, for three numberings of the films."""
    count = np.bincount(train.item, minlength=train.n_items)
    by_popularity = np.argsort(np.argsort(-count, kind="stable"), kind="stable")  # the new id of each film
    at_random = np.random.default_rng(settings.seed).permutation(train.n_items)
    renumbered = lambda ids: [Ratings(p.user, ids[p.item], p.value, p.n_users, p.n_items) for p in (train, test)]
    constant = jnp.zeros((train.n_users, train.n_items))
    cases: dict[str, tuple[Any, Array]] = {
        "constant, the data's ids": ((train, test), constant),
        "constant, ids at random": (renumbered(at_random), constant),
        "constant, ids by popularity": (renumbered(by_popularity), constant),
        "popularity": ((train, test), fitted["popularity"]),
        "popularity, powers of 2": ((train, test), jnp.floor(jnp.log2(jnp.maximum(fitted["popularity"], 1)))),
        "ALS": ((train, test), fitted["ALS"]),
        "ALS, whole stars": ((train, test), jnp.clip(jnp.round(fitted["ALS"]), 1, 5)),
    }
    metric, rows, results = f"ndcg@{settings.k}", [], {}
    for name, ((part, rest), scores) in cases.items():
        row: dict[str, Any] = {"scores": name}
        for ties in TIES:
            found = measure({name: scores}, part, rest, settings, ties=ties)[name]
            results[name, ties] = found
            row[f"NDCG, {ties}"] = harness.with_error(found.mean[metric], found.standard_error[metric])
            key = _label(f"c_{name}_{ties}_ndcg")
            values |= {key: found.mean[metric], f"{key}_se": found.standard_error[metric]}
        rows.append(row)
    print("\n(c) The order of films of one score: mean ± standard error over users")
    harness.table(rows)
    out = {}
    for name in cases:
        difference = compare_protocols(results[name, "lowest_id"], results[name, "expected"], metric)
        print(f"  {name}, lowest id minus expected: {difference['difference']:+.4f} ", end="")
        print(f"[{difference['low']:+.4f}, {difference['high']:+.4f}]")
        out[name] = difference
    return out


def compare_protocols(one: Evaluation, other: Evaluation, metric: str) -> dict[str, Any]:
    """The paired difference of one model under two protocols, which is the question here.

    `evaluation.compare` refuses evaluations of different protocols, since usually a difference of two models is asked
    for; so the protocols are taken off.
    """
    one, other = (dataclasses.replace(each, protocol={}) for each in (one, other))
    return evaluation.compare(one, other, metric=metric).to_dict()


def _errors_by_split(
    als_of: Mapping[str, Factors],
    splits: Mapping[str, Any],
    dataset: Dataset,
    settings: Settings,
    values: dict[str, Any],
) -> None:
    """Part (d), the errors: RMSE on a random part of the ratings and on the latest."""
    rows = []
    models_ = {"item mean": baselines.item_mean, "damped biases": baselines.damped_biases, "ALS": None}
    for name, baseline in models_.items():
        row: dict[str, Any] = {"model": name}
        for split in ("random", "time"):
            train, test = splits[split]
            factors = als_of[split] if baseline is None else baseline(train)
            found = harness.errors(factors, test, dataset.scale)
            row[f"RMSE, {split}"] = harness.with_error(found["rmse"], found.get("rmse_se"))
            values |= {_label(f"d_{name}_{split}_{key}"): value for key, value in found.items() if key != "mae"}
        rows.append(row)
    harness.table(rows)


def _leakage(
    train: Ratings, test: Ratings, dataset: Dataset, honest_als: Factors, settings: Settings, values: dict[str, Any]
) -> dict[str, Any]:
    """Part (e): means of all ratings in place of train's, in three models; all else is fitted to train."""
    everything = dataset.ratings
    means = {"train": data.normalize.means_by_item(train), "all": data.normalize.means_by_item(everything)}
    on = {name: als(train, everything, settings, mu=each.item) for name, each in means.items()}
    with_mu = als(train, everything, settings, mu=float(everything.value.mean()))
    pairs = {
        "global mean": (baselines.global_mean(train), baselines.global_mean(everything)),
        "item mean": (baselines.item_mean(train), baselines.item_mean(everything)),
        "ALS, mu": (honest_als, with_mu),
        "ALS, item means": (on["train"], on["all"]),
    }
    rows, out = [], {}
    for name, (honest, leaked) in pairs.items():
        found = [harness.errors(factors, test, dataset.scale) for factors in (honest, leaked)]
        users = [harness.squared_errors(harness.clipped(f, test, dataset.scale), test) for f in (honest, leaked)]
        difference = evaluation.compare(users[1], users[0], metric="squared_error")
        rows.append(
            {
                "means of": name,
                "RMSE, train's": harness.with_error(found[0]["rmse"], found[0].get("rmse_se")),
                "RMSE, all": harness.with_error(found[1]["rmse"], found[1].get("rmse_se")),
                "all - train's, of squares": f"{difference.difference:+.4f} "
                f"[{difference.low:+.4f}, {difference.high:+.4f}]",
                "p": difference.p,
            }
        )
        for who, each in zip(("train", "all"), found, strict=True):
            values |= {_label(f"e_{name}_{who}_{key}"): value for key, value in each.items() if key != "mae"}
        out[name] = difference.to_dict() | {"lower_is_better": True}
    print("\n(e) Means fitted to all ratings or to train's alone, random split: RMSE ± standard error over users,")
    print("and the paired difference of the users' squared errors, where lower is better")
    harness.table(rows)
    return out


def _label(text: str) -> str:
    return text.lower().replace(",", "").replace("'", "").replace(" ", "_")


def _draw(axes: Any, shown: Mapping[str, Results], settings: Settings) -> None:
    """One line per model over the protocols; where lines cross, the order of two models changes."""
    metric = f"ndcg@{settings.k}"
    # The item mean ranks films with one rating first: with it on the axis, the others' bars would look alike.
    names = [name for name in next(iter(shown.values())) if name != "item mean"]
    for shift, name in enumerate(names):
        mean = np.array([results[name].mean[metric] for results in shown.values()])
        half = 1.96 * np.array([results[name].standard_error[metric] for results in shown.values()])
        x = np.arange(len(shown)) + 0.05 * (shift - 3)
        low = np.minimum(half, 0.9 * mean)  # the axis is logarithmic
        axes.errorbar(x, mean, [low, half], marker="o", markersize=4, capsize=2, linewidth=0.8, label=name)
    axes.set_xticks(np.arange(len(shown)), list(shown), fontsize=8)
    axes.set_yscale("log")
    axes.set(ylabel=f"NDCG at {settings.k}, 95 % intervals", title=f"The same models, measured on {settings.data}")
    axes.legend(frameon=False, fontsize=7, ncols=2)


if __name__ == "__main__":
    harness.run(main, Settings)
