"""The methods of `experiments.published_implicit`; `experiments.implicit_grids` has the settings they choose from.

A method is a function fit(train, given, context) that prepares what its settings share and returns a function of one
point of its grid, which returns a scorer of the users of `given`. `given` is `train`, or the histories of users who are
not in train.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.implicit_grids import Settings
from jaxrec import data, losses, models, solvers, training
from jaxrec.models import bag_of_items, linear
from jaxrec.models.linear_operators import Hop, Sum
from jaxrec.models.neighbors import item_scorer
from jaxrec.numerics import product, unit_vectors
from jaxrec.prediction import scorer_vectors
from jaxrec.pytree import register_dataclass
from jaxrec.solvers import neighbors
from jaxrec.training import lazy, negatives
from jaxrec.types import Factors, Ratings

IRSPACK_LISTS = Path(__file__).parent.parent / "benchmarks" / "irspack_lists.py"
LISTED = 100  # the length of a peer's lists: no figure looks further


class Context(NamedTuple):
    """What a method may need beside its data.

    Attributes:
        seed: of everything random.
        choices: the settings chosen so far for the table, for methods made of others.
        peers: the Python of an environment with the peers.
    """

    seed: int
    choices: Mapping[str, Any]
    peers: str


Fit = Callable[[Ratings, Ratings, Context], Callable[[Settings], Any]]


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        fit: see the module.
        is_baseline: whether the others are compared with the best of it and its like.
        is_peer: whether it needs the peers' environment.
    """

    fit: Fit
    is_baseline: bool = False
    is_peer: bool = False


# ------------------------------------------------------------------------------------------- baselines


def popularity(train: Ratings, given: Ratings, context: Context) -> Any:
    """The same list for everybody."""
    return lambda settings: models.baselines.popularity(train)


def item_knn(train: Ratings, given: Ratings, context: Context) -> Any:
    """The users' items' nearest neighbors by cosine."""
    return lambda settings: item_scorer(given, neighbors.item_knn(train, **settings).rows)


def rp3beta(train: Ratings, given: Ratings, context: Context) -> Any:
    """Walks of three steps, damped by popularity."""
    return lambda settings: item_scorer(given, neighbors.rp3beta(train, **settings).rows)


def ease(train: Ratings, given: Ratings, context: Context) -> Any:
    """EASE as published."""
    return lambda settings: _for_users(solvers.linear.ease(train, **settings), train, given)


def ials(train: Ratings, given: Ratings, context: Context) -> Any:
    """Implicit ALS whose l2 grows with the counts (Rendle et al. 2022, Revisiting the performance of iALS)."""
    layouts = data.rows(train, "user"), data.rows(train, "item")

    def scorer(settings: Settings) -> Factors:
        scale: dict[str, Any] = {"unobserved_weight": settings["unobserved_weight"]}
        fitted = solvers.implicit_als(
            layouts,
            l2=solvers.frequency_scaled_l2(train, settings["l2"], **scale),
            **scale,
            rank=settings["rank"],
            sweeps=settings["sweeps"],
            cg_steps=settings.get("cg_steps"),
            tol=0.0,
            key=jax.random.key(context.seed),
            progress=False,
        ).factors
        if given is train:
            return fitted
        l2 = solvers.frequency_scaled_l2(given, settings["l2"], **scale)
        return solvers.implicit_fold_in(fitted, data.rows(given, "user"), l2=l2, **scale)

    return scorer


# ------------------------------------------------------------------------------------------- ours


def closed_form(train: Ratings, given: Ratings, context: Context) -> Any:
    """ChebyCF's filter, and one hop in which users with many items say less: R'R with R = Du^-h X Di^-1/2."""
    x = linear.histories(train)

    def scorer(settings: Settings) -> Any:
        filters = dict(settings)
        weight, h = filters.pop("hop_weight"), filters.pop("hop_user_exponent")
        smooth = solvers.linear.cheby_cf(train, **filters, key=jax.random.key(context.seed)).operator
        hop = Hop(solvers.linear.normalized(x, user_power=-h))
        operator = Sum((smooth, hop), jnp.array([1, weight], jnp.float32))
        return _for_users(linear.LinearScorer(x, operator), train, given)

    return scorer


def low_pass(train: Ratings, given: Ratings, context: Context) -> Any:
    """An ideal low pass of the normalized item graph, and one hop: `solvers.linear.low_pass`."""
    shared: dict[str, Any] = {}

    def scorer(settings: Settings) -> Any:
        rank = settings["rank"]
        if shared.get("rank", 0) < rank:
            graph = solvers.linear.normalized(linear.histories(train))
            shared.update(
                rank=rank, spectrum=solvers.linear.spectrum(graph, rank=rank, key=jax.random.key(context.seed))
            )
        return _for_users(solvers.linear.low_pass(train, **settings, spectrum=shared["spectrum"]), train, given)

    return scorer


def cheby_cf(train: Ratings, given: Ratings, context: Context) -> Any:
    """ChebyCF: a plateau-shaped filter of the whole spectrum, and an ideal low pass."""

    def scorer(settings: Settings) -> Any:
        key = jax.random.key(context.seed)
        return _for_users(solvers.linear.cheby_cf(train, **settings, key=key), train, given)

    return scorer


def softmax_mf(train: Ratings, given: Ratings, context: Context) -> Any:
    """Matrix factorization of cosines by a softmax over sampled items."""

    def scorer(settings: Settings) -> tuple[Array, Array]:
        tables = fit_cosine_softmax(train, seed=context.seed, **settings)
        return unit_vectors(tables["user"]), unit_vectors(tables["item"])

    return scorer


def fit_cosine_softmax(
    train: Ratings,
    *,
    rank: int,
    temperature: float,
    negatives_per_batch: int,
    batch_size: int,
    learning_rate: float,
    epochs: int,
    seed: int,
) -> dict[str, Array]:
    """The users' and the items' tables; a step reads and writes only the rows of its pairs and negatives."""
    key_user, key_item, key_order = jax.random.split(jax.random.key(seed), 3)
    sizes = {"user": (train.n_users, key_user), "item": (train.n_items, key_item)}
    tables = {name: 0.1 * jax.random.normal(key, (n, rank)) for name, (n, key) in sizes.items()}
    optimizer = optax.adam(learning_rate)

    def cost(params: Any, rows: Any, batch: Any) -> Any:
        pairs, drawn = batch
        v_item = unit_vectors(rows["item"])
        n = len(pairs.user)
        return losses.softmax.sampled(
            unit_vectors(rows["user"]),
            v_item[:n],
            v_item[n:],
            pairs.item,
            drawn,
            temperature=temperature,
            where=pairs.where,
        )

    def rows(batch: Any) -> Any:
        pairs, drawn = batch
        items = jnp.concatenate([pairs.item, drawn]), jnp.concatenate([pairs.where, jnp.ones(drawn.shape, bool)])
        return {"user": (pairs.user, pairs.where), "item": items}

    state = lazy.init_state((), tables, optimizer)
    for number, rate in enumerate((learning_rate, learning_rate / 3, learning_rate / 10)):
        # A schedule of `lazy` would count the steps of each row: the last two sixths of the epochs have their own step.
        update = lazy.make_step(cost, optax.adam(rate), rows)

        def step(state: Any, pairs: Any, *, key: Array, update: Callable[..., Any] = update) -> Any:
            drawn = negatives.uniform((negatives_per_batch,), train.n_items, key=jax.random.fold_in(key, state.step))
            return update(state, (pairs, drawn.ids), key=key)

        sixth = -(-epochs // 6)
        state, _ = training.epochs(
            step,
            state,
            data.observed(train),
            batch_size=batch_size,
            key=jax.random.fold_in(key_order, number),
            epochs=max(1, epochs - 2 * sixth) if number == 0 else sixth,
        )
    return state.params[1]


def bag(train: Ratings, given: Ratings, context: Context) -> Any:
    """A bag of items, trained to predict whole histories from parts of them by a softmax over the catalog."""

    def scorer(settings: Settings) -> Any:
        params = fit_bag(train, seed=context.seed, **settings)
        return bag_of_items.all_vectors(params, data.linked(given), power=settings["power"])

    return scorer


def fit_bag(
    train: Ratings,
    *,
    rank: int,
    dropped: float,
    power: float,
    l2: float,
    batch_size: int,
    learning_rate: float,
    epochs: int,
    seed: int,
) -> Any:
    """The parameters after some epochs of Adam; `l2` decays the tables' weights."""
    key_start, key_fit = jax.random.split(jax.random.key(seed))

    def cost(params: Any, users: Any, *, key: Array) -> Any:
        kept = bag_of_items.drop_items(users.where, fraction=dropped, key=key)
        v_user = bag_of_items.user_vectors(params, users.other, kept, power=power)
        return losses.catalogue_softmax(v_user, params.items, users.other, bias=params.bias, where=users.where)

    batches = bag_of_items.user_batches(data.rows(train, "user"), batch_size, rng=seed)
    params, _ = training.fit(
        cost,
        bag_of_items.init_params(train.n_items, rank, key=key_start),
        batches,
        optimizer=optax.adamw(learning_rate, weight_decay=l2),
        key=key_fit,
        epochs=epochs,
        progress=False,
    )
    return params


def blend(*methods: str) -> Fit:
    """Two methods of the table, as chosen for themselves: the scores of the first plus a weight times the second's."""

    def fit(train: Ratings, given: Ratings, context: Context) -> Any:
        parts = tuple(
            _as_function(METHODS[name].fit(train, given, context)(context.choices[name]["settings"]))
            for name in methods
        )
        return lambda settings: Blend(parts, jnp.array([1.0, settings["weight"]], jnp.float32))

    return fit


@register_dataclass
@dataclass(frozen=True)
class Blend:
    """A weighted sum of scores, each divided by its standard deviation over the items of a user."""

    scorers: tuple[Any, ...]
    weights: Array

    def __call__(self, users: Array) -> Array:
        """[n, n_items]."""
        scores = [scorer(users) for scorer in self.scorers]
        scaled = [each / jnp.maximum(jnp.std(each, axis=1, keepdims=True), 1e-12) for each in scores]
        return sum(weight * each for weight, each in zip(self.weights, scaled, strict=True))


@register_dataclass
@dataclass(frozen=True)
class Products:
    """Scores that are products of vectors, as a function of users."""

    users: Array
    items: Array

    def __call__(self, users: Array) -> Array:
        """[n, n_items]."""
        return product(self.users[users], self.items.T)


def _as_function(scorer: Any) -> Any:
    return scorer if callable(scorer) else Products(*scorer_vectors("scorer", scorer))


# ------------------------------------------------------------------------------------------- peers


def irspack(model: str) -> Fit:
    """A model of irspack, in its own environment: `benchmarks/irspack_lists.py`."""

    def fit(train: Ratings, given: Ratings, context: Context) -> Any:
        def scorer(settings: Settings) -> Any:
            with tempfile.TemporaryDirectory() as folder:
                split, job, out = (Path(folder) / name for name in ("split.npz", "job.json", "lists.npy"))
                pairs = {"train_user": train.user, "train_item": train.item}
                pairs |= {"given_user": given.user, "given_item": given.item}
                np.savez(split, allow_pickle=False, **pairs, n_users=train.n_users, n_items=train.n_items)
                described = {"split": str(split), "model": model, "settings": settings, "k": LISTED, "out": str(out)}
                job.write_text(json.dumps(described))
                subprocess.run([context.peers, "-I", str(IRSPACK_LISTS), str(job)], check=True)
                return Lists(jnp.asarray(np.load(out)), train.n_items)

        return scorer

    return fit


@register_dataclass
@dataclass(frozen=True)
class Lists:
    """A scorer by lists: an item's score is the number of items below it, and what is not in a list is left out."""

    ids: Array
    n_items: int = field(metadata={"static": True})

    def __call__(self, users: Array) -> Array:
        """[n, n_items]."""
        ids = self.ids[users]
        score = jnp.arange(ids.shape[1], 0, -1, dtype=jnp.float32)
        empty = jnp.full((len(users), self.n_items), -jnp.inf, jnp.float32)
        return empty.at[jnp.arange(len(users), dtype=jnp.int32)[:, None], ids].set(score[None, :])


def _for_users(scorer: Any, train: Ratings, given: Ratings) -> Any:
    return scorer if given is train else linear.for_users(scorer, given)


METHODS: dict[str, Method] = {
    "popularity": Method(popularity, is_baseline=True),
    "item_knn": Method(item_knn, is_baseline=True),
    "rp3beta": Method(rp3beta, is_baseline=True),
    "ease": Method(ease, is_baseline=True),
    "ials": Method(ials),
    "closed_form": Method(closed_form),
    "low_pass": Method(low_pass),
    "cheby_cf": Method(cheby_cf, is_baseline=True),
    "softmax_mf": Method(softmax_mf),
    "bag_of_items": Method(bag),
    "blend": Method(blend("closed_form", "softmax_mf")),
    "cheby_blend": Method(blend("cheby_cf", "softmax_mf")),
    "ease_ials": Method(blend("ease", "ials")),
    "irspack_ease": Method(irspack("ease"), is_baseline=True, is_peer=True),
    "irspack_ials": Method(irspack("ials"), is_baseline=True, is_peer=True),
    "irspack_edlae": Method(irspack("edlae"), is_baseline=True, is_peer=True),
}
