"""Augmentation and pixel preprocessing on the device: pure functions of a batch with images (B, H, W, C).

An augmentation is `(rng, batch) -> batch`; it keeps shape and dtype, so uint8 images stay uint8. A
preprocessing is `batch -> batch`, to float32.

A pixel counts as a part of the most that its dtype has: 255 for uint8, 65,535 for uint16. Pixels of a floating dtype
count as they are and must be in [0, 1]; the others become NaN, which ends a run. Other dtypes have no such range and
are refused.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from deeplearn.errors import UserError

Batch = dict[str, Any]

# Mean and standard deviation of each channel over the 50,000 training images, as parts of 255.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


def compose(*augmentations: Callable[[jax.Array, Batch], Batch]) -> Callable[[jax.Array, Batch], Batch]:
    """The augmentations one after another; the i-th draws from `fold_in(rng, i)`."""

    def composed(rng: jax.Array, batch: Batch) -> Batch:
        for i, augmentation in enumerate(augmentations):
            batch = augmentation(jax.random.fold_in(rng, i), batch)
        return batch

    return composed


def random_flip(rng: jax.Array, batch: Batch) -> Batch:
    """Mirror each image left to right with probability 1/2.

    >>> batch = {"image": jnp.arange(8).reshape(4, 1, 2, 1)}
    >>> random_flip(jax.random.key(0), batch)["image"].shape
    (4, 1, 2, 1)
    """
    images = batch["image"]
    flip = jax.random.bernoulli(rng, jnp.float32(0.5), (len(images), 1, 1, 1))
    return {**batch, "image": jnp.where(flip, images[:, :, ::-1], images)}


def random_crop(padding: int = 4) -> Callable[[jax.Array, Batch], Batch]:
    """Pad each image with `padding` black pixels on every side, and cut its own size out at a random place.

    He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016, section 4.2.

    >>> batch = {"image": jnp.ones((2, 8, 8, 3), jnp.uint8)}
    >>> random_crop(padding=2)(jax.random.key(0), batch)["image"].shape
    (2, 8, 8, 3)
    """

    def crop(rng: jax.Array, batch: Batch) -> Batch:
        images = batch["image"]
        sides = (0, 0), (padding, padding), (padding, padding), (0, 0)
        padded = jnp.pad(images, sides)  # (B, H + 2p, W + 2p, C)
        corners = jax.random.randint(rng, (len(images), 2), 0, 2 * padding + 1, jnp.int32)

        def cut(image, corner):
            return jax.lax.dynamic_slice(image, (*corner, jnp.int32(0)), images.shape[1:])

        return {**batch, "image": jax.vmap(cut)(padded, corners)}  # (B, H, W, C)

    return crop


def normalize(mean, std) -> Callable[[Batch], Batch]:
    """(pixel - mean) / std, channel by channel, to float32; pixels are parts of the most that their dtype has.

    >>> batch = {"image": jnp.full((1, 2, 2, 3), 255, jnp.uint8)}
    >>> normalize((0.5, 0.5, 0.0), (0.5, 0.25, 1.0))(batch)["image"][0, 0, 0].tolist()
    [1.0, 2.0, 1.0]
    """
    mean, std = (jnp.asarray(value, jnp.float32).reshape(1, 1, 1, -1) for value in (mean, std))
    return _pixels(lambda images, most: (images / most - mean) / std)


def scale(low: float, high: float) -> Callable[[Batch], Batch]:
    """low + (high - low) pixel, to float32; pixels are parts of the most that their dtype has.

    >>> scale(-1, 1)({"image": jnp.array([[[[0], [255]]]], jnp.uint8)})["image"].ravel().tolist()
    [-1.0, 1.0]
    >>> scale(-1, 1)({"image": jnp.array([[[[0.5], [1.5]]]])})["image"].ravel().tolist()
    [0.0, nan]
    """
    return _pixels(lambda images, most: low + (high - low) / most * images)


def _pixels(function: Callable[[jax.Array, float], jax.Array]) -> Callable[[Batch], Batch]:
    """The preprocessing `function(images in float32, the most that a pixel can be)`; UserError for a dtype."""

    def preprocess(batch: Batch) -> Batch:
        images = batch["image"]
        if jnp.issubdtype(images.dtype, jnp.unsignedinteger):
            most, images = float(jnp.iinfo(images.dtype).max), images.astype(jnp.float32)
        elif jnp.issubdtype(images.dtype, jnp.floating):
            most, images = 1.0, images.astype(jnp.float32)
            images = jnp.where((images >= 0) & (images <= 1), images, jnp.nan)
        else:
            raise UserError(f"images are {images.dtype}; use uint8, uint16, or a floating dtype with pixels in [0, 1]")
        return {**batch, "image": function(images, most)}

    return preprocess
