"""From a catalog to a ranked list: how good are the sources of candidates, and how good is their ranking?

The split is by time: ratings after a moment are unknown in training, and those of 4 and above are what users liked
later. Two towers on features and histories, with a bias per film, are trained by the in-batch softmax with log-q
correction on liked films that are in no history of their step; its temperature is chosen by NDCG at 10 on the newest
tenth of train. Printed are the recall of each source and of their union; precision, recall and NDCG at 10 of the ranked
candidates, compared with ranking the full catalog; and for three users what they watched, what they are recommended
and which sources proposed it. A request is one compiled function: a pass of the user tower, look-ups, merging, ranking.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments import films, harness
from jaxrec import data, losses, metrics, models, training
from jaxrec.data import features
from jaxrec.models import baselines, history, hybrid
from jaxrec.models.two_tower import TwoTower
from jaxrec.retrieval import candidates, cosine, rerank, top_k
from jaxrec.retrieval.candidates import Candidates, Table
from jaxrec.types import Dataset, Linked, Ratings

SOURCES = (
    "similar to the last watched",
    "best of favorite genres",
    "best of the region",
    "nearest to the user",
    "most popular",
)


@dataclass(frozen=True)
class Settings(harness.Settings):
    """The split, the sources' sizes, the networks and their training."""

    later: float = 0.2  # the share of the ratings that is after the split
    liked: float = 4.0
    last: int = 10  # the last watched films, whose similar films are candidates
    similar: int = 10  # films per watched film
    genres: int = 3
    of_genre: int = 10
    of_region: int = 20
    near: int = 50
    popular: int = 20
    size: int = 256  # the length of the merged list
    k: int = 10
    layers: tuple[int, ...] = (256, 128, 32)
    dropout: float = 0.1
    width: int = 32
    held_out_fraction: float = 0.3
    cold_probability: float = 0.05
    temperatures: tuple[float, ...] = (0.2, 0.4, 0.8)
    batch: int = 1024
    decay: float = 1e-3
    rate: float = 2e-3
    steps: int = 300


class Catalog(NamedTuple):
    """Vectors and tables that every request reads, computed once."""

    params: hybrid.Hybrid
    items: Array
    c: Array
    tags: Array
    similar: Table
    by_tag: Table
    by_region: Table
    popular: Table


class Request(NamedTuple):
    """Features and history of the user of one request; lists are padded."""

    features: Array
    item: Array
    value: Array
    where: Array
    last: Array
    last_where: Array
    region: Array


def main(settings: Settings) -> dict[str, Any]:
    """Chooses on validation, trains, measures; returns what it wrote to OUT/retrieve_and_rank.json."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    if dataset.ratings.time is None:
        raise ValueError(f"{dataset.name} has no times: 'later' needs them. ml-100k and ml-latest-small have.")
    train, later = data.splits.by_time(dataset.ratings, test_fraction=settings.later)
    harness.audit(train, later, settings)
    part, validation = data.splits.by_time(train, test_fraction=0.1)
    content, *_ = films.content(dataset)
    towers = TwoTower(layers=tuple(settings.layers), dropout=settings.dropout)
    trained = partial(train_towers, towers, content, settings=settings)
    liked = lambda ratings: ratings.take(np.flatnonzero(ratings.value >= settings.liked))

    tried = {
        t: _full_ranking(towers, trained(part, t), content, part, liked(validation))["ndcg"]
        for t in settings.temperatures
    }
    temperature = max(tried, key=tried.__getitem__)
    print("validation NDCG at 10 by temperature: " + ", ".join(f"{t:g}: {v:.4f}" for t, v in tried.items()))
    params = trained(train, temperature)
    catalog = build(towers, params, content, train, regions_of(dataset), settings)
    asking = np.unique(liked(later).user)
    requests = requests_of(content, train, asking, regions_of(dataset), settings)
    answer = jax.jit(partial(respond, towers, settings=settings))
    scores, ids, found = jax.vmap(partial(answer, catalog))(requests)

    relevant, where = map(jnp.asarray, data.padded_items(liked(later), asking))
    known = np.isin(asking, train.user)
    values: dict[str, Any] = {"users": len(asking), "known_users": int(known.sum()), "temperature": temperature}
    rows, shown = [], []
    for source, name in enumerate((*SOURCES, "all together")):
        named = found.proposed_by[:, :, source] if source < len(SOURCES) else found.where
        recall = np.asarray(metrics.recall(found.ids, relevant, where=where, filled=found.where & named))
        row: dict[str, Any] = {
            "source": name,
            "candidates": float(jnp.mean(jnp.sum(named, axis=1, dtype=jnp.float32))),
            "recall, known users": float(recall[known].mean()),
            "recall, new users": float(recall[~known].mean()) if (~known).any() else 0.0,
        }
        rows.append(row)
        cells = {
            f"recall, {who} users": recall[mask] for who, mask in (("known", known), ("new", ~known)) if mask.any()
        }
        shown.append(row | {column: harness.with_error(*harness.mean_and_error(v)) for column, v in cells.items()})
        errors = {
            who: harness.mean_and_error(recall[mask])[1]
            for who, mask in (("known", known), ("new", ~known))
            if mask.sum() > 1
        }
        values |= {f"recall_{who}_{name.replace(' ', '_')}_se": error for who, error in errors.items()}
        values |= {f"recall_known_{name.replace(' ', '_')}": row["recall, known users"]}
        values |= {f"recall_new_{name.replace(' ', '_')}": row["recall, new users"]}
    print(f"\n{len(asking)} users liked something later; {known.sum()} of them had rated before:")
    harness.table(shown)

    measures = {"precision": metrics.precision, "recall": metrics.recall, "ndcg": metrics.ndcg}

    def list_metrics(ids: Array, filled: Array) -> dict[str, np.ndarray]:
        return {
            name: np.asarray(metric(ids, relevant, where=where, filled=filled)) for name, metric in measures.items()
        }

    profile = baselines.content_profile(train, _words(dataset))
    rankings = {
        "candidates, ranked": list_metrics(ids, scores > -jnp.inf),
        "the whole catalog": list_metrics(
            *_top(catalog.items, request_vectors(towers, catalog, requests), train, asking)
        ),
        "content profile": list_metrics(*_factors_top(profile, train, asking)),
        "most popular": list_metrics(*_factors_top(baselines.popularity(liked(train)), train, asking)),
    }
    for name, by_metric in rankings.items():
        for who, mask in (("known", known), ("new", ~known)):
            if mask.any():
                values |= {f"{m}_{who}_{name.replace(' ', '_')}": float(v[mask].mean()) for m, v in by_metric.items()}
    comparison = harness.compare_groups(
        rankings, {"known": known, "new": ~known}, ("content profile", "most popular"), "ranked at 10", values
    )

    request = jax.tree.map(lambda leaf: leaf[0], requests)
    jax.block_until_ready(answer(catalog, request))
    seconds = []
    for _ in range(50):
        began = time.perf_counter()
        jax.block_until_ready(answer(catalog, request))
        seconds.append(time.perf_counter() - began)
    values["request_ms"] = round(1e3 * float(np.median(seconds)), 3)
    print(f"A request takes {values['request_ms']:.2f} ms (median of 50).")
    titles = np.arange(train.n_items).astype(str) if dataset.titles is None else dataset.titles
    for n in np.flatnonzero(known)[:3]:
        _show(int(asking[n]), ids[n], jax.tree.map(lambda leaf, n=n: leaf[n], found), requests, n, train, titles)
    harness.plot("retrieve_and_rank", settings, lambda axes: _draw(axes, rows))
    return harness.report("retrieve_and_rank", settings, values, time.perf_counter() - start, comparison=comparison)


def build(
    towers: TwoTower, params: hybrid.Hybrid, content: Any, train: Ratings, regions: np.ndarray, settings: Settings
) -> Catalog:
    """The catalog, computed from train only."""
    linked = data.linked(train)
    items_known = jnp.zeros(train.n_users, bool), jnp.ones(train.n_items, bool)
    _, items = models.as_vectors(hybrid.as_factors(towers, params, content, linked, known=items_known))
    liked = train.take(np.flatnonzero(train.value >= settings.liked))
    count = np.bincount(liked.item, minlength=train.n_items)
    by_region = np.zeros((int(regions.max()) + 1, train.n_items))
    np.add.at(by_region, (regions[liked.user], liked.item), 1)
    at_most = lambda k: min(k, train.n_items)
    return Catalog(
        params=params,
        items=items,
        c=history.history_features(linked, mu=params.ids.mu, tags=content.tags).c,
        tags=content.tags,
        similar=candidates.nearest(items[:, : settings.layers[-1]], settings.similar, score=cosine, progress=False),
        by_tag=candidates.top_of_groups(
            jnp.asarray(count, jnp.float32), content.tags.T > 0, at_most(settings.of_genre)
        ),
        by_region=candidates.top_of_groups(
            jnp.asarray(by_region, jnp.float32), jnp.asarray(by_region > 0), at_most(settings.of_region)
        ),
        popular=candidates.top_of_groups(
            jnp.asarray(count, jnp.float32), jnp.ones((1, train.n_items), bool), at_most(settings.popular)
        ),
    )


def respond(
    towers: TwoTower, catalog: Catalog, request: Request, *, settings: Settings
) -> tuple[Array, Array, Candidates]:
    """(scores, ids, candidates) of one request; a pure function."""
    vector = _vector(towers, catalog, request)
    seen = request.item, request.where
    viewed = request.where.astype(jnp.float32) @ catalog.tags[request.item]
    genres, genres_where = candidates.favorites(viewed, min(settings.genres, catalog.tags.shape[1]))
    near, nearest = top_k(vector, catalog.items, min(settings.near, len(catalog.items)), exclude=seen)
    sources = [
        candidates.look_up(catalog.similar, request.last, where=request.last_where),
        candidates.look_up(catalog.by_tag, genres, where=genres_where),
        candidates.look_up(catalog.by_region, request.region[None]),
        (nearest, near > -jnp.inf),
        candidates.look_up(catalog.popular, jnp.zeros(1, jnp.int32)),
    ]
    found = candidates.merge(sources, size=settings.size, exclude=seen)
    scores, ids = rerank.rank(vector, catalog.items, found.ids, found.where, k=settings.k)
    return scores, ids, found


def _vector(towers: TwoTower, catalog: Catalog, request: Request) -> Array:
    args = request.features, request.item, request.value, request.where
    return hybrid.user_vector(towers, catalog.params, *args, c=catalog.c, tags=catalog.tags)


def request_vectors(towers: TwoTower, catalog: Catalog, requests: Request) -> Array:
    """The user vectors of several requests."""
    return jax.jit(jax.vmap(partial(_vector, towers, catalog)))(requests)


def train_towers(
    towers: TwoTower, content: Any, train: Ratings, temperature: float, *, settings: Settings
) -> hybrid.Hybrid:
    """Parameters trained by the in-batch softmax on liked films that are in no history of the step."""
    liked = train.take(np.flatnonzero(train.value >= settings.liked))
    count = jnp.asarray(np.bincount(liked.item, minlength=train.n_items), jnp.float32)

    def run(member: dict[str, Array], content: Any, ratings: Linked, count: Array) -> hybrid.Hybrid:
        log_q = losses.softmax.log_popularity(count)
        items_known = jnp.zeros(len(content.users), bool), jnp.ones(len(content.items), bool)

        def cost(params: hybrid.Hybrid, batch: Any, *, key: Array) -> Any:
            del batch  # content and ratings are traced arguments of the enclosing function
            key_part, key_drop, key_batch = jax.random.split(key, 3)
            keep = history.sample_mask(
                ratings,
                key=key_part,
                held_out_fraction=settings.held_out_fraction,
                cold_probability=settings.cold_probability,
            )
            factors = hybrid.as_factors(towers, params, content, ratings, keep, known=items_known, key=key_drop)
            users, items = models.as_vectors(factors)
            # a random batch of the held-out liked ratings: those with the largest random numbers
            target = ratings.where & ~keep & (ratings.value >= settings.liked)
            draw = jnp.where(target, jax.random.uniform(key_batch, target.shape), -1.0)
            _, rows = jax.lax.top_k(draw, min(settings.batch, len(draw)))
            user, item = ratings.user[rows], ratings.item[rows]
            return losses.softmax.in_batch(
                users[user],
                items[item],
                item,
                log_q=log_q[item],
                temperature=temperature,
                user=user,
                where=target[rows],
            )

        key = jax.random.key(member["seed"])
        mu = jnp.mean(ratings.value)
        init = hybrid.init_params(towers, content, ratings, key=key, rank=0, width=settings.width, mu=mu)
        rate = optax.cosine_decay_schedule(settings.rate, settings.steps)
        optimizer = optax.adamw(rate, weight_decay=settings.decay, mask=hybrid.weight_decay_mask)
        return training.descend(cost, init, jnp.zeros(1), optimizer=optimizer, key=key, steps=settings.steps)[0]

    seed = {"seed": settings.seed + jnp.arange(1)}
    stacked = training.grid(run, seed, content, data.linked(train), count, progress=False)
    return jax.tree.map(lambda leaf: leaf[0], stacked)


def _full_ranking(
    towers: TwoTower, params: hybrid.Hybrid, content: Any, train: Ratings, liked: Ratings
) -> dict[str, float]:
    """Metrics at 10 of ranking the full catalog."""
    items_known = jnp.zeros(train.n_users, bool), jnp.ones(train.n_items, bool)
    factors = hybrid.as_factors(towers, params, content, data.linked(train), known=items_known)
    return harness.ranking_metrics(factors, train, liked)


def _top(items: Array, users: Array, seen: Ratings, asking: np.ndarray) -> tuple[Array, Array]:
    """(ids, filled): the 10 best unseen items of each asking user."""
    exclude, exclude_where = map(jnp.asarray, data.padded_items(seen, asking))
    scores, ids = top_k(users, items, 10, exclude=(exclude, exclude_where))
    return ids, scores > -jnp.inf


def _factors_top(factors: Any, seen: Ratings, asking: np.ndarray) -> tuple[Array, Array]:
    users, items = models.as_vectors(factors)
    return _top(items, users[asking], seen, asking)


def requests_of(content: Any, train: Ratings, users: np.ndarray, regions: np.ndarray, settings: Settings) -> Request:
    """One request per user, from their ratings in train, newest first."""
    newest = train.take(np.argsort(-train.time, kind="stable"))  # type: ignore[operator]
    item, where = data.padded_items(newest, users)
    pairs = zip(newest.user.tolist(), newest.item.tolist(), newest.value.tolist(), strict=True)
    rating = {(j, i): y for j, i, y in pairs}
    value = np.array(
        [[rating.get((j, i), 0.0) for i in items] for j, items in zip(users.tolist(), item.tolist(), strict=True)]
    )
    last = min(settings.last, item.shape[1])
    columns = (
        content.users[users],
        item,
        value.astype(np.float32),
        where,
        item[:, :last],
        where[:, :last],
        regions[users].astype(np.int32),
    )
    return Request(*map(jnp.asarray, columns))


def regions_of(dataset: Dataset) -> np.ndarray:
    """[n_users], the number of each user's region; 0 for all users of a dataset without zip codes."""
    if dataset.users is None or "zip_code" not in dataset.users.columns:
        return np.zeros(dataset.ratings.n_users, np.int64)
    return np.unique([films.region(code) for code in dataset.users["zip_code"].to_list()], return_inverse=True)[1]


def _words(dataset: Dataset) -> np.ndarray:
    """[n_items, words], TF-IDF of titles and genres; one constant column for a dataset without titles."""
    if dataset.titles is None:
        return np.ones((dataset.ratings.n_items, 1))
    genres = dataset.items["genres"].to_list() if dataset.items is not None else [[]] * len(dataset.titles)
    text = [
        " ".join([title, *(g.replace("-", "") for g in tags or [])])
        for title, tags in zip(dataset.titles, genres, strict=True)
    ]
    return features.fit_encoder({"text": text}, {"text": features.Text(max_features=2000)})({"text": text})


def _show(
    user: int, ids: Array, found: Candidates, requests: Request, n: int, train: Ratings, titles: np.ndarray
) -> None:
    """Prints what the user of request n last watched, and the recommendations with the sources that proposed them."""
    raw = user if train.user_ids is None else train.user_ids[user]
    last = requests.last[n][requests.last_where[n]].tolist()
    print(f"\nUser {raw} last watched: " + "; ".join(str(titles[i]) for i in last[:4]))
    for rank, item in enumerate(ids.tolist()[:5], start=1):
        position = int(jnp.argmax((found.ids == item) & found.where))
        sources = [SOURCES[s] for s in np.flatnonzero(np.asarray(found.proposed_by[position]))]
        print(f"  {rank}. {titles[item]}  ({', '.join(sources)})")


def _draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    names = [row["source"] for row in rows]
    axes.barh(names, [row["recall, known users"] for row in rows], color="#3b5b8c", label="known users", height=0.4)
    axes.barh(
        names, [row["recall, new users"] for row in rows], color="#b8c4d6", label="new users", align="edge", height=0.3
    )
    axes.set(xlabel="recall of what users later liked")
    axes.invert_yaxis()
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
