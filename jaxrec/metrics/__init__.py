"""Metrics: what a paper's table reports, with its denominators stated."""

from jaxrec.metrics.rating import mae, rmse

__all__ = ["mae", "rmse"]
