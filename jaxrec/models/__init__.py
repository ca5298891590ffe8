"""Models: parameters, and the predictions computed from them."""

import importlib
from typing import TYPE_CHECKING, Any

from jaxrec.models import bag_of_items, baselines, linear, neighbors, recency
from jaxrec.models.factors import init, trainable_mask, unit_factors
from jaxrec.prediction import as_vectors, predict, predict_all

if TYPE_CHECKING:
    from jaxrec.models import gru, head, history, hybrid, sequence, sequence_scorer, two_tower

__all__ = [
    "as_vectors",
    "bag_of_items",
    "baselines",
    "gru",
    "head",
    "history",
    "hybrid",
    "init",
    "linear",
    "neighbors",
    "predict",
    "predict_all",
    "recency",
    "sequence",
    "sequence_scorer",
    "trainable_mask",
    "two_tower",
    "unit_factors",
]

# Imported on first access, because importing Flax takes a second.
NETWORKS = ("gru", "head", "history", "hybrid", "sequence", "sequence_scorer", "two_tower")


def __getattr__(name: str) -> Any:
    if name in NETWORKS:
        return importlib.import_module(f"jaxrec.models.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
