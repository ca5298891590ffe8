"""Losses, costs and their closed-form gradients: pure functions of arrays."""

from jaxrec.losses import closed_form, content, penalty, softmax
from jaxrec.losses.collaborative import cost, data_term, item_cost, items_cost, user_cost, users_cost
from jaxrec.losses.pointwise import (
    PointwiseLoss,
    absolute_error,
    from_elementwise,
    half_squared_error,
    logistic,
    squared_error,
)
from jaxrec.losses.softmax import catalogue_softmax
from jaxrec.types import Total

__all__ = [
    "PointwiseLoss",
    "Total",
    "absolute_error",
    "catalogue_softmax",
    "closed_form",
    "content",
    "cost",
    "data_term",
    "from_elementwise",
    "half_squared_error",
    "item_cost",
    "items_cost",
    "logistic",
    "penalty",
    "softmax",
    "squared_error",
    "user_cost",
    "users_cost",
]
