"""Models: parameters in, predictions out."""

from jaxrec.models import baselines
from jaxrec.models.factors import as_vectors, init, learned, predict, predict_all

__all__ = ["as_vectors", "baselines", "init", "learned", "predict", "predict_all"]
