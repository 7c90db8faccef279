import jax, jax.numpy as jnp, optax
def cross_entropy(logits, labels, label_smoothing=0.0):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
def squared_error(p, t):
    return jnp.square(p - t)
