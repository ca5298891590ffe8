"""Serving: a request function and all that it reads, in one file that needs none of the code that made it.

`save` exports a pure function request(state, *inputs) by `jax.export`, for every platform named and for any number of
requests at once, and writes it beside the state (vectors, tables, networks) into a sealed file (`jaxrec.artifact`).
`load` gives it back as a callable, in a process that has neither the model's code nor Flax. The state's arrays can be
replaced by others of their shapes: catalogues get room to grow by rows that are not yet allowed (`with_rows`).

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
>>> more = with_rows(served, 2, items=jnp.array([[5.0]]), allowed=jnp.array([True]))  # a new film in the free row
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

from jaxrec import artifact

__all__ = ["Served", "load", "save", "with_rows"]

PLATFORMS = ("cpu", "cuda", "tpu")


@dataclass(frozen=True)
class Served:
    """A loaded request function.

    Attributes:
        state: name -> array, what it reads; nested names are joined by dots.
        program: the exported function, of (state, *inputs).
        meta: what was saved beside it: titles, encoders, settings.
    """

    state: Mapping[str, Array]
    program: export.Exported
    meta: Mapping[str, Any]
    _run: Callable[..., Any] = field(repr=False, compare=False)

    def __call__(self, *inputs: Any) -> Any:
        """The request function's answer; each input has the requests as its leading axis, of any length >= 1.

        Raises:
            ValueError: inputs of other shapes or dtypes than those it was exported for.
        """
        wanted = self.program.in_avals[len(self.state) :]
        given = [jnp.asarray(each) for each in inputs]
        got = [(each.dtype, each.shape[1:]) for each in given]
        if [(aval.dtype, tuple(aval.shape[1:])) for aval in wanted] != got or len({len(each) for each in given}) != 1:
            expected = ", ".join(f"{aval.dtype}{list(aval.shape)}" for aval in wanted)
            raise ValueError(f"expected {expected}; got {', '.join(f'{e.dtype}{list(e.shape)}' for e in given)}.")
        return self._run(dict(self.state), *given)


def save(
    path: str | os.PathLike[str],
    request: Callable[..., Any],
    state: Any,
    *inputs: Any,
    meta: Mapping[str, Any] | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Export and write; whole or not at all, as `artifact.write`.

    Args:
        path: the file.
        request: request(state, *inputs) -> a tuple (or dict, list) of arrays, pure; to be traced.
        state: a pytree of arrays.
        inputs: examples, each [requests, ...]; the leading axis is left open.
        meta: what JSON holds.
        platforms: that it will run on.

    Raises:
        ValueError: no inputs, or one without a leading axis; a state that is not finite; as `artifact.write`.
    """
    if not inputs or any(np.ndim(each) < 1 for each in inputs):
        raise ValueError("inputs: expected at least one example, each with the requests as its leading axis.")
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    named = {jax.tree_util.keystr(where, simple=True, separator="."): jnp.asarray(leaf) for where, leaf in leaves}
    for name, leaf in named.items():
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
            raise ValueError(f"state {name}: expected finite numbers, got NaN or infinity. Has training diverged?")

    def run(flat: dict[str, Array], *given: Array) -> Any:
        return request(jax.tree.unflatten(tree, [flat[name] for name in named]), *given)

    (batch,) = export.symbolic_shape("b")
    shape = lambda leaf, *lead: jax.ShapeDtypeStruct((*lead, *leaf.shape[len(lead) :]), leaf.dtype)
    open_ = [shape(jnp.asarray(each), batch) for each in inputs]
    exported = export.export(jax.jit(run), platforms=tuple(platforms))({k: shape(v) for k, v in named.items()}, *open_)
    program = np.frombuffer(exported.serialize(), np.uint8)
    arrays = {"program": program, **{f"state/{name}": leaf for name, leaf in named.items()}}
    artifact.write(path, "request", arrays, {"meta": dict(meta or {}), "names": list(named)})


def load(path: str | os.PathLike[str]) -> Served:
    """Read what `save` wrote, ready to be called.

    Raises:
        ValueError: as `artifact.read`; exported for other platforms than this process has.
        FileNotFoundError: no such file.
    """
    arrays, meta = artifact.read(path, "request")
    program = export.deserialize(bytearray(arrays["program"].tobytes()))
    if (here := export.default_export_platform()) not in program.platforms:
        raise ValueError(f"{path}: exported for {', '.join(program.platforms)}, and this process runs on {here}.")
    state = {name: jnp.asarray(arrays[f"state/{name}"]) for name in meta["names"]}
    return Served(state, program, meta["meta"], jax.jit(program.call))


def with_rows(served: Served, row: int, **tables: Any) -> Served:
    """The same with rows of some tables replaced from `row` on: new items in the room that was left for them.

    Args:
        served: a loaded request function.
        row: the first row to write.
        tables: name -> rows [n, ...] (dots in names are written as double underscores).

    Raises:
        ValueError: an unknown table, rows of another shape, more rows than there is room for; NaN or infinity.
    """
    state = dict(served.state)
    for key, rows in tables.items():
        name = key.replace("__", ".")
        if name not in state:
            raise ValueError(f"{name}: no such table; there are {', '.join(state)}.")
        table, rows = state[name], jnp.asarray(rows)
        if rows.shape[1:] != table.shape[1:] or rows.dtype != table.dtype or not 0 <= row <= len(table) - len(rows):
            raise ValueError(
                f"{name}: expected rows {table.dtype}{['n', *table.shape[1:]]} that fit from row {row} into "
                f"{len(table)}, got {rows.dtype}{list(rows.shape)}. Leave more room when the state is built."
            )
        if jnp.issubdtype(rows.dtype, jnp.inexact) and not bool(jnp.isfinite(rows).all()):
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity.")
        state[name] = table.at[row : row + len(rows)].set(rows)
    return dataclasses.replace(served, state=state)
