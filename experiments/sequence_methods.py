"""The methods of `experiments.published_sequences`: functions of (train, settings of a candidate) that return a scorer.

A network also stops early: `fit_network` with a validation part returns the epoch that was best there, and what is
fitted for test takes as many epochs.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec import data, evaluation, models, solvers, training
from jaxrec.events import events_in_order
from jaxrec.models import gru, recency, sequence, sequence_scorer
from jaxrec.training import negatives, next_item
from jaxrec.types import Ratings

Choice = dict[str, Any]
METRICS = ("hit_rate", "ndcg")
SEEDS = {"attention": (0, 1, 2), "gru": (0,)}  # of the fits for test

# Every method: a function of (train, settings of a candidate) that returns a scorer.
Scorer = Callable[[Any], jax.Array]
LAST = recency.exponential([0.0], window=1)


def _popularity(train: Ratings, choice: Choice) -> Any:
    return models.baselines.popularity(train)


def _markov(train: Ratings, choice: Choice) -> Scorer:
    """What follows the last item: counts / (the count of what follows it at all + l2). H'H is diagonal: no solving."""
    sums = solvers.sequence_sums(train, LAST, order="position")
    weight = sums.cross / (jnp.diagonal(sums.gram) + choice["l2"])[:, None]
    return recency.recency_scorer(train, weight[None], LAST, order="position")


def _knn(train: Ratings, choice: Choice) -> Scorer:
    """The items most like the last ones: users in common / sqrt(product of counts), each last item weighed by age."""
    from scipy import sparse

    shape = train.n_users, train.n_items
    x = sparse.csr_array((np.ones(len(train), np.float32), (train.user, train.item)), shape=shape)
    scale = np.maximum(np.asarray(x.sum(axis=0)), 1) ** -0.5
    cosine = (x.T @ x).toarray() * scale[:, None] * scale[None, :]
    np.fill_diagonal(cosine, 0)
    kernel = recency.inverse_power([choice["power"]], window=choice["window"])
    return recency.recency_scorer(train, cosine[None], kernel, order="position")


def kernels(choice: Choice) -> jax.Array:
    """The weights by age of a candidate, [D, window]."""
    window = choice["window"]
    blocks = [recency.exponential(choice["decays"], window=window)] if choice.get("decays") else []
    blocks += [recency.inverse_power(choice["powers"], window=window)] if choice.get("powers") else []
    return jnp.concatenate(blocks)


def _ridge(train: Ratings, choice: Choice) -> Scorer:
    future = choice.get("future", 0.0) ** np.arange(1 if not choice.get("future") else choice["horizon"])
    return solvers.sequence_ridge(
        train,
        age_weight=kernels(choice),
        l2=choice["l2"],
        next_weight=future,
        backward_weight=choice.get("backward", 0.0),
        popularity_power=choice.get("popularity_power", 0.0),
        order="position",
    )


class Network(NamedTuple):
    """A fitted network.

    Attributes:
        scorer: of the users of train.
        epochs: how many were trained until the parameters that it has.
    """

    scorer: sequence_scorer.SequenceScorer
    epochs: int


def transformer(train: Ratings, choice: Choice) -> sequence.Transformer:
    """The transformer of a candidate."""
    sizes = {name: choice[name] for name in ("window", "width", "layers", "heads", "dropout")}
    return sequence.Transformer(train.n_items, **sizes)


def recurrent(train: Ratings, choice: Choice) -> gru.Gru:
    """The GRU of a candidate."""
    return gru.Gru(train.n_items, **{name: choice[name] for name in ("window", "width", "layers", "dropout")})


def fit_network(model: Any, train: Ratings, choice: Choice, validation: Ratings | None = None) -> Network:
    """A network fitted on train by Adam; with a validation part it keeps the parameters that are best there.

    `negatives` items are drawn for each batch, uniformly; without it the softmax is over the whole catalog. With
    `cosine` the learning rate falls to 0 along a cosine until the last of `epochs`.
    """
    packed = data.sequences(train, length=choice["window"], order="position")
    rows = next_item.packed_rows(packed)
    key_init, key_fit = jax.random.split(jax.random.key(choice.get("seed", 0)))
    params = model.init(key_init, rows.item[:1], rows.segment[:1], rows.position[:1])
    cost = next_item.softmax_cost(model)
    if n := choice.get("negatives"):
        cost = next_item.sampled_softmax_cost(model, partial(negatives.uniform, (n,), train.n_items))

    def validate(params: Any) -> float:
        assert validation is not None
        scorer = sequence_scorer.sequence_scorer(model, params, packed)
        return -measure(scorer, train, validation).mean["ndcg@10"]

    batch_size, rate = min(choice["rows"], len(rows.item)), choice["learning_rate"]
    if choice.get("cosine"):
        rate = optax.cosine_decay_schedule(rate, -(-len(rows.item) // batch_size) * choice["epochs"])
    fitted = training.fit_epochs(
        cost,
        params,
        rows,
        optimizer=optax.adam(rate),
        batch_size=batch_size,
        key=key_fit,
        epochs=int(choice.get("best_epochs") or choice["epochs"]),
        validate=None if validation is None else validate,
        patience=None if validation is None else choice["patience"],
        progress=False,
    )
    scorer = sequence_scorer.sequence_scorer(model, fitted.params, packed)
    return Network(scorer, int(fitted.history.best_epoch) + 1)


NETWORKS: dict[str, Callable[[Ratings, Choice], Any]] = {"attention": transformer, "gru": recurrent}


def _network(make: Callable[[Ratings, Choice], Any], train: Ratings, choice: Choice) -> Any:
    return fit_network(make(train, choice), train, choice).scorer


def with_history(scorer: Any, history: Ratings) -> Any:
    """The scorer with the users' last events from `history`, and what it has learned as it was."""
    if isinstance(scorer, sequence_scorer.SequenceScorer):
        packed = data.sequences(history, length=scorer.model.window, order="position")
        return sequence_scorer.sequence_scorer(scorer.model, scorer.params, packed)
    if not isinstance(scorer, recency.RecencyScorer):
        return scorer
    start, events = events_in_order(history, "position")
    return replace(scorer, events=recency.recent_items(start, history.item[events], window=scorer.window))


def measure(scorer: Any, seen: Ratings, relevant: Ratings, *, mask_seen: bool = True) -> evaluation.Evaluation:
    """HR@10 and NDCG@10 over the whole catalog."""
    return evaluation.evaluate(scorer, seen, relevant, k=10, metrics=METRICS, mask_seen=mask_seen, overlap="drop")


METHODS: dict[str, Callable[[Ratings, Choice], Any]] = {
    "popularity": _popularity,
    "markov": _markov,
    "knn": _knn,
    "ridge": _ridge,
    **{name: partial(_network, make) for name, make in NETWORKS.items()},
}
