"""What do accurate lists cost, and what do accurate models recommend? Accuracy beside coverage, novelty and the others.

Four models rank the films that a user has not rated: popularity, ALS of the ratings, implicit ALS of the liked films,
and the hybrid of experiments.hybrid, which is trained to predict ratings, as ALS is. A film is liked, and so is
relevant, from four stars on. Penalties, weights and what popularity counts are chosen by NDCG on a validation part of
train (a tenth, drawn with the seed); test is read once. The hybrid is trained once, with the settings of
experiments.hybrid; its dropout had the best NDCG of three on this validation part of ml-100k's u1.

All measures are of the ten best films of the users that liked a film of test. Coverage and Gini are of all these lists
together. The others are means over users: novelty by self-information in bits, popularity lift over the films that the
user liked in train, diversity by the genres' Jaccard distance, the share of the list that the user liked and popularity
does not list (serendipity), miscalibration of the genres to those of the liked films, and rank-biased overlap with the
list of popularity (RBO). Without genres every film has the same one: diversity and miscalibration are then 0.

Then: do groups of users get lists of the same quality? (The more films there are to be found, the higher is the NDCG of
any model, so that active users have a higher one: what matters is whether a model widens popularity's difference.) And
what does calibration of the genres (Steck 2018) cost? The hundred best films of implicit ALS are reranked, with
trade-offs from 0, its own order, to 1, the genres only.
"""

import dataclasses
import itertools
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments import films, harness, hybrid
from jaxrec import data, evaluation, metrics, models, retrieval, solvers, training
from jaxrec.types import Dataset, Factors, Ratings


@dataclass(frozen=True)
class Settings(harness.Settings):
    """The lists, the choices of each model, and the training of the hybrid."""

    k: int = 10
    liked: float = 4.0  # the lowest rating of a liked film
    rank: int = 8
    l2s: tuple[float, ...] = (6.0, 12.0, 24.0, 48.0)
    l2_biases: tuple[float, ...] = (10.0, 30.0, 100.0, 300.0, 1000.0)
    implicit_rank: int = 16
    implicit_l2s: tuple[float, ...] = (3.0, 10.0, 20.0)
    unobserved_weights: tuple[float, ...] = (0.3, 1.0, 3.0)
    layers: tuple[int, ...] = (256, 128, 32)
    dropout: float = 0.0
    steps: int = 300
    trade_offs: tuple[float, ...] = (0.0, 0.02, 0.1, 0.5)
    candidates: int = 100  # how many films are reranked


class References(NamedTuple):
    """What lists are measured by: tables of every item, and padded lists of every user."""

    n_ratings: Array
    genres: Array
    liked: tuple[Array, Array]
    relevant: tuple[Array, Array]
    popular: tuple[Array, Array]


def main(settings: Settings) -> dict[str, Any]:
    """Chooses on validation, fits on train, measures on test; returns what it wrote to OUT/beyond_accuracy.json."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    train, test = harness.split(dataset, settings)
    part, validation = data.splits.random(train, test_fraction=0.1, rng=settings.seed)

    fitted: dict[str, Factors] = {}
    values: dict[str, Any] = {}
    implicit_grid = {"l2": settings.implicit_l2s, "unobserved_weight": settings.unobserved_weights}
    choices: dict[str, tuple[Any, dict[str, tuple[Any, ...]]]] = {
        "popularity": (_popularity, {"of_liked": (False, True)}),
        "ALS": (_als, {"l2": settings.l2s, "l2_bias": settings.l2_biases}),
        "implicit ALS": (_implicit, implicit_grid),
    }
    for name, (fit, grid) in choices.items():
        choice, ndcg = choose(fit(part, settings), grid, part, validation, settings)
        fitted[name] = fit(train, settings)(**choice)
        values |= {f"{_key(name)}_validation_ndcg": ndcg} | {f"{_key(name)}_{k}": v for k, v in choice.items()}
        print(f"{name}: {', '.join(f'{k} {v:g}' for k, v in choice.items())}; validation NDCG {ndcg:.4f}")
    fitted["hybrid"] = _hybrid(dataset, train, settings)

    lists = {name: top_unseen(factors, train, settings.k) for name, factors in fitted.items()}
    references = References(
        n_ratings=jnp.bincount(jnp.asarray(train.item), length=train.n_items),
        genres=films.content(dataset)[0].tags,
        liked=_padded(liked(train, settings)),
        relevant=_padded(liked(test, settings)),
        popular=_ids_filled(*lists["popularity"]),
    )
    found, shares = {}, {}
    scorer = partial(scores_of_lists, n_items=train.n_items)  # one function for all lists: each is compiled
    measured = partial(measures, scorer, train, test, references, settings)
    for name in fitted:
        found[name], shares[name] = measured(*_ids_filled(*lists[name]))
        values |= _flat(_key(name), found[name], shares[name])
    _print_models(found, shares, settings)
    compared = evaluation.compare_all(found, baseline="popularity", metrics=[f"ndcg@{settings.k}"], rng=settings.seed)
    print(compared)
    for name, each in zip(compared.models, compared.comparisons, strict=True):
        interval = {"": each.difference, "_low": each.low, "_high": each.high, "_p": each.p}
        values |= {f"{_key(name)}_ndcg_minus_popularity{end}": number for end, number in interval.items()}

    rows = [row for name in fitted for row in _group_rows(name, found[name], dataset, train, settings)]
    harness.table(rows, keys=2)
    for row in rows:
        key = f"{_key(row['model'])}_ndcg_{_key(row['groups'].replace(', ', ' minus '))}"
        values |= {key: row["difference"], f"{key}_se": row["s.e."]}

    lists_by_trade_off = rerank(fitted["implicit ALS"], train, references, settings)
    reranked = {trade_off: measured(*lists) for trade_off, lists in lists_by_trade_off.items()}
    _print_reranked(reranked, settings)
    for trade_off, (accuracy, of_lists) in reranked.items():
        values |= _flat(f"trade_off_{trade_off:g}", accuracy, of_lists)
    harness.plot("beyond_accuracy", settings, lambda axes: _draw(axes, found, shares, reranked, settings))
    seconds = time.perf_counter() - start
    return harness.report("beyond_accuracy", settings, values, seconds, comparison=compared.to_dict())


def liked(ratings: Ratings, settings: Settings) -> Ratings:
    """The ratings of liked films."""
    return ratings.take(ratings.value >= settings.liked)


def accuracies(scorer: Any, train: Ratings, test: Ratings, settings: Settings, state: Any = None) -> Any:
    """NDCG and recall of every user at k; what the user liked is relevant."""
    options: dict[str, Any] = {"k": settings.k, "metrics": ("ndcg", "recall"), "relevant_from": settings.liked}
    return evaluation.evaluate(scorer, train, test, **options, state=state)


# The models


def choose(
    fit: Any, grid: dict[str, tuple[Any, ...]], part: Ratings, validation: Ratings, settings: Settings
) -> tuple[dict[str, Any], float]:
    """(the choice of the highest NDCG on validation, that NDCG); `fit` maps a choice to factors fitted to `part`."""
    choices = [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]
    ndcg = [accuracies(fit(**each), part, validation, settings).mean[f"ndcg@{settings.k}"] for each in choices]
    return choices[int(np.argmax(ndcg))], max(ndcg)


def _popularity(train: Ratings, settings: Settings) -> Any:
    counted = {False: train, True: liked(train, settings)}
    return lambda of_liked: models.baselines.popularity(counted[of_liked])


def _als(train: Ratings, settings: Settings) -> Any:
    rows, mu = _rows(train), float(train.value.mean())
    init = models.init(train.n_users, train.n_items, settings.rank, key=jax.random.key(settings.seed), mu=mu)
    return lambda **choice: solvers.als(rows, init=init, **choice, progress=False).factors


def _implicit(train: Ratings, settings: Settings) -> Any:
    clicks = liked(train, settings)
    rows = _rows(dataclasses.replace(clicks, value=np.ones(len(clicks), np.float32)))
    options: dict[str, Any] = {"rank": settings.implicit_rank, "key": jax.random.key(settings.seed), "progress": False}
    return lambda **choice: solvers.implicit_als(rows, **options, **choice).factors


def _rows(ratings: Ratings) -> Any:
    return data.rows(ratings, "user"), data.rows(ratings, "item")


def _hybrid(dataset: Dataset, train: Ratings, settings: Settings) -> Factors:
    """One model as experiments.hybrid trains it."""
    options = hybrid.Settings(layers=settings.layers, steps=settings.steps)
    run = partial(hybrid.run_hybrid, settings=options, dropout=settings.dropout, ids=True)
    member = {"seed": settings.seed + jnp.arange(1)}
    stacked = training.grid(run, member, films.content(dataset)[0], data.linked(train), progress=False)
    return jax.tree.map(lambda leaf: leaf[0], stacked)


# Lists, and what is measured of them


def top_unseen(factors: Factors, seen: Ratings, k: int) -> tuple[Array, Array]:
    """(scores, ids) [n_users, k]: the best items that each user has not seen; -inf where there are fewer."""
    return retrieval.top_k(*models.as_vectors(factors), min(k, seen.n_items), exclude=_padded(seen))


def _padded(ratings: Ratings) -> tuple[Array, Array]:
    ids, where = data.padded_items(ratings, np.arange(ratings.n_users))
    return jnp.asarray(ids), jnp.asarray(where)


def _ids_filled(scores: Array, ids: Array) -> tuple[Array, Array]:
    return ids, scores > -jnp.inf


def measures(
    scorer: Any, train: Ratings, test: Ratings, references: References, settings: Settings, ids: Array, filled: Array
) -> tuple[evaluation.Evaluation, dict[str, float]]:
    """(measures of the list of every user that likes a film of test, measures of all these lists together)."""
    accuracy = accuracies(scorer, train, test, settings, state=jnp.where(filled, ids, train.n_items))
    filled = filled & jnp.asarray(~np.isnan(accuracy["ndcg"]))[:, None]
    beyond = {
        f"{name}@{settings.k}": np.asarray(each)
        for name, each in _metrics_beyond_accuracy(ids, filled, references).items()
    }
    share = {"coverage": metrics.catalog_coverage, "gini": metrics.exposure_gini}
    shares = {name: float(f(ids, n_items=train.n_items, filled=filled)) for name, f in share.items()}
    return dataclasses.replace(accuracy, per_user=dict(accuracy.per_user) | beyond), shares


@jax.jit
def _metrics_beyond_accuracy(ids: Array, filled: Array, references: References) -> dict[str, Array]:
    """Name -> [n_users], NaN where nothing is filled."""
    n_ratings, genres, (history, history_where), (relevant, where), (popular, popular_where) = references
    of_history: Any = {"where": history_where, "filled": filled}
    return {
        "novelty": metrics.self_information(ids, n_ratings, n_users=len(ids), filled=filled),
        "lift": metrics.popularity_lift(ids, history, n_ratings, **of_history),
        "diversity": metrics.intra_list_diversity(ids, genres, distance=metrics.jaccard_distance, filled=filled),
        "serendipity": metrics.serendipity(
            ids, relevant, popular, where=where, filled=filled, expected_where=popular_where
        ),
        "miscalibration": metrics.miscalibration(ids, history, genres, **of_history),
        "rbo": metrics.rank_biased_overlap(ids, popular, where=popular_where, filled=filled),
    }


def rerank(
    factors: Factors, train: Ratings, references: References, settings: Settings
) -> dict[float, tuple[Array, Array]]:
    """Trade-off -> (ids, filled) of the lists that Steck's reranker makes of a model's candidates."""
    scores, ids = top_unseen(factors, train, settings.candidates)
    taste = metrics.category_distribution(references.liked[0], references.genres, filled=references.liked[1])

    @jax.jit
    def calibrated(trade_off: Array) -> tuple[Array, Array]:
        def one_user(scores: Array, ids: Array, taste: Array) -> tuple[Array, Array]:
            genres = references.genres[ids]
            found = metrics.calibrate(scores, genres, taste, k=settings.k, trade_off=trade_off)
            return found.scores, ids[found.positions]

        return jax.vmap(one_user)(scores, ids, taste)

    return {trade_off: _ids_filled(*calibrated(jnp.float32(trade_off))) for trade_off in settings.trade_offs}


def scores_of_lists(lists: Array, users: Array, *, n_items: int) -> Array:
    """[n, n_items]: k for the first item of a user's list [k], 1 for the last, -inf for all others.

    So lists are evaluated, whoever made them, by one program for all. Positions that are not filled have the id
    n_items.
    """
    ids, row = lists[users], jnp.arange(len(users))[:, None]
    order = jnp.broadcast_to(jnp.arange(ids.shape[1], 0, -1).astype(jnp.float32)[None, :], ids.shape)
    return jnp.full((len(users), n_items), -jnp.inf).at[row, ids].set(order, mode="drop")


# Tables, JSON, plot


def groups_of(dataset: Dataset, train: Ratings, where: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """(name, name) of two groups -> 0 or 1 for their users, 2 for the others: sexes, if known; active users."""
    users = np.flatnonzero(where)
    n_ratings = np.bincount(train.user, minlength=train.n_users)[users]
    third = np.full(train.n_users, 2)
    order = users[np.argsort(n_ratings, kind="stable")]
    third[order[: len(order) // 3]] = 0  # of users with the same number, the first by id
    third[order[len(order) - len(order) // 3 :]] = 1
    groups = {("least", "most active"): third}
    if dataset.users is not None and "sex" in dataset.users.columns:
        sex = dataset.users["sex"].to_numpy()
        groups[("women", "men")] = np.select([sex == "F", sex == "M"], [0, 1], 2)
    return groups


def _group_rows(name: str, found: Any, dataset: Dataset, train: Ratings, settings: Settings) -> list[dict[str, Any]]:
    """The NDCG of the groups' users and its difference, with its standard error and 95 % interval (Welch)."""
    ndcg, lift = found["ndcg"], found["lift"]
    rows = []
    for names, group in groups_of(dataset, train, ~np.isnan(ndcg)).items():
        by_group, lifts = (metrics.group_means(each, group, n_groups=3) for each in (ndcg, lift))
        low, high = (float(each[0, 1]) for each in (by_group.low, by_group.high))
        row: dict[str, Any] = {"model": name, "groups": ", ".join(names)}
        row |= {"users": ", ".join(str(n) for n in by_group.n_users.tolist()[:2])}
        row |= {f"NDCG@{settings.k}": float(by_group.mean[0]), "second": float(by_group.mean[1])}
        row |= {"difference": float(by_group.difference[0, 1]), "s.e.": float(by_group.difference_error[0, 1])}
        row |= {"interval": f"[{low:+.4f}, {high:+.4f}]"}
        rows.append(row | {"lift": float(lifts.mean[0]), "second's": float(lifts.mean[1])})
    return rows


def _print_models(found: dict[str, Any], shares: dict[str, dict[str, float]], settings: Settings) -> None:
    first, second = [], []
    for name, each in found.items():
        mean, error = _plain(each.mean), _plain(each.standard_error)
        cell = {name: harness.with_error(mean[name], error[name]) for name in mean}
        row: dict[str, Any] = {
            "model": name,
            f"NDCG@{settings.k}": cell["ndcg"],
            f"recall@{settings.k}": cell["recall"],
        }
        first.append(row | {"serendipity": cell["serendipity"], "RBO with popularity": cell["rbo"]})
        row = {"model": name, **shares[name], "novelty, bits": cell["novelty"], "popularity lift": cell["lift"]}
        second.append(row | {name: cell[name] for name in ("diversity", "miscalibration")})
    print(f"\n{next(iter(found.values())).n_users} users")
    harness.table(first)
    harness.table(second)


def _print_reranked(reranked: dict[float, tuple[Any, dict[str, float]]], settings: Settings) -> None:
    rows, before = [], reranked[settings.trade_offs[0]][0]["ndcg"]
    for trade_off, (each, of_lists) in reranked.items():
        mean, error = _plain(each.mean), _plain(each.standard_error)
        change = (each["ndcg"] - before)[~np.isnan(before)]
        row: dict[str, Any] = {"trade-off": f"{trade_off:g}", f"NDCG@{settings.k}": mean["ndcg"]}
        row |= {"s.e.": error["ndcg"], "change": float(change.mean())}
        row |= {"s.e. of it": float(change.std(ddof=1) / np.sqrt(len(change)))}
        row |= {name: mean[name] for name in ("miscalibration", "diversity", "novelty")}
        rows.append(row | {"coverage": of_lists["coverage"]})
    print("implicit ALS, its genres calibrated:")
    harness.table(rows)


def _flat(prefix: str, found: Any, shares: dict[str, float]) -> dict[str, float]:
    values = {f"{prefix}_{name}": mean for name, mean in _plain(found.mean).items()}
    values |= {f"{prefix}_{name}_se": error for name, error in _plain(found.standard_error).items()}
    return values | {f"{prefix}_{name}": share for name, share in shares.items()}


def _plain(by_name: dict[str, float]) -> dict[str, float]:
    """Names without "@k"."""
    return {name.partition("@")[0]: value for name, value in by_name.items()}


def _key(name: str) -> str:
    return name.lower().replace(" ", "_")


def _draw(axes: Any, found: dict[str, Any], shares: dict[str, Any], reranked: dict[float, Any], settings: Any) -> None:
    """NDCG over novelty; the areas are the coverage."""
    mean = lambda each, name: each.mean[f"{name}@{settings.k}"]
    path = [(mean(each, "novelty"), mean(each, "ndcg")) for each, _ in reranked.values()]
    axes.plot(*zip(*path, strict=True), color="gray", marker=".", linewidth=1, label="implicit ALS, genres calibrated")
    for name, each in found.items():
        x, y, coverage = mean(each, "novelty"), mean(each, "ndcg"), shares[name]["coverage"]
        error = each.standard_error[f"ndcg@{settings.k}"]
        axes.errorbar(x, y, yerr=error, color="#3b5b8c", capsize=3)
        axes.scatter(x, y, s=20 + 3000 * coverage, color="#b8c4d6", alpha=0.7, zorder=0)
        axes.annotate(f"{name}\ncoverage {coverage:.0%}", (x, y), xytext=(10, 8), textcoords="offset points")
    axes.set(xlabel="novelty: self-information, bits", ylabel=f"NDCG@{settings.k}")
    axes.margins(x=0.25, y=0.2)
    axes.legend(frameon=False, loc="lower right")


if __name__ == "__main__":
    harness.run(main, Settings)
