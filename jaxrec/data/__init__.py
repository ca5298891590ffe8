"""Data, on the host: load, read, split, normalize, lay out for the device."""

from jaxrec.data import labels, normalize, splits, synthetic
from jaxrec.data.batches import minibatches
from jaxrec.data.datasets import DatasetNotFound, load
from jaxrec.data.layouts import dense, linked, memory, observed, rows
from jaxrec.types import Dataset, Ratings

__all__ = [
    "Dataset",
    "DatasetNotFound",
    "Ratings",
    "dense",
    "labels",
    "linked",
    "load",
    "memory",
    "minibatches",
    "normalize",
    "observed",
    "rows",
    "splits",
    "synthetic",
]
