"""The models as PyTorch's users write them; PyTorch is imported nowhere else in the library.

Source: the examples and the performance tuning guide of PyTorch, https://pytorch.org/tutorials
"""

from functools import partial
from itertools import cycle
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from deeplearn.benchmark.cases import LEARNING_RATE, MOBILENET, Case, prepared
from deeplearn.benchmark.contender import Contender, Unavailable
from deeplearn.benchmark.machine import cores


class CNN(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )


class Recurrent(nn.Module):
    def __init__(self, cell, inputs: int, features: int):
        super().__init__()
        self.rnn = cell(inputs, features, batch_first=True)
        self.head = nn.Linear(features, 1)

    def forward(self, x):
        outputs, _ = self.rnn(x)  # (B, T, features)
        return self.head(outputs[:, -1])


class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 128, kernel_size=4, stride=4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 64, 128))
        # The exact GELU; Flax's is an approximation by tanh, which is slower here: each has its own default.
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(128, 4, 512, **options)
        self.layers = nn.TransformerEncoder(layer, 4, norm=nn.LayerNorm(128), enable_nested_tensor=False)
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)  # (B, 64, 128)
        return self.head(self.layers(x + self.positions).mean(dim=1))


class GPTLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(128, bias=False), nn.LayerNorm(128, bias=False)
        self.qkv, self.out = nn.Linear(128, 3 * 128, bias=False), nn.Linear(128, 128, bias=False)
        self.up, self.down = nn.Linear(128, 512, bias=False), nn.Linear(512, 128, bias=False)

    def forward(self, x):
        batch, time, width = x.shape
        heads = (part.view(batch, time, 4, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(width, dim=2))
        y = F.scaled_dot_product_attention(*heads, is_causal=True)  # (B, 4, T, 32)
        x = x + self.out(y.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """nanoGPT's model for a CPU; the logits' weights are the embeddings."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(65, 128), nn.Embedding(64, 128)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.layers, self.norm = nn.ModuleList(GPTLayer() for _ in range(4)), nn.LayerNorm(128, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions.weight[None, : tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.tokens.weight).transpose(1, 2)  # (B, 65, T), as cross_entropy has it


class ResidualBlock(nn.Module):
    """Where the shape changes, the shortcut skips pixels and pads channels with zeros (He et al. 2015)."""

    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.missing = stride, channels - inputs

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.missing:
            half = self.missing // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(y + x)


class ResNet20(nn.Sequential):
    def __init__(self):
        stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        stages = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        blocks = [
            ResidualBlock(inputs if i == 0 else channels, channels, stride if i == 0 else 1)
            for inputs, channels, stride in stages
            for i in range(3)
        ]
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class MobileNet(nn.Sequential):
    def __init__(self):
        def convolution(inputs, channels, kernel, stride=1, groups=1):
            layer = nn.Conv2d(inputs, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
            return [layer, nn.BatchNorm2d(channels), nn.ReLU()]

        layers, inputs = convolution(3, 32, 3, 2), 32
        for channels, stride in MOBILENET:
            layers += convolution(inputs, inputs, 3, stride, inputs) + convolution(inputs, channels, 1)
            inputs = channels
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


MODELS = {
    "cnn": CNN,
    "rnn": partial(Recurrent, nn.RNN, 1, 32),
    "lstm": partial(Recurrent, nn.LSTM, 256, 256),
    "transformer": VisionTransformer,
    "resnet": ResNet20,
    "mobilenet": MobileNet,
    "gpt": GPT,
}


class Variant(NamedTuple):
    """What its users try to make PyTorch quick on a CPU."""

    memory_format: torch.memory_format = torch.contiguous_format
    threads: int = cores()
    name: str = ""


LAYOUTS = (Variant(), Variant(memory_format=torch.channels_last, name="channels last"))
THREADS = (Variant(), Variant(threads=1, name="1 thread"))  # a tiny network is not worth a second one
VARIANTS = {"cnn": LAYOUTS, "resnet": LAYOUTS, "mobilenet": LAYOUTS, "rnn": THREADS}


def train(case: Case, variant: Variant, compiled: bool) -> Contender:
    """A training run of the case."""
    torch.manual_seed(0)
    model = MODELS[case.model]()
    parameters = sum(p.numel() for p in model.parameters())
    batches = [tuple(map(torch.from_numpy, batch)) for batch in prepared(case)]
    loss_function = F.mse_loss
    if batches[0][0].ndim == 4:  # images, which PyTorch has as (B, C, H, W)
        layout = {"memory_format": variant.memory_format}
        batches = [(x.permute(0, 3, 1, 2).contiguous(**layout), y.long()) for x, y in batches]
        model = model.to(**layout)
        loss_function = F.cross_entropy
    if not batches[0][0].is_floating_point():
        batches = [(x.long(), y.long()) for x, y in batches]
        loss_function = F.cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    batches = cycle(batches)
    if compiled:
        model = torch.compile(model)

    def run(steps):
        torch.set_num_threads(variant.threads)
        for _ in range(steps):
            x, y = next(batches)
            optimizer.zero_grad(set_to_none=True)
            loss = loss_function(model(x), y)
            loss.backward()
            optimizer.step()
        return loss.item()

    return Contender(run, parameters, variant.name)


def candidates(case: Case, compiled: bool = False) -> list[Contender]:
    """Eager PyTorch, in each variant that may be the quickest."""
    return [train(case, variant, compiled) for variant in VARIANTS.get(case.model, [Variant()])]


def compiled_candidates(case: Case) -> list[Contender]:
    """The same through torch.compile; Unavailable where that fails: it needs a C++ compiler."""
    try:
        contenders = candidates(case, compiled=True)
        for contender in contenders:
            contender.run(1)
    except Exception as error:  # whatever a compiler of another project raises
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise Unavailable(f"torch.compile: {reason}") from error
    return contenders
