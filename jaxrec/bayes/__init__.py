"""Bayesian matrix factorization: a Gibbs sampler, priors with side information, ordinal ratings, new users."""

from jaxrec.bayes import new_user, ordinal, side_information
from jaxrec.bayes._gibbs import GibbsResult, gibbs
from jaxrec.bayes._gibbs_sweep import gibbs_sweep
from jaxrec.bayes.model import ChainState, Features, as_factors, init_chains
from jaxrec.bayes.posterior import Posterior, pool_chains
from jaxrec.bayes.row_posterior import TrainRatings
from jaxrec.bayes.side_information import Priors, basis

__all__ = [
    "ChainState",
    "Features",
    "GibbsResult",
    "Posterior",
    "Priors",
    "TrainRatings",
    "as_factors",
    "basis",
    "gibbs",
    "gibbs_sweep",
    "init_chains",
    "new_user",
    "ordinal",
    "pool_chains",
    "side_information",
]
