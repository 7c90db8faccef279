"""Layers of networks made small, for tests in interpreters and of other slow ways to compute a convolution."""

from kernels.convolution.networks import NETWORKS, Layer


def small(layer: Layer) -> Layer:
    """The same kernel, stride, padding, dilation and kind of groups on fewer pixels and channels."""
    least = layer.dilation * (layer.kernel - 1) + 1
    size = min(layer.size, least + 4 * layer.strides + layer.size % layer.strides)
    depthwise = layer.groups == layer.channels > 1
    few = lambda n: n if n <= 16 else (16 if n % 128 == 0 else 18)  # noqa: E731
    channels, features = few(layer.channels), few(layer.features)
    return layer._replace(
        size=size, channels=channels, features=features, groups=channels if depthwise else layer.groups
    )


# Distinct ones among what is left of the layers.
LAYERS = {}
for _network, _layers in NETWORKS.items():
    for _layer in dict.fromkeys(map(small, _layers)):
        if _layer not in LAYERS.values():
            LAYERS[f"{_network} {_layer}"] = _layer


def convolved(layer: Layer, images: int = 2) -> tuple:
    """x, w, strides, padding, dilation, groups; of a transposed layer, those of the convolution that it transposes."""
    shape, kernel = layer.shapes(images)
    if layer.transposed:
        size = layer.strides * layer.size
        shape, kernel = (images, size, size, layer.features), (*kernel[:2], layer.features, layer.channels)
    return shape, kernel, *layer.options.values()
