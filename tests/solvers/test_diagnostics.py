"""Split R-hat and effective sample size: against the formulas in loops, and against processes whose answer is known."""

import numpy as np
import pytest

from jaxrec.solvers import diagnostics


def autoregressive(phi, n=4000, chains=4, seed=0):
    rng = np.random.default_rng(seed)
    x = np.zeros((n, chains))
    x[0] = rng.normal(size=chains) / np.sqrt(1 - phi**2)
    for t in range(1, n):
        x[t] = phi * x[t - 1] + rng.normal(size=chains)
    return x


def test_r_hat_by_hand():
    draws = np.array([[1.0, 4.0], [3.0, 2.0], [2.0, 8.0], [5.0, 6.0]])
    halves = [[1.0, 3.0], [4.0, 2.0], [2.0, 5.0], [8.0, 6.0]]  # the first halves of both chains, then the second
    means, variances = [2.0, 3.0, 3.5, 7.0], [2.0, 2.0, 4.5, 2.0]
    within, between = sum(variances) / 4, np.var(means, ddof=1)
    assert sorted(diagnostics._halves(draws).T.tolist()) == sorted(halves)
    expected = np.sqrt((within / 2 + between) / within)
    assert diagnostics._plain_r_hat(diagnostics._halves(draws)) == pytest.approx(expected)


def test_r_hat_knows_chains_that_have_not_met():
    same = autoregressive(0.0)
    assert diagnostics.r_hat(same) < 1.01
    assert diagnostics.r_hat(same + np.array([0, 0, 0, 0.5])) > 1.02
    assert diagnostics.r_hat(same * np.array([1, 1, 1, 2])) > 1.02  # of one center: by their distances from it
    assert diagnostics.r_hat(same + np.linspace(0, 3, len(same))[:, None]) > 1.1  # each moves on: by its halves
    assert diagnostics.r_hat(np.exp(5 * same)) == pytest.approx(diagnostics.r_hat(same), abs=0.02)  # by ranks


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, -0.3])
def test_ess_of_an_autoregressive_process(phi):
    n = 4000 * 4
    assert diagnostics.ess(autoregressive(phi)) == pytest.approx(n * (1 - phi) / (1 + phi), rel=0.15)


def test_constants_and_bad_input():
    assert diagnostics.r_hat(np.ones((10, 2))) == 1
    assert np.isfinite(diagnostics.ess(np.ones((10, 2))))
    for wrong in (np.ones((3, 2)), np.ones(10), np.full((10, 2), np.nan)):
        with pytest.raises(ValueError, match=r"draws: expected finite numbers \[sweeps >= 4, chains\]"):
            diagnostics.r_hat(wrong)
