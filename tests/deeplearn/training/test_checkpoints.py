import asyncio
import functools
import logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deeplearn.errors import UserError
from deeplearn.training import checkpoints


class State(NamedTuple):
    step: Any
    params: Any
    opt_state: Any
    rng: Any


def make(step, width=4):
    params = {"Dense_0": {"kernel": jax.random.normal(jax.random.key(step), (3, width)), "bias": jnp.ones(width)}}
    return State(jnp.int32(step), params, optax.adam(0.1).init(params), jax.random.key(step))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A directory with intact checkpoints of steps 1 and 2."""
    directory = tmp_path_factory.mktemp("pair")
    with checkpoints.open(directory) as manager:
        for step in (1, 2):
            assert checkpoints.save(manager, step, make(step), {"epoch": step / 2})
    return directory


def of_step(directory, step):
    (path,) = pathlib.Path(directory).glob(f"{step:09d}-*")
    return path


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


@pytest.mark.parametrize("where, saved", [("params", False), ("opt_state", True)])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_diverged_state_is_not_saved(tmp_path, where, saved, value):
    state = make(1)
    spoilt = jax.tree.map(lambda x: jnp.full_like(x, value) if x.ndim else x, getattr(state, where))
    with checkpoints.open(tmp_path) as manager:
        assert checkpoints.save(manager, 1, state._replace(**{where: spoilt}), {}) is saved
        checkpoints.wait(manager)
        assert len(checkpoints.steps(manager)) == saved


# Damage. Whatever is done to a file of the newest checkpoint, either the state comes back bit for bit, or the
# checkpoint is skipped with one line.


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


DAMAGE = {
    "first byte": functools.partial(flip, position=0),
    "middle byte": functools.partial(flip, position=0.5),
    "last byte": functools.partial(flip, position=1),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
    "rubbish": lambda path: path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size)),
}  # fmt: skip


def restore_after(damage, pair, directory, caplog):
    """The step that comes back after `damage(path of the newest)`, and how many warnings."""
    shutil.copytree(pair, directory)
    damage(of_step(directory, 2))
    caplog.clear()
    with checkpoints.open(directory) as manager:
        restored = checkpoints.restore_latest(manager, make(0))
    assert_same(restored.state, make(restored.step))
    assert restored.metadata == {"epoch": restored.step / 2}
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(messages) == 2 - restored.step and all("\n" not in message for message in messages)
    return restored.step


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_is_skipped_or_harmless(pair, tmp_path, caplog, damage):
    logging.getLogger("absl").propagate = True
    newest = of_step(pair, 2)
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    skipped = set()
    for number, file in enumerate(files):
        restored = restore_after(lambda path, f=file: DAMAGE[damage](path / f), pair, tmp_path / str(number), caplog)
        if restored == 1:
            skipped.add(file.parts[0])
    assert {"state", "record"} <= skipped


def test_every_byte_of_an_array_counts(tmp_path, caplog):
    """More than a kilobyte lies in its file as it is, where only the fingerprint guards it."""
    logging.getLogger("absl").propagate = True
    state = make(1, width=200)
    with checkpoints.open(tmp_path) as manager:
        checkpoints.save(manager, 1, state, {})
    kernel = np.asarray(state.params["Dense_0"]["kernel"]).tobytes()
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file() and kernel in path.read_bytes())
    content = file.read_bytes()
    for offset in range(0, len(kernel), 331):
        damaged = bytearray(content)
        damaged[content.index(kernel) + offset] ^= 1 << offset % 8
        file.write_bytes(damaged)
        caplog.clear()
        with checkpoints.open(tmp_path) as manager:
            assert checkpoints.restore_latest(manager, state) is None
        assert "params/Dense_0/kernel is not what was written" in caplog.text


@pytest.mark.parametrize(
    "leftover",
    [
        lambda path: shutil.copytree(path, path.with_name("000000003-01234567.orbax-checkpoint-tmp")),
        lambda path: shutil.copytree(path, path.with_name("000000003-01234567.deleted")),
        lambda path: path.with_name("notes").mkdir(),
        lambda path: path.with_name("3").write_text(""),
    ],
)
def test_what_is_no_checkpoint_is_no_trouble(pair, tmp_path, caplog, leftover):
    directory = tmp_path / "checkpoints"
    assert restore_after(leftover, pair, directory, caplog) == 2
    with checkpoints.open(directory) as manager:
        checkpoints.save(manager, 4, make(4), {})
        assert checkpoints.restore_latest(manager, make(0)).step == 4
    assert not [path for path in directory.iterdir() if path.suffix]


@pytest.mark.parametrize("kind", ["empty directory", "file"])
def test_what_only_looks_like_a_checkpoint_is_skipped(pair, tmp_path, caplog, kind):
    logging.getLogger("absl").propagate = True
    shutil.copytree(pair, tmp_path / "c")
    path = tmp_path / "c" / "000000009-01234567"
    path.mkdir() if kind == "empty directory" else path.write_text("")
    with checkpoints.open(tmp_path / "c") as manager:
        assert checkpoints.restore_latest(manager, make(0)).step == 2
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]


def test_all_damaged(pair, tmp_path):
    shutil.copytree(pair, tmp_path / "c")
    for path in (tmp_path / "c").iterdir():
        shutil.rmtree(path / "state")
    with checkpoints.open(tmp_path / "c") as manager:
        assert checkpoints.restore_latest(manager, make(0)) is None


def test_a_run_passes_a_damaged_step_again(pair, tmp_path):
    directory = tmp_path / "c"
    shutil.copytree(pair, directory)
    flip(of_step(directory, 2) / "record" / "record.json", 0.5)
    with checkpoints.open(directory) as manager:
        assert checkpoints.restore_latest(manager, make(0)).step == 1
        checkpoints.save(manager, 1, make(1), {})
        assert of_step(directory, 2).exists()  # it may yet be of use to someone
        checkpoints.save(manager, 2, make(2), {"epoch": 1})
        restored = checkpoints.restore_latest(manager, make(0))
        assert (restored.step, restored.metadata) == (2, {"epoch": 1})
        assert checkpoints.steps(manager) == [1, 2]


def test_the_best_damaged_gives_the_next_best(tmp_path):
    with checkpoints.open(tmp_path, keep=3) as manager:
        for step, metric in ((1, 0.3), (2, 0.1), (3, 0.2)):
            checkpoints.save(manager, step, make(step), {}, metric)
        checkpoints.wait(manager)
        shutil.rmtree(of_step(tmp_path, 2) / "state" / "d")
        assert checkpoints.restore_best(manager, make(0)).step == 3


@pytest.mark.parametrize(
    "other, words",
    [
        (make(0, width=5), "params/Dense_0/bias is float32[4] there and float32[5] here"),
        (make(0)._replace(opt_state=()), "opt_state/0/count is int32[] there and absent here"),
        (make(0)._replace(step=jnp.float32(0)), "step is int32[] there and float32[] here"),
        (make(0)._replace(rng=jax.random.key(0, impl="rbg")), "rng is key<fry>[] there and key<rbg>[] here"),
    ],
)
def test_another_model(pair, other, words):
    before = sorted(pair.rglob("*"))
    with checkpoints.open(pair) as manager, pytest.raises(UserError, match="another model") as error:
        checkpoints.restore_latest(manager, other)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert sorted(pair.rglob("*")) == before


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


# Failing to write.


def test_a_full_disk(tmp_path, capfd):
    """A limit on file sizes fails a write in the thread, as a full disk does; the words are the system's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"params": jax.random.normal(jax.random.key(0), (1 << 19,))}
    with checkpoints.open(tmp_path) as manager:
        checkpoints.save(manager, 1, jax.tree.map(jnp.ones_like, big), {})
        checkpoints.wait(manager)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            assert checkpoints.save(manager, 2, big, {})
            with pytest.raises(UserError) as error:
                checkpoints.wait(manager)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        message = str(error.value)
        assert "checkpoint of step 2" in message and "that of step 1 is kept" in message and "\n" not in message
        assert os.strerror(27) in message  # EFBIG
        assert "Traceback" not in capfd.readouterr().err
        assert [path.name[:9] for path in tmp_path.iterdir()] == ["000000001"]
        assert checkpoints.restore_latest(manager, big).step == 1
        assert checkpoints.save(manager, 2, big, {})
        assert checkpoints.restore_latest(manager, big).step == 2


def test_late_news_of_other_failed_writes_is_let_go(tmp_path, caplog):
    """The event loops that Orbax gets: closed, or never asked for a result, they neither raise nor log."""
    with checkpoints.open(tmp_path):
        loop = asyncio.new_event_loop()
        loop.call_exception_handler({"message": "Future exception was never retrieved"})
        assert not caplog.records
        loop.call_exception_handler({"message": "something else"})
        assert len(caplog.records) == 1
        loop.close()
        loop.call_soon_threadsafe(pytest.fail)


def test_a_directory_that_vanishes_is_made_again(tmp_path):
    with checkpoints.open(tmp_path / "a" / "b") as manager:
        checkpoints.save(manager, 1, make(1), {})
        checkpoints.wait(manager)
        shutil.rmtree(tmp_path / "a")
        checkpoints.save(manager, 2, make(2), {})
        assert checkpoints.restore_latest(manager, make(0)).step == 2


def test_a_directory_that_becomes_a_file(tmp_path):
    directory = tmp_path / "a"
    with checkpoints.open(directory) as manager:
        directory.rmdir()
        directory.write_text("")
        with pytest.raises(UserError, match="step 2 in .*: File exists; there is no earlier one"):
            checkpoints.save(manager, 2, make(2), {})
            checkpoints.wait(manager)


def test_a_file_where_the_directory_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot make .*--workdir"):
            checkpoints.open(path)


def test_a_programming_error_stays_one(tmp_path):
    with checkpoints.open(tmp_path) as manager, pytest.raises(ValueError, match="same path"):
        checkpoints.save(manager, 1, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, {})


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
