"""Pytrees of arrays in tests: converted to one dtype, and compared."""

import jax
import jax.numpy as jnp
import numpy as np


def as_dtype(tree, dtype):
    """The tree as JAX arrays, every floating-point leaf in one dtype."""

    def convert(leaf):
        floating = jnp.issubdtype(np.asarray(leaf).dtype, jnp.floating)
        return jnp.asarray(leaf, dtype) if floating else jnp.asarray(leaf)

    return jax.tree.map(convert, tree)


def assert_trees_close(got, expected, rtol=1e-10, atol=1e-10):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for leaf, expected_leaf in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, expected_leaf, rtol=rtol, atol=atol)
