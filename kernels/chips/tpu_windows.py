"""What is compiled for TPUs of convolution and pooling: layers of networks and odd ones, forward and backward."""

from collections.abc import Callable, Iterator

import jax

from kernels.convolution import tpu
from kernels.convolution.epilogue import Epilogue
from kernels.convolution.networks import Layer, alexnet, convnext, depthwise, mobilenet, resnet50
from kernels.convolution.windows import geometry
from kernels.pooling import tpu as pooling_tpu

TOPOLOGIES = ("v4", "v5e", "v5p", "v6e", "TPU7x")


def convolution() -> Iterator[tuple[str, str, Callable, tuple, tuple]]:
    """Name, chip, function, shapes and how they are divided: a layer, and both its gradients."""
    few = [Layer(56, 64, 64), Layer(14, 512, 512, strides=2), depthwise(14, 512)]
    for dtype in ("bfloat16", "float32"):
        for layer in few:
            for chip in TOPOLOGIES:
                yield f"{layer} epilogue {dtype}", chip, *_layer(layer, dtype, epilogue=True)
    for layer in dict.fromkeys([*resnet50(), *alexnet(), *mobilenet(), *convnext()]):
        yield f"{layer} bfloat16", "v5e", *_layer(layer, "bfloat16")


def _layer(layer: Layer, dtype: str, images: int = 32, epilogue: bool = False) -> tuple[Callable, tuple, tuple]:
    image, kernel = layer.shapes(images)
    window = geometry(image[1:3], kernel[:2], **layer.options)
    output = (images, *window.output(image[1:3], kernel[:2]), layer.features)

    def layer_and_gradients(x, w, dy):
        row = w[0, 0, 0]
        follow = Epilogue(row, row, row, dy, "gelu") if epilogue else Epilogue()
        dx, dw = tpu.input_gradient(window, dy, w, image[1:3]), tpu.weight_gradient(window, x, dy, kernel[:2])
        return tpu.forward(window, x, w, follow), dx, dw

    return layer_and_gradients, tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in (image, kernel, output)), ()


def pooling() -> Iterator[tuple[str, str, Callable, tuple, tuple]]:
    """As `convolution`: a pooling and its gradient."""
    for dtype in ("bfloat16", "float32"):
        for chip in TOPOLOGIES:
            yield f"max 3x3 /2 {dtype}", chip, *_pooling("max", (32, 112, 112, 64), 3, 2, "SAME", dtype)
            yield f"mean 2x2 {dtype}", chip, *_pooling("mean", (32, 28, 28, 256), 2, 2, "VALID", dtype)
    yield "max 2x2", "v5e", *_pooling("max", (32, 112, 112, 128), 2, 2, "VALID", "bfloat16")
    yield "max odd", "v5e", *_pooling("max", (3, 35, 37, 300), 3, 1, 1, "bfloat16")
    yield "mean 7x7", "v5e", *_pooling("mean", (32, 7, 7, 2048), 7, 1, "VALID", "bfloat16")


def _pooling(kind: str, image: tuple, size: int, strides: int, padding, dtype: str) -> tuple[Callable, tuple, tuple]:
    window = (size, size)
    resolved = geometry(image[1:3], window, strides, padding)
    output = (image[0], *resolved.output(image[1:3], window), image[3])

    def pooled_and_gradient(x, dy):
        if kind == "mean":
            y = pooling_tpu.sum_pool(x, window, resolved, 1 / size**2)
            return y, pooling_tpu.sum_pool_gradient(dy, image[1:3], window, resolved, 1 / size**2)
        y = pooling_tpu.max_pool(x, window, resolved)
        return y, pooling_tpu.max_pool_gradient(x, y, dy, window, resolved)

    return pooled_and_gradient, (jax.ShapeDtypeStruct(image, dtype), jax.ShapeDtypeStruct(output, dtype)), ()
