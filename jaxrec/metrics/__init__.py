"""Metrics: what a paper's table reports, with its denominators stated."""

from jaxrec.metrics.binary import auc, log_loss
from jaxrec.metrics.rating import mae, rmse

__all__ = ["auc", "log_loss", "mae", "rmse"]
