"""Host-side checks with readable messages: what was expected, what came, what to do.

Concrete values are checked, in NumPy, before anything is computed; traced code cannot look: under jit an index
out of range is clamped or dropped without a word, and an int64 id above 2**31 wraps to a negative int32.

>>> ids("user", [0, 3, 1], size=3)
Traceback (most recent call last):
...
ValueError: user: expected ids in [0, 3), got 3 at position 1. Ids must be contiguous; ...
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = [
    "all_finite",
    "as_array",
    "as_floats",
    "choice",
    "comparable_ids",
    "finite",
    "ids",
    "mask",
    "positive",
    "row_ids",
    "same_length",
    "same_shape",
    "size_of_table",
    "strength",
    "traced",
    "vector_pairs",
]

INT32_MIN, INT32_MAX = np.iinfo(np.int32).min, np.iinfo(np.int32).max


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


def vector_pairs(v_user: Any, v_item: Any, **columns: Any) -> None:
    """Checks that each pair has a vector [d] of either side and an entry in every column.

    Raises:
        ValueError: otherwise.
    """
    same_shape(v_user=v_user, v_item=v_item)
    same_shape(**columns)
    n = next(np.shape(column) for column in columns.values() if column is not None)
    if np.ndim(v_user) != 2 or np.shape(v_user)[:1] != n:
        name = next(iter(columns))
        raise ValueError(f"expected vectors [n, d] and {name} [n], got shapes {np.shape(v_user)} and {n}.")


def traced(*values: Any) -> bool:
    """Whether any leaf is being traced (jit, vmap, grad): its shape is known then, and its numbers are not."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def all_finite(name: str, values: Any) -> None:
    """Checks concrete numbers of any shape: none is NaN or infinite. Traced ones are trusted, None is skipped."""
    if values is None or traced(values) or (_on_device(values) and bool(_is_finite(values))):
        return
    array = np.asarray(values)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return
    wrong = ~np.isfinite(array)
    if wrong.any():
        first, position = _first(wrong)
        raise ValueError(f"{name}: expected finite numbers, got {array[first]}{position} ({int(wrong.sum())} in all).")


def _on_device(values: Any) -> bool:
    """Whether NumPy would have to copy it first, as 80 MB of 20M ids from a GPU; on a CPU it reads it in place."""
    return isinstance(values, jax.Array) and any(device.platform != "cpu" for device in values.devices())


@jax.jit
def _ends(values: Array) -> tuple[Array, Array]:
    return jnp.min(values), jnp.max(values)


@jax.jit
def _is_finite(values: Array) -> Array:
    return jnp.all(jnp.isfinite(values))


def _first(wrong: np.ndarray) -> tuple[tuple[int, ...], str]:
    """The first True of any shape, a scalar's too, and how a message says where it is."""
    first = tuple(int(axis) for axis in np.unravel_index(int(wrong.argmax()), wrong.shape))
    return first, f" at position {first[0] if len(first) == 1 else first}" if first else ""


def as_array(name: str, values: Any) -> Array:
    """Numbers as an array of the device's own types, having checked that none changes on its way there but in rounding.

    With 64 bits disabled, as by default, JAX makes int32 of int64 without a word: 2**40 + 5 becomes 5. Integers that
    do not fit are refused here, and so are finite numbers beyond float32, and what is no number.
    """
    if isinstance(values, jax.Array):
        return values
    array = _numbers(name, values)
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype == array.dtype:
        return jnp.asarray(array)
    info: Any = np.finfo(dtype) if array.dtype.kind == "f" else np.iinfo(dtype)
    wrong = ((array < info.min) | (array > info.max)) & (np.isfinite(array) if array.dtype.kind == "f" else True)
    if wrong.any():
        raise ValueError(
            f"{name}: expected numbers that fit {np.dtype(dtype)}, got {array[wrong].reshape(-1)[0]}. For 64 bits: "
            "jax.config.update('jax_enable_x64', True)."
        )
    return jnp.asarray(array.astype(dtype))


def as_floats(**columns: Any) -> tuple[Array, ...]:
    """The columns in one floating type, float32 or wider: what is subtracted, summed or counted is so in no less.

    In its own type 3 - 5 of uint8 is 254, and a sum of float16 ends at 65,504. None stays None, whatever the annotation
    says. What float32 does not hold becomes infinity, and is not refused: it may stand under a mask.
    """
    given = {name: _numbers(name, column) for name, column in columns.items() if column is not None}
    wide = any(array.dtype == np.float64 for array in given.values())
    dtype = jax.dtypes.canonicalize_dtype(np.float64 if wide else np.float32)
    with np.errstate(over="ignore"):
        floats: Any = [None if name not in given else jnp.asarray(given[name].astype(dtype)) for name in columns]
    return tuple(floats)


def _numbers(name: str, values: Any) -> Any:
    """An array, of the device or of the host."""
    if isinstance(values, jax.Array):
        return values
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):  # bfloat16 is of kind V
        raise ValueError(f"{name}: expected numbers, got {array.dtype}.")
    return array


def row_ids(name: str, values: Any, *, size: int, where: Any = None) -> Array:
    """Ids of any shape that name rows of a table, as int32, having checked that each lies in [0, size).

    Traced ids are trusted: under jit nobody can look, and one out of range is clamped without a word. The check is a
    minimum and a maximum, microseconds on the CPU, and made where the array lies.

    Args:
        name: what the message calls them.
        values: an array, or a list on the host.
        size: the table's rows.
        where: ids where this is False are padding, and may be anything.
    """
    if traced(values, where):
        return jnp.asarray(values)
    if _on_device(values) and values.size > 0 and jnp.issubdtype(values.dtype, jnp.integer):
        low, high = jax.device_get(_ends(values))
        if low >= 0 and high < size:
            return values
    array = np.asarray(values)
    if array.size == 0:
        return jnp.asarray(array, jnp.int32)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integer ids, got {array.dtype}.")
    if array.min() >= 0 and array.max() < size:
        return values if isinstance(values, jax.Array) else jnp.asarray(array.astype(np.int32))
    wrong = (array < 0) | (array >= size)
    if where is not None:
        wrong &= np.broadcast_to(np.asarray(where), array.shape)
    if wrong.any():
        first, position = _first(wrong)
        raise ValueError(
            f"{name}: expected ids in [0, {size}), got {array[first]}{position}. Ids are positions in the model's "
            "tables: "
            "ratings.user_index and item_index find those of raw ids."
        )
    return jnp.asarray(np.where((array < 0) | (array >= size), 0, array).astype(np.int32))


def comparable_ids(**columns: Any) -> tuple[Array, ...]:
    """Columns of ids that are only compared with one another, in one type of 32 bits in which the same are the same.

    Ids that int32 does not hold are numbered anew, all columns alike; traced columns are taken as they are.
    """
    if traced(*columns.values()):
        return tuple(jnp.asarray(column) for column in columns.values())
    arrays = [np.asarray(column) for column in columns.values()]
    for name, array in zip(columns, arrays, strict=True):
        if array.size and array.dtype.kind not in "iu":
            raise ValueError(f"{name}: expected integer ids, got {array.dtype}.")
    if all(array.size == 0 or (array.min() >= INT32_MIN and array.max() <= INT32_MAX) for array in arrays):
        return tuple(jnp.asarray(array, jnp.int32) for array in arrays)
    # as Python's integers where int64 and uint64 meet, which NumPy would compare as float64
    kinds = {array.dtype.kind for array in arrays}
    flat = np.concatenate(
        [array.reshape(-1).astype(object) if len(kinds) > 1 else array.reshape(-1) for array in arrays]
    )
    numbers = np.split(np.unique(flat, return_inverse=True)[1], np.cumsum([array.size for array in arrays])[:-1])
    return tuple(
        jnp.asarray(number.reshape(array.shape), jnp.int32) for number, array in zip(numbers, arrays, strict=True)
    )


def mask(name: str, values: Any, shape: tuple[int, ...]) -> Array:
    """A mask as an array, having checked its shape, and that it is of bools and no positions of what it chooses."""
    array = values if isinstance(values, jax.Array) else np.asarray(values)
    if array.dtype != bool or array.shape != shape:
        raise ValueError(f"{name}: expected a mask of bools of shape {shape}, got {array.dtype} of {array.shape}.")
    return jnp.asarray(array)


def strength(name: str, value: Any, *, zero: bool = False) -> None:
    """Checks concrete penalties, a number, one per row, or a pair of these: finite, and positive (or 0, if allowed)."""
    for part in value if isinstance(value, tuple) else (value,):
        if traced(part):
            continue
        numbers = np.asarray(part, np.float64)
        if not (np.isfinite(numbers).all() and (numbers >= 0).all() and (zero or (numbers > 0).all())):
            wrong = ~(np.isfinite(numbers) & ((numbers >= 0) if zero else (numbers > 0)))
            raise ValueError(
                f"{name}: expected finite numbers {'>= 0' if zero else '> 0'}, got {numbers[wrong].reshape(-1)[0]}."
            )
