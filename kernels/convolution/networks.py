"""The convolutions of well-known networks: what tests, compilers and benchmarks go through."""

from typing import NamedTuple


class Layer(NamedTuple):
    """A convolution (transposed, if so) of square images (size, size, channels) with a square kernel."""

    size: int
    channels: int
    features: int
    kernel: int = 3
    strides: int = 1
    padding: str | int = "SAME"
    dilation: int = 1
    groups: int = 1
    transposed: bool = False

    def __str__(self):
        """As in '56² 64→128 3×3 /2'."""
        words = [f"{self.size}²", f"{self.channels}→{self.features}", f"{self.kernel}×{self.kernel}"]
        words += [f"/{self.strides}"] if self.strides > 1 else []
        words += [f"dilation {self.dilation}"] if self.dilation > 1 else []
        words += ["depthwise" if self.groups == self.channels else f"groups {self.groups}"] if self.groups > 1 else []
        words += ["transposed"] if self.transposed else []
        return " ".join(words)

    @property
    def options(self) -> dict:
        """The arguments of `kernels.convolution.convolution` besides the arrays."""
        return {name: getattr(self, name) for name in ("strides", "padding", "dilation", "groups")}

    def shapes(self, images: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of x (N, H, W, C) and w (kh, kw, C / groups, K)."""
        kernel = (self.kernel, self.kernel, self.channels // self.groups, self.features)
        return (images, self.size, self.size, self.channels), kernel


def depthwise(size: int, channels: int, **more) -> Layer:
    return Layer(size, channels, channels, groups=channels, **more)


def lenet5() -> list[Layer]:
    """LeCun et al. 1998, Gradient-based learning applied to document recognition, section II.B."""
    return [Layer(size, c, k, 5, padding="VALID") for size, c, k in ((32, 1, 6), (14, 6, 16), (5, 16, 120))]


def alexnet() -> list[Layer]:
    """Krizhevsky et al. 2012, ImageNet classification with deep convolutional neural networks, section 3.5."""
    return [
        Layer(224, 3, 96, 11, 4, padding=2),
        Layer(27, 96, 256, 5, groups=2),
        Layer(13, 256, 384),
        Layer(13, 384, 384, groups=2),
        Layer(13, 384, 256, groups=2),
    ]


def vgg16() -> list[Layer]:
    """Simonyan and Zisserman 2015, Very deep convolutional networks, table 1, column D."""
    widths = ((224, 3, 64), (224, 64, 64), (112, 64, 128), (112, 128, 128), (56, 128, 256), (56, 256, 256))
    return [Layer(*width) for width in (*widths, (28, 256, 512), (28, 512, 512), (14, 512, 512))]


def resnet18(size: int = 32) -> list[Layer]:
    """He et al. 2016, Deep residual learning, table 1, with the first layer for small images of section 4.2."""
    layers = [Layer(size, 3, 64), Layer(size, 64, 64)]
    for width in (128, 256, 512):
        layers += [Layer(size, width // 2, width, strides=2), Layer(size, width // 2, width, 1, 2)]
        size //= 2
        layers += [Layer(size, width, width)]
    return layers


def resnet50(size: int = 224) -> list[Layer]:
    """He et al. 2016, table 1, the stride in the 3x3 layers as everyone has it."""
    layers, inputs = [Layer(size, 3, 64, 7, 2, padding=3)], 64
    size //= 4
    for width in (64, 128, 256, 512):
        strides = 1 if width == 64 else 2
        layers += [Layer(size, inputs, width, 1), Layer(size, width, width, strides=strides)]
        layers += [Layer(size, inputs, 4 * width, 1, strides)] if strides > 1 else []  # else the one that follows
        size //= strides
        layers += [Layer(size, width, 4 * width, 1), Layer(size, 4 * width, width, 1), Layer(size, width, width)]
        inputs = 4 * width
    return list(dict.fromkeys(layers))


def mobilenet(size: int = 224) -> list[Layer]:
    """Howard et al. 2017, MobileNets, table 1."""
    layers, size = [Layer(size, 3, 32, strides=2)], size // 2
    blocks = ((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1))
    for channels, features, strides in (*blocks, (512, 1024, 2), (1024, 1024, 1)):
        layers += [depthwise(size, channels, strides=strides), Layer(size // strides, channels, features, 1)]
        size //= strides
    return layers


def unet() -> list[Layer]:
    """Ronneberger et al. 2015, U-Net, figure 1."""
    layers, size, inputs = [], 572, 1
    for width in (64, 128, 256, 512, 1024):
        layers += [Layer(size, inputs, width, padding="VALID"), Layer(size - 2, width, width, padding="VALID")]
        size, inputs = (size - 4) // 2, width
    size = 28
    for width in (512, 256, 128, 64):
        layers += [Layer(size, 2 * width, width, 2, 2, transposed=True)]
        layers += [Layer(2 * size, 2 * width, width, padding="VALID")]
        layers += [Layer(2 * size - 2, width, width, padding="VALID")]
        size = 2 * size - 4
    return [*layers, Layer(size, 64, 2, 1)]


def convnext() -> list[Layer]:
    """Liu et al. 2022, A ConvNet for the 2020s, table 9: the depthwise layers of ConvNeXt-T."""
    return [depthwise(size, width, kernel=7) for size, width in ((56, 96), (28, 192), (14, 384), (7, 768))]


NETWORKS = {
    "LeNet-5": lenet5(),
    "AlexNet": alexnet(),
    "VGG-16": vgg16(),
    "ResNet-50": resnet50(),
    "MobileNet": mobilenet(),
    "U-Net": unet(),
    "ConvNeXt": convnext(),
}
