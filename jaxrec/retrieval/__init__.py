"""Retrieval: top-k search over item vectors, candidates from several sources, and reranking."""

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
