"""Trading time for memory."""

from collections.abc import Callable

import flax.linen as nn
import jax

from deeplearn.errors import unknown


def all_but_gathered(primitive, *_, **__) -> bool:
    """Whether a value is kept: whatever was not brought together from several devices."""
    return primitive.name != "sharding_constraint"


# What the forward pass keeps for the backward pass, which computes the rest anew.
POLICIES = {
    "none": all_but_gathered,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # what products with parameters give
    "full": jax.checkpoint_policies.nothing_saveable,
}


def block(module: type[nn.Module], policy: str) -> type[nn.Module]:
    """The class of a block that is called as `block(x, train)`, its activations kept by a policy of POLICIES (Chen et
    al. 2016, Training deep nets with sublinear memory cost).

    Give each block its name: Flax would name the two classes differently, and so their parameters. Raises UserError for
    a policy that there is not.

    >>> import jax.numpy as jnp
    >>> class Double(nn.Module):
    ...     def __call__(self, x, train):
    ...         return 2 * x
    >>> print(block(Double, "full")(name="double").apply({}, jnp.ones(1), False))
    [2.]
    """
    check(policy)
    return module if policy == "none" else nn.remat(module, static_argnums=(2,), policy=POLICIES[policy])


def scanned(body: Callable, policy: str) -> Callable:
    """The body of a scan over layers, its activations kept by a policy of POLICIES."""
    check(policy)
    # Within a loop nothing can be shared between the two passes, against which JAX would guard.
    return jax.checkpoint(body, policy=POLICIES[policy], prevent_cse=False)


def check(policy: str) -> None:
    """Raises UserError for a policy that there is not."""
    if policy not in POLICIES:
        raise unknown("remat", policy, POLICIES)
