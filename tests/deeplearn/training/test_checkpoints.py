import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deeplearn.training import checkpoints
from tests.deeplearn.training.states import State, abstract, assert_same, make


def test_an_odd_tree_comes_back(tmp_path):
    with jax.enable_x64(False):
        state = {
            "half": jnp.arange(5, dtype=jnp.bfloat16),
            "flag": jnp.array([True, False]),
            "int4": jnp.arange(-3, 4, dtype=jnp.int4),
            "complex": jnp.array([1 + 2j], jnp.complex64),
            "scalar": jnp.float32(3.5),
            "python": 7,
            "numpy": np.arange(3, dtype=np.int32),
            "empty": jnp.zeros((0, 3)),
            "nothing": [None, optax.EmptyState(), optax.MaskedNode(), {}],
            "a.b/c d": (jnp.ones(2), [jnp.zeros((2, 2))]),
            "key": jax.random.key(0, impl="rbg"),
            "keys": jax.random.split(jax.random.key(1), (2, 3)),
        }
    metadata = {"name": "naïve", "nested": {"1": [1, 2.5, None, float("inf")]}}
    with checkpoints.open(tmp_path / "made" / "if need be") as manager:
        assert checkpoints.restore_latest(manager, state) is None
        assert checkpoints.save(manager, 12, state, metadata)
        restored = checkpoints.restore_latest(manager, state)
    assert (restored.step, restored.metadata) == (12, metadata)
    assert_same(jax.tree.map(jnp.asarray, state), restored.state)
    assert jax.random.uniform(restored.state["key"]) == jax.random.uniform(state["key"])


def test_what_is_restored_trains_on_as_if_never_saved(tmp_path):
    optimizer = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def train(state):
        rng = jax.random.fold_in(state.rng, state.step)
        grads = jax.tree.map(lambda p: p + jax.random.normal(rng, p.shape), state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state, state.rng)

    state = train(make(0)._replace(opt_state=optimizer.init(make(0).params)))
    with checkpoints.open(tmp_path) as manager:
        checkpoints.save(manager, 1, state, {})
        restored = checkpoints.restore_latest(manager, abstract(state)).state
    assert_same(train(train(state)), train(train(restored)))


@pytest.mark.parametrize("spec", [None, ("data",), ()])
def test_the_state_may_be_donated_at_once(tmp_path, spec):
    step = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x + 1, s), donate_argnums=0)
    state = {"x": jnp.arange(2.0**21).reshape(8, -1), "y": jnp.arange(8.0)}
    if spec is not None:
        state = jax.device_put(state, NamedSharding(jax.make_mesh((8,), "data"), PartitionSpec(*spec)))
    state = step(state)
    expected = jax.tree.map(np.array, state)
    template = abstract(state)
    with checkpoints.open(tmp_path) as manager:
        checkpoints.save(manager, 1, state, {})
        for _ in range(5):
            state = step(state)
        jax.block_until_ready(state)
        assert_same(expected, checkpoints.restore_latest(manager, template).state)


@pytest.mark.parametrize("mode, best", [("min", 2), ("max", 3)])
def test_keeps_the_newest_and_the_best(tmp_path, mode, best):
    metrics = [0.5, 0.4, 0.1, 0.9, None, float("nan"), 0.5, 0.5]
    with checkpoints.open(tmp_path, keep=2, mode=mode) as manager:
        for step, metric in enumerate(metrics):
            checkpoints.save(manager, step, make(step), {}, metric)
        assert checkpoints.restore_latest(manager, make(0)).step == 7
        assert checkpoints.restore_best(manager, make(0)).step == best
        assert_same(checkpoints.restore_best(manager, make(0)).state, make(best))
    with checkpoints.open(tmp_path, keep=2, mode=mode) as manager:
        assert checkpoints.steps(manager) == [best, 6, 7]
    assert len(list(tmp_path.iterdir())) == 3


def test_the_earliest_of_equals_is_the_best(tmp_path):
    with checkpoints.open(tmp_path, keep=1) as manager:
        for step in range(4):
            checkpoints.save(manager, step, make(step), {}, 0.5)
        assert checkpoints.restore_best(manager, make(0)).step == 0


def test_no_metric_no_best(pair):
    with checkpoints.open(pair) as manager:
        assert checkpoints.restore_best(manager, make(0)) is None


def test_saving_again_is_harmless(tmp_path):
    for _ in range(2):
        with checkpoints.open(tmp_path, keep=2) as manager:
            for step in (1, 2):
                assert checkpoints.save(manager, step, make(step), {}, metric=step)
    with checkpoints.open(tmp_path, keep=2) as manager:  # stopped at step 2 before its evaluation, or after: both occur
        checkpoints.save(manager, 2, make(2), {"evaluated": True}, metric=0)
        assert checkpoints.restore_latest(manager, make(0)).metadata == {"evaluated": True}
        assert checkpoints.restore_best(manager, make(0)).step == 2
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == ["000000001", "000000002"]


def test_of_one_step_the_evaluated_state_is_the_last(tmp_path):
    """Also if the other was written after it, by a run that went on from an earlier step and was stopped there."""
    with checkpoints.open(tmp_path) as manager:
        checkpoints.save(manager, 1, make(1), {"evaluated": True}, metric=0.5)
        checkpoints.save(manager, 1, make(1), {"evaluated": False})
        assert checkpoints.restore_latest(manager, make(0)).metadata == {"evaluated": True}


@pytest.mark.parametrize("where, saved", [("params", False), ("opt_state", True)])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_diverged_state_is_not_saved(tmp_path, where, saved, value):
    state = make(1)
    spoilt = jax.tree.map(lambda x: jnp.full_like(x, value) if x.ndim == 1 else x, getattr(state, where))  # the biases
    with checkpoints.open(tmp_path) as manager:
        assert checkpoints.save(manager, 1, state._replace(**{where: spoilt}), {}) is saved
        checkpoints.wait(manager)
        assert len(checkpoints.steps(manager)) == saved


def mesh_of(shape):
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return jax.sharding.Mesh(devices, ("data", "tensor")[: len(shape)])


PLACES = {
    "one device": ((1,), ()),
    "8 replicas": ((8,), ()),
    "8 shards": ((8,), ("data",)),
    "2 x 4 shards": ((2, 4), ("data", "tensor")),
}


@pytest.mark.parametrize("there", PLACES)
@pytest.mark.parametrize("here", PLACES)
def test_restores_onto_other_devices(tmp_path, there, here):
    def place(state, name):
        shape, spec = PLACES[name]
        specs = jax.tree.map(lambda x: PartitionSpec(*(spec if x.ndim == 2 else ())), state)
        return jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh_of(shape), s)), state, specs)

    state = {"params": jnp.arange(128.0).reshape(16, 8), "step": jnp.int32(3), "rng": jax.random.key(5)}
    with checkpoints.open(tmp_path) as manager:
        checkpoints.save(manager, 3, place(state, there), {})
        template = abstract(place(state, here))
        restored = checkpoints.restore_latest(manager, template).state
    assert_same(state, restored)
    assert jax.tree.all(jax.tree.map(lambda x, t: x.sharding.is_equivalent_to(t.sharding, x.ndim), restored, template))


@pytest.mark.parametrize("options", [{"keep": 0}, {"mode": "best"}])
def test_options_are_checked(tmp_path, options):
    with pytest.raises(ValueError):
        checkpoints.open(tmp_path, **options)


def test_killed_while_saving(tmp_path):
    """kill -9 in the middle of saving after saving: what is restored is whole, and as new as it can be."""
    program = f"""
        import jax, jax.numpy as jnp
        from deeplearn.training import checkpoints
        manager = checkpoints.open({str(tmp_path)!r}, keep=1)
        for step in range(1, 100_000):
            state = {{"params": jnp.full(100_000, step), "step": step}}
            checkpoints.save(manager, step, state, {{"s": step}})
            print(step, flush=True)
    """
    rng = np.random.default_rng(0)
    for _ in range(3):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        begun = [process.stdout.readline() for _ in range(3)]
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        begun = int((begun + process.communicate()[0].split())[-1])
        with checkpoints.open(tmp_path, keep=1) as manager:
            template = {"params": jnp.zeros(100_000, jnp.int32), "step": 0}
            restored = checkpoints.restore_latest(manager, template)
            assert restored.step >= begun - 1
            assert restored.metadata == {"s": restored.step}
            assert int(restored.state["step"]) == restored.step
            np.testing.assert_array_equal(restored.state["params"], restored.step)
        for path in tmp_path.iterdir():
            shutil.rmtree(path)
