"""Every contender trains the same model: as many parameters, and its loss falls."""

from importlib.util import find_spec

import pytest

from deeplearn.benchmark.cases import CASES
from deeplearn.benchmark.contender import CONTENDERS, Entry, Unavailable, candidates

# PyTorch's recurrent cells have a second bias, as wide as their gates: cuDNN's habit, and of no effect.
SECOND_BIAS = {("torch", "rnn"): 32, ("torch", "lstm"): 4 * 256}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """PyTorch's threads wait for each other in a busy loop, which tests that run beside others pay dearly."""
    if find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def small(name):
    """The case with one small batch, again and again."""
    return CASES[name]._replace(batch_size=8, examples=8)


@pytest.fixture
def lenient():
    """Flax and Optax promote types and ranks, which our own tests forbid."""
    import jax

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize(
    "name", ["mnist_cnn_64", "sequence_rnn", "lstm", "cifar10_transformer", "resnet20", "mobilenet", "shakespeare_gpt"]
)
@pytest.mark.parametrize("peer", ["flax", "torch"])
def test_same_parameters_and_the_loss_falls(peer, name, lenient):
    pytest.importorskip(CONTENDERS[peer].package)
    case = small(name)
    wanted = parameters(case)
    for contender in candidates(peer, case):
        assert contender.parameters - SECOND_BIAS.get((peer, case.model), 0) == wanted
        first = contender.run(1)
        assert contender.run(4) < first


@pytest.mark.parametrize("name", ["mnist_cnn_64", "sequence_rnn"])
def test_ours_loss_falls(name):
    (contender,) = candidates("ours", small(name))
    first = contender.run(1)
    assert contender.run(4) < first


def parameters(case) -> int:
    """Of our model, none of them computed."""
    import jax

    from deeplearn.benchmark import ours

    params, _ = jax.eval_shape(ours.experiment(case).task.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(CONTENDERS, "torch", Entry("PyTorch", "no_such_package", "peers_torch"))
    with pytest.raises(Unavailable, match="not installed"):
        candidates("torch", CASES["sequence_rnn"])


def test_a_compiler_that_fails_is_a_reason(monkeypatch):
    torch = pytest.importorskip("torch")

    def fail(model):
        raise RuntimeError("no C++ compiler\nand a page of text")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(Unavailable, match="^torch.compile: no C.. compiler$"):
        candidates("compiled", small("sequence_rnn"))
