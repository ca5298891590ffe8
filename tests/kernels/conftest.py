"""Fixtures for the tests of Pallas kernels."""

import pytest


@pytest.fixture
def no_races(capfd):
    """Fails the test if the TPU interpreter finds a race: it only prints them.

    The interpreter is reset afterwards, because an exception leaves its simulated memory behind.
    """
    from jax.experimental.pallas import tpu

    yield
    tpu.reset_tpu_interpret_mode_state()
    assert "RACE" not in capfd.readouterr().out
