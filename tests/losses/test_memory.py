"""What the values of many pairs take beside their arguments: never the rows that are gathered for each of them."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxrec import data, losses, models, solvers
from jaxrec.solvers import _als
from jaxrec.types import Ratings

N_USERS, N_ITEMS, N, D = 2_000, 1_000, 200_000, 64
GATHERED = 4 * N * D  # bytes of one table's rows


def drawn_ratings():
    rng = np.random.default_rng(0)
    pairs = np.sort(rng.choice(N_USERS * N_ITEMS, N, replace=False))
    return Ratings(*np.divmod(pairs, N_ITEMS), rng.normal(size=N).astype(np.float32), N_USERS, N_ITEMS)


LAYOUTS = {"observed": data.observed, "linked": data.linked, "rows": partial(data.rows, side="user")}
VALUES = {
    **{f"cost of {name}": (partial(losses.cost, l2=1.0), layout) for name, layout in LAYOUTS.items()},
    "closed_form.cost": (partial(losses.closed_form.cost, l2=1.0), data.linked),
    "predict": (lambda factors, pairs: models.predict(factors, pairs.user, pairs.item), data.observed),
    "the start of als": (partial(_als._cost, l2=1.0, l2_bias=0.0), partial(data.rows, side="user")),
    "implicit_cost": (partial(solvers.implicit_cost, l2=1.0), partial(data.rows, side="user")),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_of_all_pairs_hold_no_rows_of_each_pair(name):
    function, layout = VALUES[name]
    factors = models.init(N_USERS, N_ITEMS, D, key=jax.random.key(0), mu=3.5)
    compiled = jax.jit(function).lower(factors, layout(drawn_ratings())).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < GATHERED / 5
