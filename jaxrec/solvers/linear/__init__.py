"""Linear models on items: the scores of a user are a linear map of the user's history, in closed form.

One family: each fit is a function of the normalized item-item matrix G, applied to the user's row of interactions.

| function | scores of a history x |
| --- | --- |
| `ease` | x - P x / diag(P), with P = (G + l2)^-1 |
| `ridge` | (G + l2)^-1 G x |
| `low_pass` | a low-rank filter of G, and one product with G: GF-CF and its relatives |
| `turbo_cf` | a polynomial of G |
| `cheby_cf` | a Chebyshev polynomial of G, and an ideal low pass |
| `sparsify` | the largest weights of a dense fit |

All return `models.linear.LinearScorer`s, which `evaluation.evaluate` takes and whose `scores` take new users.

`leave_one_user_out` chooses l2 without a validation part, `spectrum` is shared by several filters, and `ease_weights`
and `ridge_weights` are the pure functions from `gram` to the weights, to vmap over l2 and to differentiate.

Sizes, with float32: the primal form holds n_items^2 numbers (gowalla, 41k items: 6.7 GB; ml-1m: 0.06 GB) and a strip of
rows, the dual n_users^2 (gowalla, 30k users: 3.6 GB), rank 512 about 4 * 512 (n_users + n_items) (gowalla: 0.6 GB). The
first two take n^3 multiplications, and a scorer of the low rank n_items * 512 for each user.

>>> from jaxrec import Ratings
>>> from jaxrec.evaluation import evaluate
>>> train = Ratings([0, 0, 1, 1, 2], [0, 1, 1, 2, 0], [1, 1, 1, 1, 1], n_users=3, n_items=3)
>>> test = Ratings([2], [1], [1.0], n_users=3, n_items=3)
>>> evaluate(ease(train, l2=0.5), train, test, k=1, metrics=["recall"]).mean
{'recall@1': 1.0}
"""

from jaxrec.solvers.linear._ease import ease, ridge
from jaxrec.solvers.linear._left_out import leave_one_user_out
from jaxrec.solvers.linear._low_pass import cheby_cf, low_pass, normalized, plateau, turbo_cf
from jaxrec.solvers.linear._matrices import gram
from jaxrec.solvers.linear._sparsify import sparsify
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
    "sparsify",
    "spectrum",
    "turbo_cf",
]
