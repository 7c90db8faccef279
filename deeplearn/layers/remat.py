"""Trading time for memory."""

import flax.linen as nn


def block(module: type[nn.Module], remat: bool) -> type[nn.Module]:
    """The class of a block that is called as `block(x, train)`; with `remat` one whose activations are computed anew in
    the backward pass (Chen et al. 2016, Training deep nets with sublinear memory cost).

    Give each block its name: Flax would name the two classes differently, and so their parameters.

    >>> import jax, jax.numpy as jnp
    >>> class Double(nn.Module):
    ...     def __call__(self, x, train):
    ...         return 2 * x
    >>> print(block(Double, remat=True)(name="double").apply({}, jnp.ones(1), False))
    [2.]
    """
    return nn.remat(module, static_argnums=(2,)) if remat else module
