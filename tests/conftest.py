"""What holds for every test: strict promotion of dtypes and ranks. (pyproject.toml turns warnings into errors.)"""

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """float64, for the tests that compare with the NumPy loops of reference.py; all others run in float32."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def as_users_run():
    """Without the strict modes and shape annotations that only tests have: the errors are those a user sees."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
