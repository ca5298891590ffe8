"""Which form of an operation a program holds: that of the platform that it is lowered for.

A form is chosen when a program is lowered, and not where it is traced, so that one compiled on a CPU for a GPU is the
GPU's. Forms are named by the device they are for:

| `on` | platforms | what is slow there |
| --- | --- | --- |
| `"cpu"` | cpu | leaving the cache: small chunks, whose buffers stay in it |
| `"gpu"` | cuda, rocm, any other | a launch: few steps, each as large as memory allows |
| `"tpu"` | tpu | HBM: Pallas kernels where XLA would write what is read once |

Every form is traced for every program, and one is lowered. An operation made of others therefore chooses once, and
tells its parts `on=`: a sweep of ALS over 24 buckets is traced in 1.2 s where forms are traced three times each, and
would be in 3 s if its parts chose again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax

__all__ = ["On", "by_platform", "derived_as"]

On = Literal["cpu", "gpu", "tpu"]


def by_platform(function: Callable[..., Any], *given: Any) -> Any:
    """function(*given, on=...), in the form for the platform that the program is lowered for.

    Args:
        function: takes arrays or pytrees of them and `on`; of one structure, shapes and dtypes for each.
        given: what it takes.
    """
    form = lambda on: partial(function, on=on)
    return jax.lax.platform_dependent(*given, cpu=form("cpu"), tpu=form("tpu"), default=form("gpu"))


def derived_as(reference: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, with `reference`'s derivative: for one that has none, as of Pallas. Values are then its too."""
    function = jax.custom_jvp(kernel)
    function.defjvp(lambda given, tangents: jax.jvp(reference, given, tangents))
    return function
