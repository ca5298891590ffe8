"""Evaluation of recommendations: any scorer ranked for every user, comparisons, audits of splits, logged policies."""

from jaxrec.evaluation._audit import Audit, audit
from jaxrec.evaluation._evaluate import evaluate

__all__ = ["Audit", "audit", "evaluate"]
