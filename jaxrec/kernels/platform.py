"""One function, two programs: a kernel where the program is compiled for a TPU, plain XLA everywhere else.

Which is decided when it is lowered, not where it is traced: a program compiled on a CPU for a TPU holds the kernel, and
one exported for several platforms holds each platform's own. `jax.lax.platform_dependent` does not do: it lowers every
branch for every platform of an export, which Pallas refuses, and differentiates them all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["by_platform"]

Function = Callable[..., Any]


def by_platform(*given: Any, tpu: Function, default: Function) -> Any:
    """default(*given), or on a TPU tpu(*given), which is the same; where it is differentiated, `default`.

    Args:
        given: arrays, or pytrees of them.
        tpu: -> an array or a pytree of arrays; it imports its kernel when it is called, so that only a program for a
            TPU needs Pallas.
        default: plain JAX, -> a pytree of the same structure, shapes and dtypes.
    """
    arrays, taken = jax.tree.flatten(given)
    leaves = lambda function: lambda *arrays: jax.tree.leaves(function(*jax.tree.unflatten(taken, arrays)))
    returned = jax.tree.structure(jax.eval_shape(default, *given))
    return jax.tree.unflatten(returned, _either.bind(*arrays, tpu=leaves(tpu), default=leaves(default)))


_either = Primitive("by_platform")
_either.multiple_results = True


def _run(*arrays: Any, **functions: Function) -> list[Array]:
    return jax.jit(lambda *arrays: _either.bind(*arrays, **functions))(*arrays)


def _shapes(*arrays: Any, tpu: Function, default: Function) -> list[Any]:
    given = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
    return [jax.core.ShapedArray(out.shape, out.dtype) for out in jax.eval_shape(default, *given)]


def _batch(
    arrays: Sequence[Any], axes: Sequence[int | None], *, tpu: Function, default: Function
) -> tuple[Any, list[int]]:
    many = lambda function: jax.vmap(function, in_axes=tuple(axes))
    out = _either.bind(*arrays, tpu=many(tpu), default=many(default))
    return out, [0] * len(out)


def _derive(arrays: Sequence[Any], tangents: Sequence[Any], *, tpu: Function, default: Function) -> tuple[Any, Any]:
    """Values too: the kernel's beside them would be computed twice."""
    del tpu
    return jax.jvp(default, tuple(arrays), tuple(map(ad.instantiate_zeros, tangents)))


_either.def_impl(_run)
_either.def_abstract_eval(_shapes)
batching.primitive_batchers[_either] = _batch
ad.primitive_jvps[_either] = _derive
mlir.register_lowering(_either, mlir.lower_fun(lambda *arrays, tpu, default: default(*arrays), multiple_results=True))
mlir.register_lowering(
    _either, mlir.lower_fun(lambda *arrays, tpu, default: tpu(*arrays), multiple_results=True), platform="tpu"
)
