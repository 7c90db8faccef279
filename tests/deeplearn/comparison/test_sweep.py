import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn

from deeplearn.comparison import lanes, programs
from deeplearn.comparison import sweep as sweeps
from deeplearn.config import base_config
from deeplearn.data.sources import Arrays, Records
from deeplearn.data.splits import Data
from deeplearn.errors import UserError
from deeplearn.experiment import wire
from deeplearn.tasks.classification import classification
from deeplearn.training import program


class Net(nn.Module):
    """No bias before batch norm: its gradient is nothing but rounding, of which Adam makes whole steps."""

    dropout: float = 0.1

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(
            nn.Dense(8, use_bias=False)(x.reshape(x.shape[0], -1))
        )
        return nn.Dense(3)(nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x)))


def data():
    def split(number, seed):
        random = np.random.RandomState(seed)
        labels = random.randint(0, 3, number).astype(np.int32)
        images = (random.standard_normal((number, 2, 2, 1)) + labels[:, None, None, None]).astype(np.float32)
        return Arrays({"image": images, "label": labels})

    return Data("blobs", split(96, 0), split(30, 1), split(30, 2), ("a", "b", "c"))


def build(**fields):
    config = base_config(**{"batch_size": 16, "epochs": 4.0, "mesh": "data:1", **fields})
    return wire(config, classification(Net(), (2, 2, 1), 3), data())


def runs(rates, seeds):
    return [({"learning_rate": rate}, seed) for rate in rates for seed in seeds]


@pytest.mark.parametrize("together", [True, False], ids=["side by side", "one after another"])
@pytest.mark.parametrize("name, accumulate", [("adam", 1), ("schedule_free_sgd", 4), ("lbfgs", 1)])
def test_a_lane_is_the_run_trained_alone(name, accumulate, together):
    """Equal up to the order of sums: a batched matrix product adds up in another order than a single one."""
    experiment = build(optimizer=name, accumulate=accumulate)
    result, _ = sweeps.sweep(name, experiment, runs([0.01, 0.03], [0, 1, 2]), together=together)
    lane = 4
    rate, seed = result.points[result.point[lane]]["learning_rate"], int(result.seeds[lane])
    assert (rate, seed) == (0.03, 1)
    alone = build(optimizer=name, learning_rate=rate, seed=seed, accumulate=accumulate)
    compiled = program.build(alone)
    state = compiled.init()
    for at, step in enumerate(result.steps):
        length = int(step - state.step)
        state, found = compiled.chunk(state, compiled.feed.data(int(state.step), length), length)
        values = compiled.evaluate(state, "validation")
        np.testing.assert_allclose(result.curves["loss"][lane, at], found["loss"], rtol=2e-3)
        np.testing.assert_allclose(result.curves["validation/loss"][lane, at], values["loss"], rtol=2e-3)


def test_lanes_do_not_depend_on_how_they_are_run():
    """Nor on who runs beside them; 8 devices, and 24 runs to divide."""
    points = [{"learning_rate": rate, "b1": b1} for rate in (0.01, 0.03) for b1 in (0.5, 0.8, 0.9)]
    wanted = [(point, seed) for point in points for seed in range(4)]
    results = [sweeps.sweep("adam", build(), wanted, together=how, test=True) for how in (True, False, None)]
    assert [plan.together for _, plan in results] == [True, False, True]  # a step so small goes side by side
    one, *others = (result for result, _ in results)
    assert one.point.tolist() == np.repeat(range(6), 4).tolist() and one.seeds.tolist() == [0, 1, 2, 3] * 6
    assert len(np.unique(one.curves["loss"][:, -1])) == 24 and one.test["accuracy"].shape == (24,)
    for other in others:
        for name, values in one.curves.items():
            np.testing.assert_allclose(other.curves[name], values, rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(other.test["loss"], one.test["loss"], rtol=2e-3)


def test_the_test_column_is_of_the_test_split():
    result, _ = sweeps.sweep("adam", build(), runs([0.01], [0, 1]), test=True)
    compiled = program.build(build(optimizer="adam", learning_rate=0.01))
    state = compiled.init()
    while int(state.step) < int(result.steps[-1]):
        length = int(result.steps[0])
        state, _ = compiled.chunk(state, compiled.feed.data(int(state.step), length), length)
    tested, validated = (float(compiled.evaluate(state, split)["loss"]) for split in ("test", "validation"))
    assert result.test["loss"][0] == pytest.approx(tested, rel=2e-3)
    assert result.curves["validation/loss"][0, -1] == pytest.approx(validated, rel=2e-3)
    assert abs(tested - validated) > 0.01


def test_shapes_and_axes():
    calls = []
    result, _ = sweeps.sweep("adam", build(), runs([0.001, 0.01], [0, 1, 2]), report=lambda *at: calls.append(at))
    assert result.examples.tolist() == [96, 192, 288, 384]
    assert result.steps.tolist() == [6, 12, 18, 24] and result.epochs.tolist() == [1, 2, 3, 4]
    assert result.curves["validation/accuracy"].shape == (6, 4) and "validation/confusion" not in result.curves
    assert (np.diff(result.seconds) > 0).all() and (result.compile_seconds > 0).all()
    assert [call[:3] for call in calls] == [(6, 24, 0), (12, 24, 0), (18, 24, 0), (24, 24, 6)]
    np.testing.assert_array_equal(calls[1][3]["validation/loss"], result.curves["validation/loss"][:, 1])
    assert not result.diverged.any()


def test_what_the_memory_does_not_bear_waits(monkeypatch):
    """Groups of the same program, the last filled up; the result is that of one group."""
    wanted = runs(np.geomspace(0.001, 0.1, 10).tolist(), [0, 1])
    whole, plan = sweeps.sweep("adam", build(), wanted, together=True)
    assert plan.lanes == 24  # 20, and what is missing to a multiple of 8 devices
    monkeypatch.setattr(lanes, "room", lambda: plan.bytes - 1)
    calls = []
    parts, smaller = sweeps.sweep("adam", build(), wanted, together=True, report=lambda *at: calls.append(at))
    assert smaller.lanes in (8, 16) and smaller.bytes < plan.bytes
    groups = -(-20 // smaller.lanes)
    assert calls[-1][:3] == (24 * groups, 24 * groups, 20) and calls[3][2] == smaller.lanes
    for name, values in whole.curves.items():
        np.testing.assert_allclose(parts.curves[name], values, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("lanes_asked, lanes_taken", [(1, 8), (8, 8), (9, 16), (32, 32)])
def test_lanes_that_the_user_chose(lanes_asked, lanes_taken):
    """Rounded up to a multiple of the 8 devices."""
    prepared = sweeps.prepare("adam", build(), runs([0.1], range(20)), lanes=lanes_asked)
    assert prepared.plan.lanes == lanes_taken


@pytest.mark.parametrize(
    "setting, said",
    [
        (lambda: jax.disable_jit(), "compare trains in compiled programs, which jax_disable_jit forbids; unset it"),
        (
            lambda: jax.default_prng_impl("rbg"),
            "by jax_default_prng_impl=rbg a run depends on those beside it; compare",
        ),
    ],
)
def test_settings_that_do_not_allow_a_sweep(setting, said):
    with setting(), pytest.raises(UserError, match=said):
        sweeps.prepare("adam", build(), runs([0.1], [0]))


@pytest.mark.parametrize("setting", [lambda: jax.enable_x64(True), lambda: jax.transfer_guard("disallow")])
def test_settings_that_change_nothing(setting):
    """Both refresh statistics, on eight devices; without dropout, which Flax draws in float64 under x64."""
    experiment = build(optimizer="schedule_free_sgd", epochs=2.0)
    task = classification(Net(dropout=0.0), (2, 2, 1), 3)
    wanted = runs([0.01, 0.03], [0, 1])
    expected, _ = sweeps.sweep("a", experiment._replace(task=task), wanted, test=True)
    with setting():
        found, _ = sweeps.sweep("a", experiment._replace(task=task), wanted, test=True)
    for name, values in {**expected.curves, **expected.test}.items():
        result = {**found.curves, **found.test}[name]
        assert result.dtype == values.dtype == np.float32
        np.testing.assert_allclose(result, values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("number", [0, -8])
def test_no_lanes(number):
    with pytest.raises(UserError, match=f"--lanes={number} is not a number of runs; give 1 or more"):
        sweeps.prepare("adam", build(), runs([0.1], [0]), lanes=number)


def test_slices_alone_have_the_bits_of_the_whole_sweep(monkeypatch):
    """Also the last one, which repetition fills up, and whose runs share its time among fewer."""
    prepared = sweeps.prepare("adam", build(), runs([0.01, 0.03], range(10)), lanes=8)
    with monkeypatch.context() as patch:  # a chunk takes a second, and there are four
        patch.setattr(sweeps, "time", SimpleNamespace(perf_counter=itertools.count(0.0).__next__))
        whole = list(sweeps.train(prepared, test=True))
    assert [len(part.seeds) for part in whole] == [8, 8, 4]
    assert [part.seconds[:, -1].tolist() for part in whole] == [[0.5] * 8, [0.5] * 8, [1.0] * 4]
    calls = []
    again = sweeps.prepare("adam", build(), runs([0.01, 0.03], range(10)), lanes=8)
    parts = list(sweeps.train(again, [2, 0], test=True, report=lambda *at: calls.append(at[:3])))
    assert calls[0] == (6, 48, 0) and calls[3:5] == [(24, 48, 4), (30, 48, 4)] and calls[-1] == (48, 48, 12)
    for part, expected in zip(parts, (whole[2], whole[0]), strict=True):
        np.testing.assert_array_equal(part.seeds, expected.seeds)
        for name, values in expected.curves.items():
            np.testing.assert_array_equal(part.curves[name], values)
        np.testing.assert_array_equal(part.test["loss"], expected.test["loss"])


@pytest.mark.parametrize(
    "stored, remedy",
    [
        (False, "; give --lanes=8, or free memory and run the same command again"),
        (True, "; give --lanes=8 with --accept=implementations, which changes the bits, or free memory"),
    ],
)
def test_memory_that_others_use_changes_no_plan(monkeypatch, stored, remedy):
    """What is free decides whether a sweep begins, not how many lanes it has."""
    wanted = runs([0.01, 0.03], range(12))
    _, plan = sweeps.sweep("adam", build(), wanted)
    monkeypatch.setattr(lanes, "free", lambda: plan.bytes // 2)
    with pytest.raises(
        UserError, match="24 runs in one program need .* MB of memory on a device, and .* MB are free"
    ) as raised:
        sweeps.prepare("adam", build(), wanted, stored=stored)
    assert remedy in str(raised.value) and "\n" not in str(raised.value)
    monkeypatch.setattr(lanes, "free", lambda: 0)
    with pytest.raises(UserError, match="are free; free memory and run the same command again"):
        sweeps.prepare("adam", build(), wanted, lanes=8)


@pytest.mark.parametrize("steps", [0, 7, 24])
def test_a_chunk_ends_at_an_evaluation(steps):
    """Its batches are those until then: beyond them JAX would take the last one again."""
    prepared = sweeps.prepare("adam", build(), runs([0.1], range(8)))
    states = prepared.begin(np.arange(8))
    with pytest.raises(UserError, match=f"a chunk has from 1 to 6 steps here, not {steps}"):
        prepared.chunk(states, 0, steps)


def test_seeds_of_32_bits():
    """Each its own, the largest too: none wraps to another's."""
    seeds = [0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1]
    result, _ = sweeps.sweep("adam", build(epochs=1.0), runs([0.03], seeds))
    assert result.seeds.tolist() == seeds and len(np.unique(result.curves["loss"])) == len(seeds)
    compiled = program.build(build(epochs=1.0, learning_rate=0.03, seed=2**32 - 1))
    _, alone = compiled.chunk(compiled.init(), compiled.feed.data(0, 6), 6)
    np.testing.assert_allclose(result.curves["loss"][-1, 0], alone["loss"], rtol=2e-3)


@pytest.mark.parametrize(
    "flops, platform, together",
    [(1.0, "cpu", True), (1e12, "cpu", False), (1.0, "gpu", True), (1e12, "gpu", True), (1e12, "tpu", True)],
)
def test_the_rule(flops, platform, together):
    assert lanes.side_by_side(flops, platform) == together


def test_flops_of_a_step():
    """Of one run: 16 examples through 4 x 8 and 8 x 3 weights, forward, and backward to the weights and activations."""
    flops = programs.step_flops(build(), ["learning_rate"])
    products = 2 * 16 * (2 * 4 * 8 + 3 * 8 * 3)
    assert products < flops < 10 * products


def test_a_diverged_lane_spoils_no_other():
    together, _ = sweeps.sweep("minibatch_sgd", build(), runs([0.1, 1e30], [0, 1]), together=False)
    apart, _ = sweeps.sweep("minibatch_sgd", build(), runs([0.1, 0.1], [0, 1]), together=False)
    assert together.diverged.tolist() == [False, False, True, True]
    np.testing.assert_array_equal(together.curves["loss"][:2], apart.curves["loss"][:2])


def test_all_optimizers_see_as_many_examples():
    full, _ = sweeps.sweep("gradient_descent", build(optimizer="gradient_descent"), runs([0.1], [0]))
    assert full.steps.tolist() == [1, 2, 3, 4] and full.epochs.tolist() == [1, 2, 3, 4]


def test_data_that_does_not_fit():
    experiment = build()
    streamed = Records("x", [], jax.ShapeDtypeStruct((2, 2, 1), np.uint8), ("a",), ())
    experiment = experiment._replace(data=experiment.data._replace(train=streamed))
    with pytest.raises(UserError, match="does not fit on the device"):
        sweeps.sweep("adam", experiment, runs([0.1], [0]))
