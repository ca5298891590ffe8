"""Losses, costs and their closed-form gradients: pure functions of arrays."""

from jaxrec.losses import closed_form, content, implicit, pairwise, penalty, softmax
from jaxrec.losses.collaborative import cost, data_term, item_cost, items_cost, user_cost, users_cost
from jaxrec.losses.implicit import bpr_cost, catalogue_cost, sampled_cost
from jaxrec.losses.pairwise import bce, bpr, gbce, hinge, warp
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
    "bce",
    "bpr",
    "bpr_cost",
    "catalogue_cost",
    "catalogue_softmax",
    "closed_form",
    "content",
    "cost",
    "data_term",
    "from_elementwise",
    "gbce",
    "half_squared_error",
    "hinge",
    "implicit",
    "item_cost",
    "items_cost",
    "logistic",
    "pairwise",
    "penalty",
    "sampled_cost",
    "softmax",
    "squared_error",
    "user_cost",
    "users_cost",
    "warp",
]
