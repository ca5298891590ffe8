"""Data on the host: loading, reading and writing, splits, normalization, labels, and layouts for the device."""

from jaxrec.data import features, labels, normalize, splits, synthetic, weighting
from jaxrec.data.batches import minibatches
from jaxrec.data.datasets import DatasetNotFound, load
from jaxrec.data.frames import from_frame, read_parquet
from jaxrec.data.layouts import dense, linked, memory, observed, padded_items, rows
from jaxrec.data.matrices import from_csr, from_user_item_matrix, to_csr, to_user_item_matrix
from jaxrec.data.packing import Sequences, sequences
from jaxrec.data.reading import read_csv
from jaxrec.data.recent import last_items
from jaxrec.data.writing import to_pandas, to_polars, write_csv, write_parquet
from jaxrec.ratings import align_ids
from jaxrec.types import Dataset, Ratings

__all__ = [
    "Dataset",
    "DatasetNotFound",
    "Ratings",
    "Sequences",
    "align_ids",
    "dense",
    "features",
    "from_csr",
    "from_frame",
    "from_user_item_matrix",
    "labels",
    "last_items",
    "linked",
    "load",
    "memory",
    "minibatches",
    "normalize",
    "observed",
    "padded_items",
    "read_csv",
    "read_parquet",
    "rows",
    "sequences",
    "splits",
    "synthetic",
    "to_csr",
    "to_pandas",
    "to_polars",
    "to_user_item_matrix",
    "weighting",
    "write_csv",
    "write_parquet",
]
