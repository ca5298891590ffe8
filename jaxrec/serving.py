"""Serving: a request function and all that it reads, in one file that needs none of the code that made it.

`save` exports a pure function request(state, *inputs) by `jax.export`, a program for every platform named, each for any
number of requests at once, and writes them beside the state (vectors, tables, networks) into a sealed file
(`jaxrec.storage`). `load` gives it back as a callable, in a process that has neither the model's code nor Flax. The
state's arrays can be replaced by others of their shapes: catalogues get room to grow by rows that are not yet allowed
(`with_rows`).

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
>>> more = with_rows(served, 2, {"items": jnp.array([[5.0]]), "allowed": jnp.array([True])})  # a film in the free row
>>> more(jnp.array([[1.0]]))[1].tolist()
[[2, 1]]
"""

import dataclasses
import os
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


@dataclass(frozen=True)
class Served:
    """A loaded request function.

    Attributes:
        state: name -> array, what it reads; nested names are joined by dots.
        program: the function exported for this process's platform, of (state, *inputs).
        platforms: all that the file has a program for.
        meta: what was saved beside it: titles, encoders, settings.
    """

    state: Mapping[str, Array]
    program: export.Exported
    platforms: tuple[str, ...]
    meta: Mapping[str, Any]
    _run: Callable[..., Any] = field(repr=False, compare=False)

    def __call__(self, *inputs: Any) -> Any:
        """The request function's answer; each input has the requests as its leading axis, of any length >= 1.

        Raises:
            ValueError: inputs of other shapes or dtypes than those it was exported for, of different numbers of
                requests, or of none; numbers that those dtypes do not hold (integers of 64 bits are never cut); NaN.
        """
        wanted = self.program.in_avals[len(self.state) :]
        given = [check.as_array(f"inputs[{n}]", each) for n, each in enumerate(inputs)]
        got = [(each.dtype, each.shape[1:]) for each in given]
        lengths = {each.shape[:1] for each in given}
        if [(aval.dtype, tuple(aval.shape[1:])) for aval in wanted] != got or len(lengths) != 1 or lengths == {()}:
            expected = ", ".join(f"{aval.dtype}{list(aval.shape)}" for aval in wanted)
            raise ValueError(f"expected {expected}; got {', '.join(f'{e.dtype}{list(e.shape)}' for e in given)}.")
        if lengths == {(0,)}:
            raise ValueError("expected at least one request, got none: there is nothing to answer.")
        for n, each in enumerate(given):
            if check.traced(each) or not jnp.issubdtype(each.dtype, jnp.inexact):
                continue
            if (wrong := np.isnan(np.asarray(each)).reshape(len(each), -1).any(axis=1)).any():
                raise ValueError(f"inputs[{n}]: expected numbers, got NaN in request {int(wrong.argmax())}.")
        return self._run(dict(self.state), *given)


def save(
    path: str | os.PathLike[str],
    request: Callable[..., Any],
    state: Any,
    *inputs: Any,
    meta: Mapping[str, Any] | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Export and write; whole or not at all, as `storage.write`.

    Args:
        path: the file.
        request: request(state, *inputs) -> a tuple (or dict, list) of arrays, pure; to be traced. A NamedTuple comes
            back as a plain tuple, for the process that loads it may not have its class.
        state: a pytree of arrays.
        inputs: examples, each [requests, ...]; the leading axis is left open.
        meta: what JSON holds.
        platforms: that it will run on, at least one.

    Raises:
        ValueError: no platforms; no inputs, one without a leading axis, or of another number of requests; a state or
            an input that the device's types do not hold (2**40 with 32 bits); a state that is not finite, or has two
            leaves of one name; as `storage.write`.
    """
    if isinstance(platforms, str) or not platforms:
        raise ValueError(f"platforms: expected names such as {PLATFORMS}, got {platforms!r}.")
    examples = [check.as_array(f"inputs[{n}]", each) for n, each in enumerate(inputs)]
    if not examples or any(each.ndim < 1 for each in examples):
        raise ValueError("inputs: expected at least one example, each with the requests as its leading axis.")
    check.same_length(**{f"inputs[{n}]": each for n, each in enumerate(examples)})
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    paths = [jax.tree_util.keystr(where, simple=True, separator=".") for where, _ in leaves]
    named = {path: check.as_array(f"state {path}", leaf) for path, (_, leaf) in zip(paths, leaves, strict=True)}
    if len(named) != len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"state: expected leaves of different names, got {twice!r} twice. No dots in the keys.")
    for name, leaf in named.items():
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
            raise ValueError(f"state {name}: expected finite numbers, got NaN or infinity. Has training diverged?")

    def run(flat: dict[str, Array], *given: Array) -> Any:
        return _plain(request(jax.tree.unflatten(tree, [flat[name] for name in named]), *given))

    (batch,) = export.symbolic_shape("b")
    shape = lambda leaf, *lead: jax.ShapeDtypeStruct((*lead, *leaf.shape[len(lead) :]), leaf.dtype)
    open_ = [shape(each, batch) for each in examples]
    arrays: dict[str, Any] = {f"state/{name}": leaf for name, leaf in named.items()}
    for platform in platforms:  # one export for all would hold every platform's kernels for each, which Pallas refuses
        exported = export.export(jax.jit(run), platforms=(platform,))({k: shape(v) for k, v in named.items()}, *open_)
        arrays[f"program/{platform}"] = np.frombuffer(exported.serialize(), np.uint8)
    storage.write(path, "request", arrays, {"meta": dict(meta or {}), "names": list(named)})


def _plain(tree: Any) -> Any:
    """The tree with tuples in place of NamedTuples, which an exported program cannot name."""
    named = lambda node: isinstance(node, tuple) and hasattr(node, "_fields")
    return jax.tree.map(lambda node: tuple(map(_plain, node)) if named(node) else node, tree, is_leaf=named)


def load(path: str | os.PathLike[str]) -> Served:
    """Read what `save` wrote, ready to be called.

    Raises:
        ValueError: as `storage.read`; exported for other platforms than this process has.
        FileNotFoundError: no such file.
    """
    arrays, meta = storage.read(path, "request")
    programs = {name.removeprefix("program/"): each for name, each in arrays.items() if name.startswith("program/")}
    if (here := export.default_export_platform()) not in programs:
        raise ValueError(f"{path}: exported for {', '.join(programs)}, and this process runs on {here}.")
    program = export.deserialize(bytearray(programs[here].tobytes()))
    state = {name: jnp.asarray(arrays[f"state/{name}"]) for name in meta["names"]}
    return Served(state, program, tuple(programs), meta["meta"], jax.jit(program.call))


def with_rows(served: Served, row: int, tables: Mapping[str, Any]) -> Served:
    """The same request with rows of some tables replaced from `row` on: new items in the room left for them.

    Args:
        served: a loaded request function.
        row: the first row to write.
        tables: name -> rows [n, ...]; names as in `served.state`, such as 'similar.ids'.

    Raises:
        ValueError: an unknown table, rows of another shape or type, or beyond its type, more rows than there is room
            for, a first row that is none; NaN or infinity.
    """
    if isinstance(row, bool) or not isinstance(row, int | np.integer):
        raise ValueError(f"row: expected the position of the first row, an integer, got {row!r}.")
    state = dict(served.state)
    for name, rows in tables.items():
        if name not in state:
            raise ValueError(f"{name}: no such table; there are {', '.join(state)}.")
        table, rows = state[name], check.as_array(name, rows)
        if table.ndim == 0 or rows.ndim == 0:
            raise ValueError(f"{name}: expected rows of a table, got {list(rows.shape)} for {list(table.shape)}.")
        if rows.shape[1:] != table.shape[1:] or rows.dtype != table.dtype or not 0 <= row <= len(table) - len(rows):
            raise ValueError(
                f"{name}: expected rows {table.dtype}{['n', *table.shape[1:]]} that fit from row {row} into "
                f"{len(table)}, got {rows.dtype}{list(rows.shape)}. Leave more room when the state is built."
            )
        check.all_finite(name, rows)
        state[name] = table.at[int(row) : int(row) + len(rows)].set(rows)
    return dataclasses.replace(served, state=state)
