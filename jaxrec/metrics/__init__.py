"""Metrics of ratings, labels and ranked lists, with their denominators stated.

| question | module |
| --- | --- |
| are ratings, labels and lists right? | `rating`, `binary`, `ranking` |
| is what is predicted as 4 stars 4 stars on average? | `reliability` |
| how much of the catalog is recommended, and how evenly? | `coverage` |
| how novel, popular and surprising are the lists? | `novelty` |
| how different are the items of a list? | `diversity` |
| has a list the categories of the user's history? | `calibration` |
| do two models recommend the same? | `agreement` |
| are groups of users served alike? | `groups` |
"""

from jaxrec.metrics import ranking
from jaxrec.metrics.agreement import jaccard, overlap, rank_biased_overlap
from jaxrec.metrics.binary import auc, log_loss
from jaxrec.metrics.calibration import Calibrated, calibrate, category_distribution, miscalibration
from jaxrec.metrics.coverage import catalog_coverage, exposure, exposure_entropy, exposure_gini
from jaxrec.metrics.diversity import (
    co_occurrence_diversity,
    cosine_distance,
    hamming_distance,
    intra_list_diversity,
    jaccard_distance,
)
from jaxrec.metrics.groups import GroupMeans, group_means
from jaxrec.metrics.novelty import (
    mean_popularity,
    popularity_lift,
    rank_serendipity,
    self_information,
    serendipity,
    unexpectedness,
)
from jaxrec.metrics.ranking import auc_at_k, average_precision, hit_rate, ndcg, precision, recall, reciprocal_rank
from jaxrec.metrics.rating import mae, rmse
from jaxrec.metrics.reliability import CalibrationCurve, calibration_curve, calibration_error

__all__ = [
    "Calibrated",
    "CalibrationCurve",
    "GroupMeans",
    "auc",
    "auc_at_k",
    "average_precision",
    "calibrate",
    "calibration_curve",
    "calibration_error",
    "catalog_coverage",
    "category_distribution",
    "co_occurrence_diversity",
    "cosine_distance",
    "exposure",
    "exposure_entropy",
    "exposure_gini",
    "group_means",
    "hamming_distance",
    "hit_rate",
    "intra_list_diversity",
    "jaccard",
    "jaccard_distance",
    "log_loss",
    "mae",
    "mean_popularity",
    "miscalibration",
    "ndcg",
    "overlap",
    "popularity_lift",
    "precision",
    "rank_biased_overlap",
    "rank_serendipity",
    "ranking",
    "recall",
    "reciprocal_rank",
    "rmse",
    "self_information",
    "serendipity",
    "unexpectedness",
]
