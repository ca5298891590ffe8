"""jaxrec: recommender-systems research in JAX.

Pure functions of arrays: `losses` (the costs of collaborative filtering and their closed-form gradients), `solvers`
(ridge regression, alternating least squares), `bayes` (Gibbs sampling), `training` (any cost, any optax optimizer),
`models`, `retrieval`, `metrics`; `data` brings ratings and features to the device, `evaluation` ranks the catalog for
every user. `recommend` and `related` return raw ids and titles; `storage` saves and loads models, `serving` exports
request functions. `types` defines the data types that all of these share.
"""

from jaxrec import (
    bayes,
    data,
    evaluation,
    losses,
    metrics,
    models,
    retrieval,
    scorer_storage,
    sequence_requests,
    serving,
    solvers,
    storage,
    training,
    types,
)
from jaxrec._version import __version__
from jaxrec.catalog import recommend, related
from jaxrec.checkpoints import Checkpoint
from jaxrec.types import Dataset, Factors, Ratings

__all__ = [
    "Checkpoint",
    "Dataset",
    "Factors",
    "Ratings",
    "__version__",
    "bayes",
    "data",
    "evaluation",
    "losses",
    "metrics",
    "models",
    "recommend",
    "related",
    "retrieval",
    "scorer_storage",
    "sequence_requests",
    "serving",
    "solvers",
    "storage",
    "training",
    "types",
]
