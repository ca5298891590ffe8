"""Models: parameters in, predictions out."""

from jaxrec.models.factors import as_vectors, init, predict, predict_all

__all__ = ["as_vectors", "init", "predict", "predict_all"]
