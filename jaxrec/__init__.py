"""jaxrec: recommender-systems research in JAX.

Pure functions of arrays: `losses` (the costs of collaborative filtering and their closed-form gradients), `solvers`
(ridge, alternating least squares), `training` (any cost, any optax optimizer), `models`, `retrieval`, `metrics`;
`data` brings ratings and features to the device, `evaluation` ranks the catalogue for every user. `recommend` and
`related` answer in raw ids and titles; `artifact` saves models and loads them, `serving` request functions.
"""

from jaxrec import artifact, data, evaluation, losses, metrics, models, retrieval, serving, solvers, training
from jaxrec.catalog import recommend, related
from jaxrec.types import Dataset, Factors, Ratings

__all__ = [
    "Dataset",
    "Factors",
    "Ratings",
    "artifact",
    "data",
    "evaluation",
    "losses",
    "metrics",
    "models",
    "recommend",
    "related",
    "retrieval",
    "serving",
    "solvers",
    "training",
]
