"""Checks of arguments on the host; error messages say what was expected, what was passed, and what to do.

Concrete values are checked with NumPy before anything is computed. Traced values cannot be checked: under jit an index
out of range is silently clamped or dropped, and an int64 id above 2**31 wraps to a negative int32.

>>> ids("user", [0, 3, 1], size=3)
Traceback (most recent call last):
...
ValueError: user: expected ids in [0, 3), got 3 at position 1. Ids must be contiguous; ...
"""

import inspect
import sys
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
    "factors",
    "finite",
    "ids",
    "mask",
    "pointwise_loss",
    "positive",
    "random_key",
    "row_ids",
    "same_length",
    "same_shape",
    "size_of_table",
    "strength",
    "traced",
    "vector_pairs",
    "whole_number",
]

INT32_MIN, INT32_MAX = np.iinfo(np.int32).min, np.iinfo(np.int32).max


def ids(name: str, values: Any, *, size: int) -> np.ndarray:
    """Returns contiguous ids as int32, after checking that each lies in [0, size)."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one column of ids, got an array of shape {array.shape}.")
    if array.size == 0:
        return array.astype(np.int32)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name}: expected integer ids, got {array.dtype}. Raw ids go through Ratings.from_columns.")
    invalid = (array < 0) | (array >= size)
    if invalid.any():
        position = int(invalid.argmax())
        raise ValueError(
            f"{name}: expected ids in [0, {size}), got {array[position]} at position {position}. "
            "Ids must be contiguous; Ratings.from_columns makes them from raw ids."
        )
    return array.astype(np.int32, copy=False)


def size_of_table(name: str, size: int) -> int:
    """Returns the number of rows of a table, after checking that its ids fit in int32."""
    if isinstance(size, bool) or not isinstance(size, int | np.integer):
        raise ValueError(f"{name}: expected a whole number of rows, got {size!r}.")
    if not 0 < size <= INT32_MAX:
        raise ValueError(f"{name}: expected between 1 and {INT32_MAX} rows (ids are int32), got {size}.")
    return int(size)


def finite(name: str, values: Any, *, dtype: Any = np.float32) -> np.ndarray:
    """Returns one column of numbers in `dtype`, after checking that none is NaN or infinite in it."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one column of numbers, got an array of shape {array.shape}.")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: expected numbers, got {array.dtype}.")
    with np.errstate(over="ignore"):
        converted = array.astype(dtype, copy=False)
    invalid = ~np.isfinite(converted)
    if invalid.any():
        position = int(invalid.argmax())
        raise ValueError(
            f"{name}: expected finite numbers, got {array[position]} at position {position} "
            f"({int(invalid.sum())} in all). Drop those rows: pairs that were not rated have no row, rather than NaN."
        )
    return converted


def same_length(**columns: Any) -> int:
    """Returns the common length of the columns; None is skipped."""
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected columns of one length, got {', '.join(f'{k}: {v}' for k, v in lengths.items())}.")
    return next(iter(lengths.values()))


def positive(name: str, value: float, *, zero: bool = False) -> None:
    """Checks that a number is finite and positive (or zero, if `zero`)."""
    if not (np.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise ValueError(f"{name}: expected a finite number {'>= 0' if zero else '> 0'}, got {value}.")


def choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Checks that a value is one of the allowed values."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}.")


def same_shape(**arrays: Any) -> None:
    """Checks that arrays have the same shape; None is skipped. Shapes are static, so this is free under jit.

    Otherwise [n] and [n, 1] would broadcast to [n, n], whose mean is wrong but plausible.
    """
    shapes = {name: np.shape(array) for name, array in arrays.items() if array is not None}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"expected arrays of one shape, got {', '.join(f'{k}: {v}' for k, v in shapes.items())}.")


def vector_pairs(v_user: Any, v_item: Any, **columns: Any) -> None:
    """Checks that each pair has a user vector [d], an item vector [d] and an entry in every column.

    Raises:
        ValueError: the shapes do not match.
    """
    same_shape(v_user=v_user, v_item=v_item)
    same_shape(**columns)
    n = next(np.shape(column) for column in columns.values() if column is not None)
    if np.ndim(v_user) != 2 or np.shape(v_user)[:1] != n:
        name = next(iter(columns))
        raise ValueError(f"expected vectors [n, d] and {name} [n], got shapes {np.shape(v_user)} and {n}.")


def traced(*values: Any) -> bool:
    """Returns whether any leaf is being traced (by jit, vmap or grad): then its shape is known but not its values."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def all_finite(name: str, values: Any) -> None:
    """Checks that no number in an array of any shape is NaN or infinite; traced arrays and None are not checked."""
    if values is None or traced(values) or (_on_device(values) and bool(_is_finite(values))):
        return
    array = np.asarray(values)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return
    invalid = ~np.isfinite(array)
    if invalid.any():
        first, position = _first_position(invalid)
        raise ValueError(
            f"{name}: expected finite numbers, got {array[first]}{position} ({int(invalid.sum())} in all)."
        )


def _on_device(values: Any) -> bool:
    """Returns whether NumPy must copy the values from a GPU or TPU (80 MB for 20M ids); on a CPU it reads in place."""
    return isinstance(values, jax.Array) and any(device.platform != "cpu" for device in values.devices())


@jax.jit
def _min_max(values: Array) -> tuple[Array, Array]:
    return jnp.min(values), jnp.max(values)


@jax.jit
def _is_finite(values: Array) -> Array:
    return jnp.all(jnp.isfinite(values))


def _first_position(mask: np.ndarray) -> tuple[tuple[int, ...], str]:
    """Returns the index of the first True in a mask of any shape, and its text for a message ('' for a scalar)."""
    first = tuple(int(axis) for axis in np.unravel_index(int(mask.argmax()), mask.shape))
    return first, f" at position {first[0] if len(first) == 1 else first}" if first else ""


def as_array(name: str, values: Any) -> Array:
    """Returns numbers as a JAX array of JAX's default precision, after checking that they change at most by rounding.

    Without `jax_enable_x64`, JAX silently converts int64 to int32: 2**40 + 5 becomes 5. Here integers that do not fit
    are errors, and so are finite numbers that do not fit in float32, and values that are not numbers.
    """
    if isinstance(values, jax.Array):
        return values
    array = _numbers(name, values)
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype == array.dtype:
        return jnp.asarray(array)
    info: Any = np.finfo(dtype) if array.dtype.kind == "f" else np.iinfo(dtype)
    invalid = ((array < info.min) | (array > info.max)) & (np.isfinite(array) if array.dtype.kind == "f" else True)
    if invalid.any():
        raise ValueError(
            f"{name}: expected numbers that fit {np.dtype(dtype)}, got {array[invalid].reshape(-1)[0]}. For 64 bits: "
            "jax.config.update('jax_enable_x64', True)."
        )
    return jnp.asarray(array.astype(dtype))


def as_floats(**columns: Any) -> tuple[Array, ...]:
    """Returns the columns in one floating type, float32 or wider, for differences, sums and counts.

    In narrower types these go wrong: 3 - 5 is 254 in uint8, and the largest float16 is 65,504. None stays None, despite
    the annotation. Numbers that do not fit in float32 become infinite, which is not an error: they may be masked.
    """
    arrays = {name: _numbers(name, column) for name, column in columns.items() if column is not None}
    has_float64 = any(array.dtype == np.float64 for array in arrays.values())
    dtype = jax.dtypes.canonicalize_dtype(np.float64 if has_float64 else np.float32)
    with np.errstate(over="ignore"):
        floats: Any = [None if name not in arrays else jnp.asarray(arrays[name].astype(dtype)) for name in columns]
    return tuple(floats)


def _numbers(name: str, values: Any) -> Any:
    """Returns a JAX array unchanged, or other numbers as a NumPy array."""
    if isinstance(values, jax.Array):
        return values
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):  # bfloat16 is of kind V
        raise ValueError(f"{name}: expected numbers, got {array.dtype}.")
    return array


def row_ids(name: str, values: Any, *, size: int, where: Any = None) -> Array:
    """Returns ids of any shape that index the rows of a table, as int32, after checking that each lies in [0, size).

    Traced ids are not checked: under jit one out of range is silently clamped. The check takes a minimum and a maximum,
    microseconds on the CPU, on the device that holds the array.

    Args:
        name: the name of the ids in error messages.
        values: an array, or a list.
        size: the number of rows of the table.
        where: a mask; ids where it is False are padding and may have any value.
    """
    if traced(values, where):
        return jnp.asarray(values)
    if _on_device(values) and values.size > 0 and jnp.issubdtype(values.dtype, jnp.integer):
        low, high = jax.device_get(_min_max(values))
        if low >= 0 and high < size:
            return values
    array = np.asarray(values)
    if array.size == 0:
        return jnp.asarray(array, jnp.int32)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integer ids, got {array.dtype}.")
    if array.min() >= 0 and array.max() < size:
        return values if isinstance(values, jax.Array) else jnp.asarray(array.astype(np.int32))
    invalid = (array < 0) | (array >= size)
    if where is not None:
        invalid &= np.broadcast_to(np.asarray(where), array.shape)
    if invalid.any():
        first, position = _first_position(invalid)
        raise ValueError(
            f"{name}: expected ids in [0, {size}), got {array[first]}{position}. Ids are positions in the model's "
            "tables: convert raw ids by ratings.user_index or item_index."
        )
    return jnp.asarray(np.where((array < 0) | (array >= size), 0, array).astype(np.int32))


def comparable_ids(**columns: Any) -> tuple[Array, ...]:
    """Returns columns of ids that are only compared with one another as int32, in which equal ids stay equal.

    If any id does not fit in int32, all columns are renumbered consistently; traced columns are returned unchanged.
    """
    if traced(*columns.values()):
        return tuple(jnp.asarray(column) for column in columns.values())
    arrays = [np.asarray(column) for column in columns.values()]
    for name, array in zip(columns, arrays, strict=True):
        if array.size and array.dtype.kind not in "iu":
            raise ValueError(f"{name}: expected integer ids, got {array.dtype}.")
    if all(array.size == 0 or (array.min() >= INT32_MIN and array.max() <= INT32_MAX) for array in arrays):
        return tuple(jnp.asarray(array, jnp.int32) for array in arrays)
    # Mixed int64 and uint64 are compared as Python integers, because NumPy would compare them as float64.
    kinds = {array.dtype.kind for array in arrays}
    flat = np.concatenate(
        [array.reshape(-1).astype(object) if len(kinds) > 1 else array.reshape(-1) for array in arrays]
    )
    numbers = np.split(np.unique(flat, return_inverse=True)[1], np.cumsum([array.size for array in arrays])[:-1])
    return tuple(
        jnp.asarray(number.reshape(array.shape), jnp.int32) for number, array in zip(numbers, arrays, strict=True)
    )


def mask(name: str, values: Any, shape: tuple[int, ...]) -> Array:
    """Returns a mask as an array, after checking its shape, and that it has bools rather than positions."""
    array = values if isinstance(values, jax.Array) else np.asarray(values)
    if array.dtype != bool or array.shape != shape:
        raise ValueError(f"{name}: expected a mask of bools of shape {shape}, got {array.dtype} of {array.shape}.")
    return jnp.asarray(array)


def strength(name: str, value: Any, *, zero: bool = False) -> None:
    """Checks that a penalty (a number, one per row, or a tuple of these) is finite and positive (or 0, if `zero`).

    Traced penalties are not checked.
    """
    for penalty in value if isinstance(value, tuple) else (value,):
        if traced(penalty):
            continue
        numbers = np.asarray(penalty, np.float64)
        if not (np.isfinite(numbers).all() and (numbers >= 0).all() and (zero or (numbers > 0).all())):
            invalid = ~(np.isfinite(numbers) & ((numbers >= 0) if zero else (numbers > 0)))
            raise ValueError(
                f"{name}: expected finite numbers {'>= 0' if zero else '> 0'}, got {numbers[invalid].reshape(-1)[0]}."
            )


def whole_number(name: str, value: Any, *, least: int | None = None) -> int:
    """Returns `value` as an int, after checking that it is a whole number and at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or (least is not None and value < least):
        at_least = "" if least is None else f" >= {least}"
        raise ValueError(f"{name}: expected a whole number{at_least}, got {value!r}.")
    return int(value)


def random_key(key: Any, *, optional: bool = False) -> None:
    """Checks that a key is one of jax.random.key (or of the older jax.random.PRNGKey); None passes if `optional`."""
    if optional and key is None:
        return
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if (is_typed and shape == ()) or (dtype == np.uint32 and len(shape) == 1):
        return
    seed, got = 0, type(key).__name__ if dtype is None else f"{dtype} of shape {shape}"
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        seed, got = int(key), f"{type(key).__name__} {int(key)}"
    raise ValueError(f"key: expected one random key, such as jax.random.key({seed}), got {got}.")


def pointwise_loss(loss: Any) -> None:
    """Checks that a loss has the arguments of a pointwise loss: loss(prediction, target, *, where, weights)."""
    name = _public_name(loss)
    if not callable(loss):
        raise ValueError(f"loss: expected a function such as losses.half_squared_error, got {type(loss).__name__}.")
    try:
        parameters = inspect.signature(loss).parameters
    except ValueError:  # a function without a signature, such as one written in C
        return
    has_kwargs = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    if not has_kwargs and not {"where", "weights"} <= set(parameters):
        raise ValueError(
            f"loss: expected a pointwise loss, with arguments where= and weights=, got {name}. A function of one "
            f"prediction and one target becomes a pointwise loss by losses.from_elementwise({name})."
        )


def _public_name(function: Any) -> str:
    """The name by which a function is reached from its package, such as optax.huber_loss, for a message."""
    name = getattr(function, "__name__", type(function).__name__)
    package = str(getattr(function, "__module__", "")).partition(".")[0]
    return f"{package}.{name}" if getattr(sys.modules.get(package), name, None) is function else name


def factors(name: str, value: Any, *, alternative: str | None = None) -> None:
    """Checks that a value is Factors, rather than what contains them: a `storage.Model` or the result of a solver.

    `alternative` is what the caller accepts in place of Factors, for the message.
    """
    if all(hasattr(value, table) for table in ("w", "b", "x")):
        return
    expected = "Factors" if alternative is None else f"Factors or {alternative}"
    advice = " Pass its factors: model.factors." if hasattr(value, "factors") else ""
    raise ValueError(f"{name}: expected {expected}, got {type(value).__name__}.{advice}")
