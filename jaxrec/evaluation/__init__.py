"""Evaluation of recommendations: any scorer ranked for every user, comparisons, audits of splits, logged policies."""

from jaxrec.evaluation import off_policy, propensity
from jaxrec.evaluation._evaluate import evaluate

__all__ = ["evaluate", "off_policy", "propensity"]
