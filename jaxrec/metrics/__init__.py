"""Metrics of ratings, labels and ranked lists, with their denominators stated."""

from jaxrec.metrics import ranking
from jaxrec.metrics.binary import auc, log_loss
from jaxrec.metrics.ranking import auc_at_k, average_precision, hit_rate, ndcg, precision, recall, reciprocal_rank
from jaxrec.metrics.rating import mae, rmse

__all__ = [
    "auc",
    "auc_at_k",
    "average_precision",
    "hit_rate",
    "log_loss",
    "mae",
    "ndcg",
    "precision",
    "ranking",
    "recall",
    "reciprocal_rank",
    "rmse",
]
