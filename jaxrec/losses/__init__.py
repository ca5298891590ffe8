"""Losses, costs and their closed-form gradients: pure functions of arrays."""

from jaxrec.losses import closed_form, content, ranking
from jaxrec.losses.collaborative import cost, data_term, item_cost, items_cost, user_cost, users_cost
from jaxrec.losses.pointwise import (
    absolute_error,
    half_squared_error,
    half_squared_error_slope,
    logistic,
    logistic_slope,
    squared_error,
    squared_error_slope,
)

__all__ = [
    "absolute_error",
    "closed_form",
    "content",
    "cost",
    "data_term",
    "half_squared_error",
    "half_squared_error_slope",
    "item_cost",
    "items_cost",
    "logistic",
    "logistic_slope",
    "ranking",
    "squared_error",
    "squared_error_slope",
    "user_cost",
    "users_cost",
]
