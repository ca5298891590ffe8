"""Linear models on items: the scores of a user are a linear map of the user's history, in closed form.

One family: each fit is a function of the normalized item-item matrix G, applied to the user's row of interactions.

| function | scores of a history x |
| --- | --- |
| `ease` | x - P x / diag(P), with P = (G + l2)^-1 |
| `ridge` | (G + l2)^-1 G x |
| `low_pass` | a low-rank filter of G, and one product with G: GF-CF and its relatives |
| `turbo_cf` | a polynomial of G |
| `cheby_cf` | a Chebyshev polynomial of G, and an ideal low pass |

All return `models.linear.LinearScorer`s, which `evaluation.evaluate` takes and whose `scores` take new users.
"""

from jaxrec.solvers.linear._ease import ease, ridge
from jaxrec.solvers.linear._left_out import leave_one_user_out
from jaxrec.solvers.linear._low_pass import cheby_cf, low_pass, normalized, plateau, turbo_cf
from jaxrec.solvers.linear._matrices import gram
from jaxrec.solvers.linear._spectrum import Spectrum, spectrum
from jaxrec.solvers.linear._weights import ease_weights, ridge_weights

__all__ = [
    "Spectrum",
    "cheby_cf",
    "ease",
    "ease_weights",
    "gram",
    "leave_one_user_out",
    "low_pass",
    "normalized",
    "plateau",
    "ridge",
    "ridge_weights",
    "spectrum",
    "turbo_cf",
]
