"""Evaluation of recommendations: any scorer ranked for every user, comparisons, audits of splits, logged policies."""

from jaxrec.evaluation import off_policy, propensity
from jaxrec.evaluation._audit import Audit, audit
from jaxrec.evaluation._compare import Comparison, Comparisons, compare, compare_all
from jaxrec.evaluation._evaluate import evaluate
from jaxrec.evaluation._result import Evaluation

__all__ = [
    "Audit",
    "Comparison",
    "Comparisons",
    "Evaluation",
    "audit",
    "compare",
    "compare_all",
    "evaluate",
    "off_policy",
    "propensity",
]
