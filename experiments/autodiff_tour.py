"""A tour of automatic differentiation, from the notes' (w x - 1)^2 to J(w, b, x). Every line runs as a test.

The notes let TensorFlow's tape record the steps of a cost and play them back. JAX has no tape: a cost is a function,
and its gradient is another function.

>>> import jax, jax.numpy as jnp
>>> def cost_j(w, x=1.0, y=1.0):
...     return (w * x - y) ** 2
>>> slope = jax.grad(cost_j)
>>> float(slope(3.0))  # 2 (w x - y) x = 2 (3 - 1)
4.0

Thirty steps of gradient descent with alpha = 0.01, as in the notes. Each step multiplies w - 1 by 1 - 2 alpha = 0.98:

>>> w = jnp.array(3.0)
>>> for _ in range(30):
...     w = w - 0.01 * slope(w)
>>> round(float(w), 4), round(1 + 2 * 0.98**30, 4)
(2.091, 2.091)

The same with an Optax optimizer. `training.fit` runs the loop and compiles the step:

>>> import optax
>>> from jaxrec.training import fit
>>> w, history = fit(lambda w, xy: cost_j(w, *xy), jnp.array(3.0), [(1.0, 1.0)], optimizer=optax.sgd(0.01),
...                  key=jax.random.key(0), epochs=30, progress=False)
>>> round(float(w), 4), float(history.loss[0])  # the cost before the first step, (3 - 1)^2
(2.091, 4.0)

J works the same way. The notes' table has items as rows. 0 is a rating; an unknown rating (?) may have any value, since
its `where` is False:

>>> from jaxrec import losses, models
>>> from jaxrec.types import Dense
>>> q = jnp.nan
>>> y = jnp.array([[5, 5, 0, 0], [5, q, q, 0], [q, 4, 0, q], [0, 0, 5, 4], [0, 0, 5, q]])
>>> films = Dense(value=y, where=~jnp.isnan(y))
>>> factors = models.init(4, 5, 2, key=jax.random.key(0), scale=1.0, item_bias=False)
>>> gradient = jax.grad(losses.cost)(factors, films, l2=0.1)
>>> gradient.w.shape, gradient.b.shape, gradient.x.shape
((4, 2), (4,), (5, 2))

dJ/db(j) is minus the sum of user j's residuals. For Alice, who rated four films:

>>> residual = films.value[:, 0] - (factors.x @ factors.w[0] + factors.b[0])
>>> bool(jnp.allclose(gradient.b[0], -jnp.sum(residual, where=films.where[:, 0]), atol=1e-5))
True

The same gradient in closed form, without autodiff:

>>> by_hand = losses.closed_form.gradient(factors, films, l2=0.1)
>>> bool(jnp.allclose(by_hand.w, gradient.w, atol=1e-5)), bool(jnp.allclose(by_hand.x, gradient.x, atol=1e-5))
(True, True)

The notes' full implementation: Adam, learning rate 0.1, 200 iterations:

>>> fitted, history = fit(lambda f, ratings: losses.cost(f, ratings, l2=0.1), factors, [films],
...                       optimizer=optax.adam(0.1), key=jax.random.key(0), epochs=200, progress=False)
>>> stars = models.predict_all(fitted)
>>> [round(float(s)) for s in stars[0]]  # Alice: romance, and no car chases; the third film is unrated
[5, 5, 4, 0, 0]
"""
