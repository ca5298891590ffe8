"""Selects the implementation of an operation for the platform that a program is lowered for.

It is selected when a program is lowered, not when it is traced, so that a program compiled on a CPU for a GPU has the
GPU's implementation. The names of the implementations:

| `platform` | JAX's platforms | what is slow there |
| --- | --- | --- |
| `"cpu"` | cpu | leaving the cache: small chunks, whose buffers stay in it |
| `"gpu"` | cuda, rocm, any other | a launch: few steps, each as large as memory allows |
| `"tpu"` | tpu | HBM: Pallas kernels where XLA would write what is read once |

Every implementation is traced for every program, and one is lowered. An operation made of other operations therefore
selects once, and passes `platform=` to them: tracing a sweep of ALS over 24 buckets takes 1.2 s with each
implementation traced three times, and would take 3 s if the inner operations selected again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

__all__ = ["BLOCK_ZERO", "Platform", "by_platform", "with_derivative_of"]

Platform = Literal["cpu", "gpu", "tpu"]

# Pallas' index of a block that fills its dimension. With x64 enabled a plain 0 is an int64, which Mosaic refuses.
BLOCK_ZERO = np.int32(0)


def by_platform(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args, platform=...), for the platform that the program is lowered for.

    Args:
        function: takes arrays or pytrees of them, and `platform`; its results have the same structure, shapes and
            dtypes for every platform.
        args: its arguments.
    """
    implementation = lambda platform: partial(function, platform=platform)
    return jax.lax.platform_dependent(
        *args, cpu=implementation("cpu"), tpu=implementation("tpu"), default=implementation("gpu")
    )


def with_derivative_of(reference: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel with the derivative of `reference`, for kernels without one, such as those of Pallas.

    Where it is differentiated its values are the reference's too.
    """
    function = jax.custom_jvp(kernel)
    function.defjvp(lambda primals, tangents: jax.jvp(reference, primals, tangents))
    return function
