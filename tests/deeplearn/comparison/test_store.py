import json
import pathlib
import zlib

import numpy as np
import pytest

from deeplearn.comparison import checked, plans, store
from deeplearn.comparison.sweep import Sweep
from deeplearn.errors import UserError

POINTS = ({"learning_rate": 0.1, "b1": 0.5}, {"learning_rate": 0.2, "b1": 0.9})
RUNS = [(point, seed) for point in POINTS for seed in (0, 7)]
NAME = "adam(b2=0.9)"


def make():
    rng = np.random.default_rng(0)
    curve = rng.random((4, 3)).astype(np.float32)
    curve[2, 1:] = np.nan
    return Sweep(
        optimizer=NAME,
        points=POINTS,
        point=np.array([0, 0, 1, 1]),
        seeds=np.array([0, 7, 0, 7]),
        steps=np.array([5, 10, 12]),
        examples=np.array([80, 160, 192]),
        epochs=np.array([1.0, 2.0, 2.4]),
        seconds=rng.random((4, 3)),
        curves={"loss": curve, "validation/loss": curve + 1},
        test={"accuracy": rng.random(4)},
        compile_seconds=rng.random(4),
    )


def test_what_is_written_is_read_to_the_bit(tmp_path):
    sweep = make()
    store.write(tmp_path, "tune", sweep)
    found = store.read(tmp_path, NAME, "tune", RUNS)
    assert found.points == POINTS
    for name in ("point", "seeds", "steps", "examples", "epochs", "seconds", "compile_seconds"):
        np.testing.assert_array_equal(getattr(found, name), getattr(sweep, name))
    for name, values in sweep.curves.items():
        np.testing.assert_array_equal(found.curves[name], values)
    np.testing.assert_array_equal(found.test["accuracy"], sweep.test["accuracy"])
    assert found.diverged.tolist() == [False, False, True, False]


def test_runs_come_back_in_the_order_asked_for(tmp_path):
    store.write(tmp_path, "tune", make())
    found = store.read(tmp_path, NAME, "tune", RUNS[::-1])
    assert (
        found.points == POINTS[::-1] and found.point.tolist() == [0, 0, 1, 1] and found.seeds.tolist() == [7, 0, 7, 0]
    )
    np.testing.assert_array_equal(found.seconds, make().seconds[::-1])


def test_what_is_missing(tmp_path):
    """A run is another with another optimizer, setting, seed or phase."""
    assert store.missing(tmp_path, NAME, "tune", RUNS) == RUNS
    store.write(tmp_path, "tune", make())
    more = [*RUNS, (POINTS[0], 8), ({"learning_rate": 0.1, "b1": 0.6}, 0)]
    assert store.missing(tmp_path, NAME, "tune", more) == more[-2:]
    assert store.missing(tmp_path, NAME, "final", RUNS) == RUNS
    assert store.missing(tmp_path, "adam(b2=0.8)", "tune", RUNS) == RUNS


def write_content(file, content):
    """A record with a right checksum, whatever is in it."""
    file.write_text(json.dumps({"run": content, "checksum": checked.checksum(content)}))


def change(**fields):
    """Changes a stored record's content, and gives it a right checksum."""

    def damage(file):
        content = json.loads(file.read_text())["run"]
        write_content(file, {**content, **fields})

    return damage


def rewrite(text):
    return lambda file: file.write_text(text(file.read_text()))


@pytest.mark.parametrize(
    "damage",
    {
        "cut": rewrite(lambda text: text[: len(text) // 2]),
        "changed": rewrite(lambda text: text.replace("0.1", "0.3", 1)),
        "empty": rewrite(lambda text: ""),
        "a list": rewrite(lambda text: "[]"),
        "an object": rewrite(lambda text: "{}"),
        "null": rewrite(lambda text: "null"),
        "nested": rewrite(lambda text: "[" * 100_000),
        "no checksum": rewrite(lambda text: json.dumps({"run": 1})),
        "a checksum of another type": rewrite(lambda text: json.dumps({"run": 1, "checksum": [1]})),
        "true for a checksum": rewrite(lambda text: json.dumps({"run": 1, "checksum": True})),
        "not UTF-8": lambda file: file.write_bytes(b"\xff\xfe" + file.read_bytes()),
        "a run that is null": lambda file: write_content(file, None),
        "a run without fields": lambda file: write_content(file, {}),
        "no steps": change(steps=[]),
        "steps that are texts": change(steps=["5", "10", "12"]),
        "steps beyond 64 bits": change(steps=[5, 10, 2**63]),
        "fewer seconds than steps": change(seconds=[1.0]),
        "a nested curve": change(curves={"loss": [[1.0]] * 3, "validation/loss": [1.0] * 3}),
        "a short curve": change(curves={"loss": [1.0], "validation/loss": [1.0] * 3}),
        "no loss": change(curves={"validation/loss": [1.0] * 3}),
        "curves in a list": change(curves=[1.0, 2.0, 3.0]),
        "a test metric that is a list": change(test={"accuracy": [0.5]}),
        "a text for compile_seconds": change(compile_seconds="1"),
        "no point": change(hyperparameters=[0.1]),
        "an identity that is a number": change(identity=7),
        "a plan that is a text": change(plan="side by side"),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_damaged_record_is_named_and_costs_no_other(tmp_path, damage):
    store.write(tmp_path, "tune", make())
    file = store.path(tmp_path, NAME, "tune", RUNS[1])
    damage[1](file)
    with pytest.raises(UserError, match=f"{file.name} is damaged; delete it") as raised:
        store.read(tmp_path, NAME, "tune", RUNS)
    assert "\n" not in str(raised.value)
    file.unlink()
    assert store.missing(tmp_path, NAME, "tune", RUNS) == [RUNS[1]]
    store.read(tmp_path, NAME, "tune", RUNS[2:])


@pytest.mark.parametrize(
    "fields, other",
    [
        ({"optimizer": "momentum"}, "'momentum' with {'learning_rate': 0.1, 'b1': 0.5} and seed 7 ('tune')"),
        ({"hyperparameters": {"learning_rate": 0.2}}, f"{NAME!r} with {{'learning_rate': 0.2}} and seed 7 ('tune')"),
        ({"seed": 8}, f"{NAME!r} with {{'learning_rate': 0.1, 'b1': 0.5}} and seed 8 ('tune')"),
        ({"phase": "final"}, f"{NAME!r} with {{'learning_rate': 0.1, 'b1': 0.5}} and seed 7 ('final')"),
        ({"optimizer": "x\ny" * 100}, "'x\\ny"),
    ],
)
def test_a_record_under_the_name_of_another(tmp_path, fields, other):
    store.write(tmp_path, "tune", make())
    file = store.path(tmp_path, NAME, "tune", RUNS[1])
    change(**fields)(file)
    with pytest.raises(UserError) as raised:
        store.read(tmp_path, NAME, "tune", RUNS)
    line = str(raised.value)
    assert line.startswith(f"{file} holds the run of {other}") and "\n" not in line and len(line) < 700
    assert f"not of {NAME!r} with {{'learning_rate': 0.1, 'b1': 0.5}} and seed 7 ('tune'); put the right" in line


@pytest.mark.parametrize(
    "identity, accepted, refused",
    [
        ("abc", None, False),
        ("abc", {"abc"}, False),
        ("abc", ["def", "abc", None], False),
        ("abc", {"def", None}, True),
        ("abc", (), True),
        (None, {"abc", None}, False),
        (None, {"abc"}, True),
    ],
)
def test_identities(tmp_path, identity, accepted, refused):
    store.write(tmp_path, "tune", make(), identity=identity)
    if not refused:
        assert store.read(tmp_path, NAME, "tune", RUNS, accepted).optimizer == NAME
        return
    with pytest.raises(UserError, match=f"has the identity {identity}, which is not this study's: .*another --workdir"):
        store.read(tmp_path, NAME, "tune", RUNS, accepted)


def test_a_record_of_before_identities_and_plans(tmp_path):
    """Its checksum is a CRC-32."""
    store.write(tmp_path, "tune", make())
    for run in RUNS:
        file = store.path(tmp_path, NAME, "tune", run)
        content = json.loads(file.read_text())["run"]
        content = {key: value for key, value in content.items() if key not in ("identity", "plan")}
        old = zlib.crc32(json.dumps(content, sort_keys=True).encode())
        file.write_text(json.dumps({"run": content, "checksum": old}))
    found = store.read(tmp_path, NAME, "tune", RUNS, {None})
    np.testing.assert_array_equal(found.curves["loss"], make().curves["loss"])
    file.write_text(json.dumps({"run": content, "checksum": old + 1}))
    with pytest.raises(UserError, match="is damaged"):
        store.read(tmp_path, NAME, "tune", RUNS)


@pytest.mark.parametrize(
    "fields, what",
    [
        ({"steps": [5, 10, 13]}, "steps"),
        ({"curves": {"loss": [1.0] * 3, "validation/loss": [1.0] * 3, "validation/accuracy": [1.0] * 3}}, "curves"),
        ({"test": {}}, "test metrics"),
    ],
)
def test_records_that_cannot_stand_in_one_table(tmp_path, fields, what):
    store.write(tmp_path, "tune", make())
    file = store.path(tmp_path, NAME, "tune", RUNS[2])
    change(**fields)(file)
    first = store.path(tmp_path, NAME, "tune", RUNS[0])
    with pytest.raises(UserError, match=f"{file.name} has other {what} than {first.name}: ") as raised:
        store.read(tmp_path, NAME, "tune", RUNS)
    assert "\n" not in str(raised.value)


def test_a_record_with_fewer_evaluations(tmp_path):
    store.write(tmp_path, "tune", make())
    file = store.path(tmp_path, NAME, "tune", RUNS[2])
    content = json.loads(file.read_text())["run"]
    curves = {name: values[:2] for name, values in content["curves"].items()}
    change(**{name: content[name][:2] for name in ("steps", "examples", "epochs", "seconds")}, curves=curves)(file)
    with pytest.raises(UserError, match="has other steps than"):
        store.read(tmp_path, NAME, "tune", RUNS)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_record_that_cannot_be_read_now_may_be_intact(tmp_path, monkeypatch, error):
    """No advice to delete it."""
    store.write(tmp_path, "tune", make())

    def fail(file):
        raise error

    monkeypatch.setattr(pathlib.Path, "read_bytes", fail)
    with pytest.raises(UserError, match=f"cannot read .*: {error.strerror}; put that right and run the same") as raised:
        store.read(tmp_path, NAME, "tune", RUNS)
    assert "delete" not in str(raised.value) and "damaged" not in str(raised.value)
    monkeypatch.setattr(pathlib.Path, "exists", fail)
    with pytest.raises(UserError, match=f"cannot read .*: {error.strerror}"):
        store.missing(tmp_path, NAME, "tune", RUNS)


def test_a_record_that_exists_stays(tmp_path):
    store.write(tmp_path, "tune", make())
    store.write(tmp_path, "tune", make()._replace(compile_seconds=np.zeros(4)), identity="new")
    assert (store.read(tmp_path, NAME, "tune", RUNS, {None}).compile_seconds > 0).all()


def test_a_record_keeps_its_plan(tmp_path):
    entry = plans.Entry(True, 2, 1, tuple(RUNS))
    store.write(tmp_path, "tune", make(), identity="abc", entry=entry)
    record = store.records(tmp_path, NAME, "tune", RUNS)[3]
    assert record["identity"] == "abc"
    digest = plans.digest(entry, NAME, "tune")
    assert record["plan"] == {"together": True, "lanes": 2, "devices": 1, "position": 3, "digest": digest}


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        store.write(tmp_path / "file", "tune", make())
