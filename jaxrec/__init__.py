"""jaxrec: recommender-systems research in JAX."""

from jaxrec.types import Dataset, Factors, Ratings

__all__ = ["Dataset", "Factors", "Ratings"]
