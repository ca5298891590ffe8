"""Host-side checks with readable messages: what was expected, what came, what to do.

They run in NumPy, before anything crosses to the device, because traced code cannot look: under jit an index
out of range is clamped or dropped without a word, and an int64 id above 2**31 wraps to a negative int32.

>>> ids("user", [0, 3, 1], size=3)
Traceback (most recent call last):
...
ValueError: user: expected ids in [0, 3), got 3 at position 1. Ids must be contiguous; ...
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["choice", "finite", "ids", "positive", "same_length", "same_shape", "size_of_table"]

INT32_MAX = np.iinfo(np.int32).max


def ids(name: str, values: Any, *, size: int) -> np.ndarray:
    """Returns contiguous ids as int32, having checked that each lies in [0, size)."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one column of ids, got an array of shape {array.shape}.")
    if array.size == 0:
        return array.astype(np.int32)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name}: expected integer ids, got {array.dtype}. Raw ids go through Ratings.from_columns.")
    wrong = (array < 0) | (array >= size)
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"{name}: expected ids in [0, {size}), got {array[at]} at position {at}. "
            "Ids must be contiguous; Ratings.from_columns makes them so from raw ids."
        )
    return array.astype(np.int32, copy=False)


def size_of_table(name: str, size: int) -> int:
    """Returns the number of rows of a table, having checked that its ids fit in int32."""
    if isinstance(size, bool) or not isinstance(size, int | np.integer):
        raise ValueError(f"{name}: expected a whole number of rows, got {size!r}.")
    if not 0 < size <= INT32_MAX:
        raise ValueError(f"{name}: expected between 1 and {INT32_MAX} rows (ids are int32), got {size}.")
    return int(size)


def finite(name: str, values: Any, *, dtype: Any = np.float32) -> np.ndarray:
    """Returns one column of numbers in `dtype`, having checked that none is NaN or infinite, before and after."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one column of numbers, got an array of shape {array.shape}.")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: expected numbers, got {array.dtype}.")
    with np.errstate(over="ignore"):
        out = array.astype(dtype, copy=False)
    wrong = ~np.isfinite(out)
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"{name}: expected finite numbers, got {array[at]} at position {at} ({int(wrong.sum())} in all). "
            "Drop those rows: what was not rated is left out, never written as NaN."
        )
    return out


def same_length(**columns: Any) -> int:
    """Returns the common length of columns (None is skipped)."""
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected columns of one length, got {', '.join(f'{k}: {v}' for k, v in lengths.items())}.")
    return next(iter(lengths.values()))


def positive(name: str, value: float, *, zero: bool = False) -> None:
    """Checks that a number is finite and positive (or zero, where that is allowed)."""
    if not (np.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise ValueError(f"{name}: expected a finite number {'>= 0' if zero else '> 0'}, got {value}.")


def choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Checks that a value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}.")


def same_shape(**arrays: Any) -> None:
    """Checks that arrays (None is skipped) have one shape; static, so it costs nothing under jit.

    Without it [n] and [n, 1] broadcast to [n, n], and the mean of that is a plausible wrong number.
    """
    shapes = {name: np.shape(array) for name, array in arrays.items() if array is not None}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"expected arrays of one shape, got {', '.join(f'{k}: {v}' for k, v in shapes.items())}.")
