"""Data, on the host: load, read, split, normalize, lay out for the device."""

from jaxrec.data import normalize, splits, synthetic
from jaxrec.data.batches import minibatches
from jaxrec.data.datasets import DatasetNotFound, load
from jaxrec.data.layouts import dense, linked, observed, rows
from jaxrec.types import Dataset, Ratings

__all__ = [
    "Dataset",
    "DatasetNotFound",
    "Ratings",
    "dense",
    "linked",
    "load",
    "minibatches",
    "normalize",
    "observed",
    "rows",
    "splits",
    "synthetic",
]
