"""Serving: a request function and its data in one file, which is loaded without the model's code.

`save` exports a pure function request(state, *inputs) with `jax.export`, one program per platform, each for any number
of requests at once, and writes the programs and the state (vectors, tables, networks) to a file with a checksum
(`jaxrec.storage`). `load` returns it as a callable, in a process that has neither the model's code nor Flax. Rows of
the state's arrays can be replaced (`with_rows`): reserve rows that are not yet allowed, so that the catalog can grow.

**Load only files that you trust.** A request function is a program: it can compute for ever or fill the memory, and
XLA, which compiles it, is not written to withstand hostile programs. (Files of `jaxrec.storage` hold data only.) `load`
refuses the known way from a program to other code, which are custom calls that are not in `CUSTOM_CALLS`.

>>> import tempfile, jax.numpy as jnp
>>> from jaxrec.retrieval import top_k
>>> def request(state, query):
...     return top_k(query, state["items"], 2, allowed=state["allowed"])
>>> state = {"items": jnp.array([[1.0], [3.0], [9.0]]), "allowed": jnp.array([True, True, False])}
>>> with tempfile.TemporaryDirectory() as folder:
...     save(f"{folder}/films.jaxrec", request, state, jnp.ones((1, 1)), meta={"titles": ["A", "B"]})
...     served = load(f"{folder}/films.jaxrec")
>>> scores, ids = served(jnp.array([[1.0], [-1.0]]))  # two requests at once
>>> ids.tolist(), served.meta["titles"]
([[1, 0], [0, 1]], ['A', 'B'])
>>> more = with_rows(served, 2, {"items": jnp.array([[5.0]]), "allowed": jnp.array([True])})  # in the reserved row
>>> more(jnp.array([[1.0]]))[1].tolist()
[[2, 1]]
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from jaxrec import check, storage

__all__ = ["Served", "load", "save", "with_rows"]

PLATFORMS = ("cpu", "cuda", "tpu")
# What a program may call beside XLA's own operations: linear algebra, selection, random bits and shapes, as jaxlib has
# them, and Pallas kernels, which run on a TPU only. Callbacks run code of the process by its address, and are not here.
CUSTOM_CALLS = re.compile(
    r"lapack_[sdcz]\w+_ffi|(cusolver|cublas|cusparse|hipsolver|hipblas)_\w+_ffi|(cu|hip)_lu_pivots_to_permutation"
    r"|(cu|hip)_threefry2x32_ffi|Eigh|Qr|LuDecomposition|ProductOfElementaryHouseholderReflectors|tpu_custom_call"
    r"|ApproxTopK|stablehlo\.dynamic_(approx_top_k|top_k|reduce_window|rng_bit_generator)|shape_assertion"
    r"|AllocateBuffer|Sharding|SPMDFullToShardShape|SPMDShardToFullShape|annotate_device_placement"
)


@dataclass(frozen=True)
class Served:
    """A loaded request function.

    Attributes:
        state: name -> array, the data that it reads; nested names are joined by dots.
        program: the exported function of (state, *inputs) for this process's platform.
        platforms: all platforms that the file has a program for.
        meta: the metadata saved with it: titles, encoders, settings.
    """

    state: Mapping[str, Array]
    program: export.Exported
    platforms: tuple[str, ...]
    meta: Mapping[str, Any]
    _run: Callable[..., Any] = field(repr=False, compare=False)

    def __call__(self, *inputs: Any) -> Any:
        """Runs the request function. Each input has the requests as its leading axis, of any length >= 1.

        Raises:
            ValueError: inputs whose shapes or dtypes differ from those it was exported for, with different numbers of
                requests, or with none; numbers that those dtypes cannot hold (64-bit integers are never truncated);
                NaN.
        """
        avals = self.program.in_avals[len(self.state) :]
        arrays = [check.as_array(f"inputs[{n}]", each) for n, each in enumerate(inputs)]
        got = [(array.dtype, array.shape[1:]) for array in arrays]
        lengths = {array.shape[:1] for array in arrays}
        if [(aval.dtype, tuple(aval.shape[1:])) for aval in avals] != got or len(lengths) != 1 or lengths == {()}:
            expected = ", ".join(f"{aval.dtype}{list(aval.shape)}" for aval in avals)
            raise ValueError(
                f"inputs: expected {expected}; got {', '.join(f'{a.dtype}{list(a.shape)}' for a in arrays)}."
            )
        if lengths == {(0,)}:
            raise ValueError("inputs: expected at least one request, got none.")
        for n, array in enumerate(arrays):
            if check.traced(array) or not jnp.issubdtype(array.dtype, jnp.inexact):
                continue
            if (has_nan := np.isnan(np.asarray(array)).reshape(len(array), -1).any(axis=1)).any():
                raise ValueError(f"inputs[{n}]: expected numbers, got NaN in request {int(has_nan.argmax())}.")
        return self._run(dict(self.state), *arrays)


def save(
    path: str | os.PathLike[str],
    request: Callable[..., Any],
    state: Any,
    *inputs: Any,
    meta: Mapping[str, Any] | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Exports a request function and writes it to a file atomically, like `storage.write`.

    Args:
        path: the file.
        request: request(state, *inputs) -> a tuple (or dict, list) of arrays, pure and traceable. A NamedTuple is
            returned as a plain tuple, because the process that loads it may not have its class.
        state: a pytree of arrays.
        inputs: examples, each [requests, ...]; the length of the leading axis remains free.
        meta: values that JSON can hold.
        platforms: the platforms to run on, at least one.

    Raises:
        ImportError: without flatbuffers (pip install 'jaxrec[serving]').
        ValueError: no platforms; no inputs, an input without a leading axis, or different numbers of requests; a state
            or an input that the device's types cannot hold (2**40 with 32 bits); a state that is not finite, or has
            two leaves of one name; a function that calls other code (`CUSTOM_CALLS`); as `storage.write`.
    """
    _check_flatbuffers()
    if isinstance(platforms, str) or not platforms:
        raise ValueError(f"platforms: expected names such as {PLATFORMS}, got {platforms!r}.")
    examples = [check.as_array(f"inputs[{n}]", each) for n, each in enumerate(inputs)]
    if not examples or any(each.ndim < 1 for each in examples):
        raise ValueError("inputs: expected at least one example, each with the requests as its leading axis.")
    check.same_length(**{f"inputs[{n}]": each for n, each in enumerate(examples)})
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    paths = [jax.tree_util.keystr(key_path, simple=True, separator=".") for key_path, _ in leaves]
    named = {path: check.as_array(f"state {path}", leaf) for path, (_, leaf) in zip(paths, leaves, strict=True)}
    if len(named) != len(paths):
        repeated = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"state: expected leaves of different names, got {repeated!r} twice. Use keys without dots.")
    for name, leaf in named.items():
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
            raise ValueError(f"state {name}: expected finite numbers, got NaN or infinity. Has training diverged?")

    def run(flat: dict[str, Array], *inputs: Array) -> Any:
        return _plain(request(jax.tree.unflatten(tree, [flat[name] for name in named]), *inputs))

    (batch,) = export.symbolic_shape("b")
    shape = lambda leaf, *lead: jax.ShapeDtypeStruct((*lead, *leaf.shape[len(lead) :]), leaf.dtype)
    input_shapes = [shape(example, batch) for example in examples]
    state_shapes = {name: shape(leaf) for name, leaf in named.items()}
    arrays: dict[str, Any] = {f"state/{name}": leaf for name, leaf in named.items()}
    for platform in platforms:  # one export per platform: a joint one lowers all kernels for each, which Pallas refuses
        exported = export.export(jax.jit(run), platforms=(platform,))(state_shapes, *input_shapes)
        _check_custom_calls(exported)
        arrays[f"program/{platform}"] = np.frombuffer(exported.serialize(), np.uint8)
    storage.write(path, "request", arrays, {"meta": dict(meta or {}), "names": list(named)})


def _check_flatbuffers() -> None:
    """Raises an ImportError that names the extra: jax.export writes and reads functions by flatbuffers."""
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise ImportError("serving needs flatbuffers: pip install 'jaxrec[serving]'.") from error


def _plain(tree: Any) -> Any:
    """The tree with NamedTuples replaced by tuples, because exported programs cannot hold their classes."""
    is_named = lambda node: isinstance(node, tuple) and hasattr(node, "_fields")
    return jax.tree.map(lambda node: tuple(map(_plain, node)) if is_named(node) else node, tree, is_leaf=is_named)


def _check_custom_calls(program: export.Exported) -> None:
    """Raises a ValueError at a custom call that is not in `CUSTOM_CALLS`, or that is written in another way."""
    text = program.mlir_module()
    calls = re.findall(r'custom_call @(?:"([^"]*)"|([\w.$]+))\(', text)
    names = {quoted or plain for quoted, plain in calls}
    refused = sorted(name for name in names if not CUSTOM_CALLS.fullmatch(name))
    if refused or len(calls) != text.count("custom_call @") or 'custom_call"' in text:
        raise ValueError(
            f"expected a program of XLA's operations and jaxlib's linear algebra, got calls of "
            f"{refused or 'other code'}. Callbacks and foreign functions cannot be served."
        )


def load(path: str | os.PathLike[str]) -> Served:
    """Loads a request function that `save` wrote. The file is a program: load only files that you trust.

    Raises:
        ImportError: without flatbuffers (pip install 'jaxrec[serving]').
        ValueError: as `storage.read`; no program for the platform of this process; a program that calls other code
            (`CUSTOM_CALLS`).
        FileNotFoundError: no such file.
    """
    _check_flatbuffers()
    arrays, meta = storage.read(path, "request")
    programs = {name.removeprefix("program/"): data for name, data in arrays.items() if name.startswith("program/")}
    if (platform := export.default_export_platform()) not in programs:
        raise ValueError(f"{path}: exported for {', '.join(programs)}, and this process runs on {platform}.")
    program = export.deserialize(bytearray(programs[platform].tobytes()))
    try:
        _check_custom_calls(program)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    state = {name: jnp.asarray(arrays[f"state/{name}"]) for name in meta["names"]}
    return Served(state, program, tuple(programs), meta["meta"], jax.jit(program.call))


def with_rows(served: Served, row: int, tables: Mapping[str, Any]) -> Served:
    """Replaces rows of some tables from `row` on, such as new items in reserved rows. Returns a new request function.

    Args:
        served: a loaded request function.
        row: the first row to write.
        tables: name -> rows [n, ...]; names as in `served.state`, such as 'similar.ids'.

    Raises:
        ValueError: an unknown table; rows of another shape or type, or that its type cannot hold; more rows than fit;
            a `row` that is not a row; NaN or infinity.
    """
    if isinstance(row, bool) or not isinstance(row, int | np.integer):
        raise ValueError(f"row: expected the position of the first row, an integer, got {row!r}.")
    state = dict(served.state)
    for name, rows in tables.items():
        if name not in state:
            raise ValueError(f"tables: expected names among {', '.join(state)}, got {name!r}.")
        table, rows = state[name], check.as_array(name, rows)
        if table.ndim == 0 or rows.ndim == 0:
            raise ValueError(f"{name}: expected rows of a table, got {list(rows.shape)} for {list(table.shape)}.")
        if rows.shape[1:] != table.shape[1:] or rows.dtype != table.dtype or not 0 <= row <= len(table) - len(rows):
            raise ValueError(
                f"{name}: expected rows {table.dtype}{['n', *table.shape[1:]]} that fit from row {row} into "
                f"{len(table)}, got {rows.dtype}{list(rows.shape)}. Reserve more rows when the state is built."
            )
        check.all_finite(name, rows)
        state[name] = table.at[int(row) : int(row) + len(rows)].set(rows)
    return dataclasses.replace(served, state=state)
