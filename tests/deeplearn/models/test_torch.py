"""The models against PyTorch's layers, with the same weights: outputs, gradients and running averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn.models.cnn import CNN
from deeplearn.models.mobilenet import BLOCKS, MobileNet
from deeplearn.models.resnet import ResNet
from deeplearn.models.rnn import LanguageRNN
from deeplearn.models.transformer import VisionTransformer

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


class TorchCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)])
        self.hidden, self.head = nn.Linear(2 * 2 * 6, 8), nn.Linear(8, 10)

    def forward(self, x):
        for convolution in self.convolutions:
            x = F.max_pool2d(F.relu(convolution(x)), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)  # as images lie here: (B, H, W, C)
        return self.head(F.relu(self.hidden(x)))

    def sources(self):
        for i, convolution in enumerate(self.convolutions):
            yield f"block_{i}/Conv_0", convolution
        yield from (("hidden", self.hidden), ("head", self.head))


class TorchBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.stride, self.missing = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.missing // 2, self.missing // 2))
        return F.relu(x + y)


class TorchResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList([TorchBlock(4, 4, 1), TorchBlock(4, 8, 2), TorchBlock(8, 16, 2)])
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))

    def sources(self):
        yield from (("stem", self.stem), ("stem_norm", self.norm), ("head", self.head))
        for i, block in enumerate(self.blocks):
            for j, (convolution, norm) in enumerate(((block.conv1, block.norm1), (block.conv2, block.norm2))):
                yield f"block_{i}_0/Conv_{j}", convolution
                yield f"block_{i}_0/BatchNorm_{j}", norm


class TorchMobileNet(nn.Module):
    def __init__(self):
        super().__init__()

        def pair(inputs, channels, *sides, **more):
            return nn.Conv2d(inputs, channels, *sides, bias=False, **more), nn.BatchNorm2d(channels)

        self.layers, inputs = nn.ModuleList(pair(3, 8, 3, 2, 1)), 8
        for channels, stride in BLOCKS:
            channels = max(8, channels // 16)
            self.layers.extend(pair(inputs, inputs, 3, stride, 1, groups=inputs))
            self.layers.extend(pair(inputs, channels, 1))
            inputs = channels
        self.head = nn.Linear(inputs, 10)

    def forward(self, x):
        for convolution, norm in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = F.relu(norm(convolution(x)))
        return self.head(x.mean((2, 3)))

    def sources(self):
        yield from (("stem", self.layers[0]), ("stem_norm", self.layers[1]), ("head", self.head))
        for i, layer in enumerate(self.layers[2:]):
            kind = "BatchNorm" if i % 2 else "Conv"
            yield f"block_{i // 4}/{kind}_{i // 2 % 2}", layer


class TorchTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.positions = nn.Linear(48, 16), nn.Parameter(torch.randn(4, 16))
        layer = dict(activation=lambda x: F.gelu(x, approximate="tanh"), layer_norm_eps=1e-6)
        self.layer = nn.TransformerEncoderLayer(16, 2, 64, 0.0, batch_first=True, norm_first=True, **layer)
        self.norm, self.head = nn.LayerNorm(16, eps=1e-6), nn.Linear(16, 10)

    def forward(self, x):
        batch = len(x)
        x = x.permute(0, 2, 3, 1).reshape(batch, 2, 4, 2, 4, 3).transpose(2, 3).reshape(batch, 4, 48)
        return self.head(self.norm(self.layer(self.embedding(x) + self.positions)).mean(1))

    def sources(self):
        yield from (("embedding", self.embedding), ("norm", self.norm), ("head", self.head))
        yield from (("block_0/LayerNorm_0", self.layer.norm1), ("block_0/LayerNorm_1", self.layer.norm2))
        yield from (("block_0/Dense_0", self.layer.linear1), ("block_0/Dense_1", self.layer.linear2))
        yield "block_0/SelfAttention_0/out", self.layer.self_attn.out_proj
        yield "block_0/SelfAttention_0/qkv", self.layer.self_attn
        yield "positions", self.positions


def leaves(source):
    """(name, tensor, gradient) of a layer's parameters, as arrays in Flax's layouts."""
    if isinstance(source, nn.Parameter):
        yield "", source
    elif isinstance(source, nn.MultiheadAttention):
        yield from (("kernel", source.in_proj_weight.T), ("bias", source.in_proj_bias))
    else:
        for name, tensor in source.named_parameters():
            kind = {"bias": "bias", "weight": "scale" if tensor.ndim == 1 else "kernel"}[name]
            yield kind, tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor


def tree(model, read):
    """The parameters of the PyTorch model, or their gradients, as a tree of ours."""
    params = {}
    for path, source in model.sources():
        for name, tensor in leaves(source):
            *parents, last = [part for part in (*path.split("/"), name) if part]
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = jnp.array(read(tensor))
    return params


CASES = {
    "cnn": (CNN((4, 6), hidden=8), TorchCNN, (8, 8, 1)),
    "resnet": (ResNet(depth=8, width=4), TorchResNet, (8, 8, 3)),
    "mobilenet": (MobileNet(width=0.0625, classes=10), TorchMobileNet, (64, 64, 3)),
    "transformer": (VisionTransformer(4, width=16, depth=1, heads=2), TorchTransformer, (8, 8, 3)),
}


def close(ours, theirs):
    """Entries are sums of terms that may be as large as the largest of them."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * max(1.0, float(jnp.abs(theirs).max())))


@pytest.mark.parametrize("model, peer, shape", CASES.values(), ids=CASES)
def test_it_is_pytorchs_network(model, peer, shape):
    torch.manual_seed(0)
    peer = peer()
    x, labels = np.random.default_rng(0).normal(size=(6, *shape)).astype(np.float32), np.arange(6) % 3
    params = tree(peer, lambda tensor: tensor.detach().numpy())
    state = dict(jax.eval_shape(model.init, jax.random.key(0), jnp.array(x)))
    state.pop("params")
    state = {"batch_stats": _initial(state["batch_stats"])} if state else {}

    def loss(params):
        logits, new = model.apply({"params": params, **state}, jnp.array(x), train=True, mutable=list(state))
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean(), (logits, new)

    gradients, (logits, state) = jax.jit(jax.grad(loss, has_aux=True))(params)

    images = torch.tensor(x).permute(0, 3, 1, 2)
    expected = peer(images)
    F.cross_entropy(expected, torch.tensor(labels)).backward()
    np.testing.assert_allclose(logits, expected.detach(), atol=1e-4)

    grads = {id(p): p.grad for p in peer.parameters()}
    for parameter in peer.parameters():
        parameter.data = grads[id(parameter)]
    expected_gradients = tree(peer, lambda tensor: tensor.detach().numpy())
    jax.tree.map(close, gradients, expected_gradients)

    for path, source in peer.sources():
        if isinstance(source, nn.BatchNorm2d):
            node = state["batch_stats"]
            for part in path.split("/"):
                node = node[part]
            np.testing.assert_allclose(node["mean"], source.running_mean, atol=1e-5)


def _initial(shapes):
    return jax.tree.map_with_path(
        lambda path, leaf: (jnp.ones if path[-1].key == "var" else jnp.zeros)(leaf.shape), shapes
    )


class TorchLanguage(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 8), nn.Linear(8, 10)
        self.lstm = nn.LSTM(8, 8, num_layers=2, batch_first=True)

    def forward(self, tokens):
        return self.head(self.lstm(self.embedding(tokens))[0])

    def tree(self, read):
        """Its parameters in our layout, with `read` of each; two biases there add up to one here."""
        layers = (
            [read(getattr(self.lstm, f"{name}_l{i}")) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            for i in range(2)
        )
        blocks = {
            f"block_{i}": {"Recurrent_0": {"input_kernel": w.T, "recurrent_kernel": u.T, "bias": (b, b_too)}}
            for i, (w, u, b, b_too) in enumerate(layers)
        }
        head = {"kernel": read(self.head.weight).T, "bias": read(self.head.bias)}
        return {"embedding": {"embedding": read(self.embedding.weight)}, **blocks, "head": head}


def test_the_language_model_is_pytorchs():
    torch.manual_seed(0)
    peer, model = TorchLanguage(), LanguageRNN(10, 8, layers=2)
    tokens = np.random.default_rng(0).integers(0, 10, (4, 7))
    is_pair = lambda x: isinstance(x, tuple)  # noqa: E731
    values = peer.tree(lambda tensor: tensor.detach().numpy())
    params = jax.tree.map(lambda x: jnp.array(sum(x) if is_pair(x) else x), values, is_leaf=is_pair)

    def loss(params):
        logits = model.apply({"params": params}, jnp.array(tokens[:, :-1], jnp.int32), train=True)
        targets = jnp.array(tokens[:, 1:, None], jnp.int32)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets, axis=-1).mean(), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    expected = peer(torch.tensor(tokens[:, :-1]))
    F.cross_entropy(expected.flatten(0, 1), torch.tensor(tokens[:, 1:]).flatten()).backward()
    np.testing.assert_allclose(logits, expected.detach(), atol=1e-5)
    expected = peer.tree(lambda tensor: tensor.grad.numpy())
    expected = jax.tree.map(lambda x: x[0] if is_pair(x) else x, expected, is_leaf=is_pair)  # each is the sum's
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradients, expected)
