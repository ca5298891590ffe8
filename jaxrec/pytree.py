"""Dataclasses as pytrees whose structures are distinguished by their class.

`jax.tree_util.register_dataclass` does that too, but not with jaxlib 0.10 and later (seen in 0.10.2, 0.12.0): there the
structures of two classes with equally many arrays compare equal, whatever the classes and the names of their fields.
Their hashes differ, so that JAX's cache of traces confuses them only now and then: in about one of fifteen runs of a
test a Chebyshev series was computed by the program of a polynomial, without any error. A node that is registered by
functions is compared by its class.

>>> import jax
>>> from dataclasses import dataclass, field
>>> @register_dataclass
... @dataclass(frozen=True)
... class Line:
...     slope: float
...     name: str = field(default="line", metadata={"static": True})
>>> jax.tree.map(lambda x: 2 * x, Line(3.0))
Line(slope=6.0, name='line')
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from jax.tree_util import GetAttrKey, register_pytree_with_keys

__all__ = ["register_dataclass"]

T = TypeVar("T")


def register_dataclass(cls: type[T]) -> type[T]:
    """Registers a dataclass as a pytree: its fields are children, but for those with metadata {"static": True}.

    Static fields are part of the structure, so they must be hashable.
    """
    every = fields(cls)  # type: ignore[arg-type]
    static = tuple(each.name for each in every if each.metadata.get("static"))
    children = tuple(each.name for each in every if not each.metadata.get("static"))
    keys = tuple(GetAttrKey(name) for name in children)

    def flatten(value: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(value, name) for name in children), tuple(getattr(value, name) for name in static)

    def flatten_with_keys(value: Any) -> tuple[tuple[tuple[GetAttrKey, Any], ...], tuple[Any, ...]]:
        parts, rest = flatten(value)
        return tuple(zip(keys, parts, strict=True)), rest

    def unflatten(rest: Any, parts: Any) -> T:
        return cls(**dict(zip(children, parts, strict=True)), **dict(zip(static, rest, strict=True)))

    register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
