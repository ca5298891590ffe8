"""Retrieval: from vectors to the ids of the best items."""

from jaxrec.retrieval.related import related
from jaxrec.retrieval.topk import top_k

__all__ = ["related", "top_k"]
