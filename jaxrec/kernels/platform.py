"""Selects the form of an operation for the platform that a program is lowered for.

The form is chosen when a program is lowered, not when it is traced, so that a program compiled on a CPU for a GPU has
the GPU's form. Forms are named by their device:

| `on` | platforms | what is slow there |
| --- | --- | --- |
| `"cpu"` | cpu | leaving the cache: small chunks, whose buffers stay in it |
| `"gpu"` | cuda, rocm, any other | a launch: few steps, each as large as memory allows |
| `"tpu"` | tpu | HBM: Pallas kernels where XLA would write what is read once |

Every form is traced for every program, and one is lowered. An operation made of other operations therefore chooses
once, and passes `on=` to them: tracing a sweep of ALS over 24 buckets takes 1.2 s with each form traced three times,
and would take 3 s if the inner operations chose again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

__all__ = ["BLOCK_ZERO", "On", "by_platform", "derived_as"]

On = Literal["cpu", "gpu", "tpu"]

# Pallas' index of a block that fills its dimension. With x64 enabled a plain 0 is an int64, which Mosaic refuses.
BLOCK_ZERO = np.int32(0)


def by_platform(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args, on=...), in the form for the platform that the program is lowered for.

    Args:
        function: takes arrays or pytrees of them, and `on`; its results have the same structure, shapes and dtypes for
            every `on`.
        args: its arguments.
    """
    form = lambda on: partial(function, on=on)
    return jax.lax.platform_dependent(*args, cpu=form("cpu"), tpu=form("tpu"), default=form("gpu"))


def derived_as(reference: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel with the derivative of `reference`, for kernels without one, such as those of Pallas.

    Where it is differentiated its values are the reference's too.
    """
    function = jax.custom_jvp(kernel)
    function.defjvp(lambda primals, tangents: jax.jvp(reference, primals, tangents))
    return function
