"""The check of probabilities that off-policy estimates and propensities share."""

import numpy as np
from jax import Array

from jaxrec import check

ROUNDING = 1e-6  # by which a probability of 1 may exceed 1, as a float32 softmax does


def check_range(name: str, values: Array, where: Array, *, zero: bool) -> None:
    """Checks that probabilities are in (0, 1], or [0, 1] if `zero`; traced and masked ones are not checked."""
    if check.traced(values, where):
        return
    valid = (values >= 0 if zero else values > 0) & (values <= 1 + ROUNDING)  # False of NaN
    invalid = np.asarray(where & ~valid)
    if invalid.any():
        first = tuple(int(axis) for axis in np.unravel_index(int(invalid.argmax()), invalid.shape))
        value, position = float(values[first]), first[0] if len(first) == 1 else first
        raise ValueError(
            f"{name}: expected probabilities in {'[0, 1]' if zero else '(0, 1]'}, got {value:.6g} at position "
            f"{position} ({int(invalid.sum())} in all)."
            + ("" if zero else " What was logged had a positive probability of it.")
        )
