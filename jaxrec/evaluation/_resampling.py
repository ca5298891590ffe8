"""Means of random resamples: the bootstrap's, drawn with replacement, and those under random signs.

The loop goes over the users, and its body holds one number for every resample. So the resamples lie along the vector
registers, and the random words of a step are used where they are made: on a CPU this takes a quarter of the time of
`jax.random`, which there writes the words to memory between its rounds.

>>> import jax, numpy as np
>>> d = jnp.array([0.0, 1.0, 2.0, 9.0])
>>> means = bootstrap_means(d, jax.random.key(0), resamples=10_000)  # of mean 3 and deviation sqrt(12.5 / 4)
>>> round(float(means.mean()), 1), round(float(means.std()), 1)
(3.0, 1.8)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["below", "bootstrap_means", "sign_flip_means", "threefry"]

SIGNS = 64  # of one step: the bits of two words


@partial(jax.jit, static_argnames="resamples")
def bootstrap_means(d: Array, key: Array, *, resamples: int) -> Array:
    """[resamples], each the mean of n = len(d) numbers drawn from d [n] with replacement."""
    n, mean = len(d), jnp.mean(d)
    deviation = d - mean  # sums of deviations stay small: no digits are lost over many users

    def add_two(step: Array, total: Array, words: tuple[Array, Array]) -> Array:
        one, other = (deviation.at[below(n, word)].get(mode="promise_in_bounds") for word in words)
        return total + one + jnp.where(2 * step + 1 < n, other, 0)

    return mean + _sum_over_steps(add_two, -(-n // 2), key, resamples, d.dtype) / n


@partial(jax.jit, static_argnames="resamples")
def sign_flip_means(d: Array, key: Array, *, resamples: int) -> Array:
    """[resamples], each the mean of d [n] with random signs."""
    rows = jnp.pad(d, (0, -len(d) % SIGNS)).reshape(-1, SIGNS)

    def add_row(step: Array, total: Array, words: tuple[Array, Array]) -> Array:
        row = rows[step]
        for position in range(SIGNS):
            is_plus = (words[position % 2] >> (position // 2)) & 1
            total = total + jnp.where(is_plus == 1, row[position], -row[position])
        return total

    return _sum_over_steps(add_row, len(rows), key, resamples, d.dtype) / len(d)


def _sum_over_steps(
    add: Callable[[Array, Array, tuple[Array, Array]], Array], steps: int, key: Array, resamples: int, dtype: jnp.dtype
) -> Array:
    """add(step, total, two random words of each resample), from 0 over all steps: [resamples]."""
    resample, seed = jnp.arange(resamples, dtype=jnp.uint32), jax.random.key_data(key)

    def body(step: Array, total: Array) -> Array:
        return add(step, total, threefry(seed, resample, jnp.full_like(resample, step.astype(jnp.uint32))))

    return jax.lax.fori_loop(0, steps, body, jnp.zeros(resamples, dtype))


def threefry(seed: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds, the function of `jax.random`: two random words of a seed [2] and a counter.

    Source: Salmon, Moraes, Dror and Shaw 2011, Parallel random numbers: as easy as 1, 2, 3.
    """
    keys = seed[0], seed[1], seed[0] ^ seed[1] ^ jnp.uint32(0x1BD11BDA)
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for group in range(5):
        for distance in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x0 = x0 + x1
            x1 = ((x1 << distance) | (x1 >> (32 - distance))) ^ x0
        x0, x1 = x0 + keys[(group + 1) % 3], x1 + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x0, x1


def below(n: int, bits: Array) -> Array:
    """floor(bits n / 2^32), uint32: uniform below n up to n / 2^32, from half the random bits of jax.random.randint.

    The upper half of the product, from products of 16-bit halves that fit 32 bits.
    """
    high, low, n_high, n_low = bits >> 16, bits & 0xFFFF, n >> 16, n & 0xFFFF
    if n_high == 0:
        return (high * n_low + ((low * n_low) >> 16)) >> 16
    carry = ((low * n_low) >> 16) + ((high * n_low) & 0xFFFF) + ((low * n_high) & 0xFFFF)
    return high * n_high + ((high * n_low) >> 16) + ((low * n_high) >> 16) + (carry >> 16)
