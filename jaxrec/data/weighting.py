"""Weights of observed pairs from information retrieval: tf-idf, BM25 and logarithms of amounts.

All map Ratings to Ratings with other weights, for what uses weights: `solvers.neighbors`, `solvers.linear` and every
other solver. An amount, such as a number of plays, is the weight that a pair has (1 if there are none). To use values
as amounts: `dataclasses.replace(ratings, weights=ratings.value)`. Values are kept. Repeated pairs become one whose
amount is their sum (with the first one's value and time), because the weight of a sum is not the sum of the weights.
Pairs of amount 0 get weight 0, and do not count below.

Documents are the items and terms their users, or the other way round with side='user'. With N the number of documents
and n(t) the number of documents of term t, a term is worth

    idf(t) = max(0, log N - log(1 + n(t)))

as in `implicit`; that is log(N / (N + 1)), just below 0, for a term in every document, and 0 here. So users of many
items count less, and the maximum keeps weights from being negative.

>>> train = Ratings(user=[0, 1, 1], item=[0, 0, 1], value=[1, 1, 1], n_users=2, n_items=4)
>>> tf_idf(train).weights.round(3)  # log(4 / 2), log(4 / 3), log(4 / 3)
array([0.693, 0.288, 0.288], dtype=float32)
"""

import dataclasses
from typing import Literal

import numpy as np

from jaxrec import check
from jaxrec.types import Ratings

__all__ = ["bm25", "log_amounts", "tf_idf"]

Side = Literal["item", "user"]


def tf_idf(ratings: Ratings, *, side: Side = "item") -> Ratings:
    """Returns weights sqrt(amount) * idf(term).

    Raises:
        ValueError: `side` is neither 'item' nor 'user'; a weight does not fit in float32.

    Source: `implicit.nearest_neighbours.tfidf_weight`.
    """
    ratings, amount = _amounts(ratings)
    (_, n_documents), terms = _documents(ratings, side)
    return dataclasses.replace(ratings, weights=np.sqrt(amount) * _idf(amount, *terms, n_documents))


def bm25(ratings: Ratings, *, k1: float = 1.2, b: float = 0.75, side: Side = "item") -> Ratings:
    """Returns weights amount (k1 + 1) / (k1 norm(document) + amount) * idf(term).

    norm(d) = 1 - b + b length(d) / (mean length), with length(d) the sum of the amounts of document d, and the mean
    over all documents, those without pairs too. So popular items have lower weights, unless b = 0. A cosine of items
    does not change by them; a history that is weighted by them does: see `models.neighbors.item_scorer` for others.

    Args:
        ratings: pairs, with their amounts as weights.
        k1: >= 0, how slowly the weight saturates as the amount grows; with 0 only idf is left.
        b: in [0, 1], how much the length counts.
        side: what the documents are.

    Raises:
        ValueError: k1 negative or not finite; b not in [0, 1]; as `tf_idf`.

    Source: Robertson and Zaragoza 2009, The probabilistic relevance framework; `bm25_weight` in
    `implicit.nearest_neighbours`, whose defaults are k1 = 100 and b = 0.8; its BM25Recommender has those here.
    """
    check.positive("k1", k1, zero=True)
    if not 0 <= b <= 1:
        raise ValueError(f"b: expected a number in [0, 1], got {b}.")
    ratings, amount = _amounts(ratings)
    (document, n_documents), terms = _documents(ratings, side)
    length = np.bincount(document, amount, minlength=n_documents)
    norm = 1 - b + b * length / (length.mean() or 1)
    weight = amount * (k1 + 1) / np.where(amount > 0, k1 * norm[document] + amount, 1)
    return dataclasses.replace(ratings, weights=weight * _idf(amount, *terms, n_documents))


def log_amounts(ratings: Ratings, *, scale: float = 1.0) -> Ratings:
    """Returns weights log(1 + amount / scale): large amounts, such as plays, count less than in proportion.

    Raises:
        ValueError: scale not positive and finite; as `tf_idf`.

    Source: Hu, Koren and Volinsky 2008, Collaborative filtering for implicit feedback datasets, equation 6.
    """
    check.positive("scale", scale)
    ratings, amount = _amounts(ratings)
    return dataclasses.replace(ratings, weights=np.log1p(amount / scale))


def _amounts(ratings: Ratings) -> tuple[Ratings, np.ndarray]:
    """(the ratings without repeated pairs, their amounts, float64)."""
    amount = np.ones(len(ratings)) if ratings.weights is None else ratings.weights.astype(np.float64)
    pair = ratings.user * np.int64(ratings.n_items) + ratings.item
    _, first, position = np.unique(pair, return_index=True, return_inverse=True)
    if len(first) == len(ratings):
        return ratings, amount
    order = np.argsort(first)  # the order of the input
    return ratings.take(first[order]), np.bincount(position, amount)[order]


def _documents(ratings: Ratings, side: Side) -> tuple[tuple[np.ndarray, int], tuple[np.ndarray, int]]:
    """((ids, number) of the documents, (ids, number) of the terms)."""
    check.choice("side", side, ("item", "user"))
    items, users = (ratings.item, ratings.n_items), (ratings.user, ratings.n_users)
    return (items, users) if side == "item" else (users, items)


def _idf(amount: np.ndarray, term: np.ndarray, n_terms: int, n_documents: int) -> np.ndarray:
    """The idf of each pair's term."""
    count = np.bincount(term[amount > 0], minlength=n_terms)
    return np.maximum(0, np.log(n_documents) - np.log1p(count))[term]
