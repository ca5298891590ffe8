"""Retrieval: from vectors to the ids of the best items; candidates from several sources; ranking."""

from jaxrec.retrieval import approximate, candidates, quantized, ranking
from jaxrec.retrieval.related import related
from jaxrec.retrieval.topk import cosine, dot, negative_squared_distance, top_k

__all__ = [
    "approximate",
    "candidates",
    "cosine",
    "dot",
    "negative_squared_distance",
    "quantized",
    "ranking",
    "related",
    "top_k",
]
