"""Data, on the host: load, read and write, split, normalize, label, lay out for the device."""

from jaxrec.data import features, labels, normalize, splits, synthetic
from jaxrec.data.batches import minibatches
from jaxrec.data.datasets import DatasetNotFound, load
from jaxrec.data.formats import (
    from_csr,
    from_dense,
    from_frame,
    read_csv,
    read_parquet,
    to_csr,
    to_dense,
    to_pandas,
    to_polars,
    write_csv,
    write_parquet,
)
from jaxrec.data.layouts import dense, linked, lists, memory, observed, rows
from jaxrec.ratings import align_ids
from jaxrec.types import Dataset, Ratings

__all__ = [
    "Dataset",
    "DatasetNotFound",
    "Ratings",
    "align_ids",
    "dense",
    "features",
    "from_csr",
    "from_dense",
    "from_frame",
    "labels",
    "linked",
    "lists",
    "load",
    "memory",
    "minibatches",
    "normalize",
    "observed",
    "read_csv",
    "read_parquet",
    "rows",
    "splits",
    "synthetic",
    "to_csr",
    "to_dense",
    "to_pandas",
    "to_polars",
    "write_csv",
    "write_parquet",
]
