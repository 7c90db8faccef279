import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn.data import augment, datasets
from deeplearn.errors import UserError

RNG = jax.random.key(5)
IMAGES = np.random.RandomState(0).randint(1, 256, (64, 6, 7, 3)).astype(np.uint8)
BATCH = {"image": jnp.asarray(IMAGES), "label": jnp.arange(64, dtype=jnp.int32)}
AUGMENTATIONS = {
    "flip": augment.random_flip,
    "crop": augment.random_crop(padding=2),
    "both": augment.compose(augment.random_crop(padding=2), augment.random_flip),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_pure_functions_of_key_and_batch(name):
    augmentation = AUGMENTATIONS[name]
    out = augmentation(RNG, BATCH)
    assert out["image"].shape == IMAGES.shape and out["image"].dtype == jnp.uint8
    assert out["label"] is BATCH["label"]
    np.testing.assert_array_equal(BATCH["image"], IMAGES)
    np.testing.assert_array_equal(jax.jit(augmentation)(RNG, BATCH)["image"], out["image"])
    assert not (augmentation(jax.random.key(6), BATCH)["image"] == out["image"]).all()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_in_a_loop_and_over_runs(name):
    augmentation = AUGMENTATIONS[name]
    keys = jax.random.split(RNG, 3)
    expected = [augmentation(key, BATCH)["image"] for key in keys]
    mapped = jax.vmap(lambda key: augmentation(key, BATCH)["image"])(keys)
    _, scanned = jax.lax.scan(lambda carry, key: (carry, augmentation(key, BATCH)["image"]), None, keys)
    np.testing.assert_array_equal(mapped, np.stack(expected))
    np.testing.assert_array_equal(scanned, np.stack(expected))


def test_flip_mirrors_about_half():
    flipped = np.asarray(augment.random_flip(RNG, BATCH)["image"])
    mirrored = [np.array_equal(out, image[:, ::-1]) for out, image in zip(flipped, IMAGES, strict=True)]
    same = [np.array_equal(out, image) for out, image in zip(flipped, IMAGES, strict=True)]
    assert sum(mirrored) + sum(same) == 64 and 16 <= sum(mirrored) <= 48


def test_crop_reaches_every_place_and_no_other():
    padding = 2
    padded = np.pad(IMAGES, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    places = set()
    for step in range(8):
        cropped = augment.random_crop(padding)(jax.random.fold_in(RNG, step), BATCH)["image"]
        for image, out in zip(padded, np.asarray(cropped), strict=True):
            here = [
                (y, x)
                for y in range(2 * padding + 1)
                for x in range(2 * padding + 1)
                if np.array_equal(image[y : y + 6, x : x + 7], out)
            ]
            assert len(here) == 1
            places.update(here)
    assert len(places) == (2 * padding + 1) ** 2


def test_compose_draws_separately_for_each():
    out = augment.compose(augment.random_flip, augment.random_flip)(RNG, BATCH)
    by_hand = augment.random_flip(jax.random.fold_in(RNG, 0), BATCH)
    by_hand = augment.random_flip(jax.random.fold_in(RNG, 1), by_hand)
    np.testing.assert_array_equal(out["image"], by_hand["image"])
    assert not (out["image"] == BATCH["image"]).all()


@pytest.mark.parametrize(
    "function, expected",
    [
        (augment.scale(-1, 1), lambda x: 2 * x / 255 - 1),
        (augment.scale(0, 1), lambda x: x / 255),
        (
            augment.normalize(augment.CIFAR10_MEAN, augment.CIFAR10_STD),
            lambda x: (x / 255 - augment.CIFAR10_MEAN) / augment.CIFAR10_STD,
        ),
    ],
)
def test_pixels_equal_float64(function, expected):
    out = jax.jit(function)(BATCH)
    assert out["image"].dtype == jnp.float32
    np.testing.assert_allclose(out["image"], expected(IMAGES.astype(np.float64)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out["label"], BATCH["label"])


@pytest.mark.parametrize("dtype, most", [("uint8", 255), ("uint16", 65535), ("uint32", 2**32 - 1)])
@pytest.mark.parametrize(
    "function", [augment.scale(0.0, 1.0), augment.normalize((0.0,), (1.0,))], ids=["scale", "norm"]
)
def test_a_pixel_is_a_part_of_the_most_that_its_dtype_has(function, dtype, most):
    images = jnp.array([0, most // 5, most], dtype).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(function({"image": images})["image"].ravel(), [0, 0.2, 1], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_floating_pixels_count_as_they_are(dtype):
    """Those out of [0, 1], as of images that were divided by nothing or normalised already, are NaN."""
    pixels = [0.0, 0.25, 1.0, -0.5, 1.5, 255.0, float("inf"), float("nan")]
    found = augment.scale(-1.0, 1.0)({"image": jnp.array(pixels, dtype).reshape(1, 1, -1, 1)})["image"]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found.ravel(), [-1.0, -0.5, 1.0, *[np.nan] * 5])


@pytest.mark.parametrize("dtype", ["int8", "int32", "bool", "complex64"])
def test_pixels_without_a_range_are_refused(dtype):
    with pytest.raises(UserError, match=f"images are {dtype}; use uint8, uint16, or a floating dtype with pixels in"):
        augment.scale(0.0, 1.0)({"image": jnp.zeros((1, 2, 2, 1), dtype)})


def test_cifar10_constants():
    """Of red, green and blue, as the test below measures them where the data are."""
    assert augment.CIFAR10_MEAN == (0.4914, 0.4822, 0.4465)
    assert augment.CIFAR10_STD == (0.2470, 0.2435, 0.2616)


DATA = os.environ.get("TFDS_DATA_DIR", "")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir(os.path.join(DATA, "cifar10")), reason="CIFAR-10 is not in TFDS_DATA_DIR")
def test_cifar10_constants_are_the_training_set_s():
    opened = datasets._open("cifar10", next(datasets.Path(DATA, "cifar10").iterdir()))
    records = opened["train"]
    assert len(records) == 50_000
    count = total = square = 0
    for start in range(0, 50_000, 1000):
        pixels = records.__getitems__(range(start, start + 1000))["image"].reshape(-1, 3) / 255
        count, total, square = (
            count + len(pixels),
            total + pixels.sum(axis=0),
            square + (pixels**2).sum(axis=0),
        )
    mean = total / count
    np.testing.assert_allclose(mean, augment.CIFAR10_MEAN, atol=5.1e-5)
    np.testing.assert_allclose(np.sqrt(square / count - mean**2), augment.CIFAR10_STD, atol=5.1e-5)
