"""Retrieval: from vectors to the ids of the best items; candidates from several sources; ranking."""

from jaxrec.retrieval import approximate, candidates, quantized, rerank
from jaxrec.retrieval._related import Neighbors, related_ids
from jaxrec.retrieval.topk import cosine, dot, negative_squared_distance, top_k

__all__ = [
    "Neighbors",
    "approximate",
    "candidates",
    "cosine",
    "dot",
    "negative_squared_distance",
    "quantized",
    "related_ids",
    "rerank",
    "top_k",
]
