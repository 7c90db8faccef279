import copy
import json

import jax
import pytest

from deeplearn import experiment, identity
from deeplearn.commands import runs
from deeplearn.data import fingerprint
from deeplearn.errors import UserError
from deeplearn.identity import source as sources
from deeplearn.identity import versions
from kernels import target

HERE = {
    "config": {"seed": 0, "shape": [2, 3], "nested": {"rate": 0.1}, "mesh": ""},
    "source": {"experiment": "a"},
    "data": {"name": "digits", "train": "x"},
    "versions": {"jax": "1"},
    "implementations": {"platform": "cpu"},
}


def changed(section, name, value):
    other = copy.deepcopy(HERE)
    other[section][name] = value
    return other


@pytest.mark.parametrize(
    "section, name, value, said",
    [
        ("config", "seed", 1, "config.seed is 0 there and 1 here"),
        ("config", "shape", [2, 4], r"config.shape is \[2, 3\] there and \[2, 4\] here"),
        ("config", "nested", {"rate": 0.2}, "config.nested.rate is 0.1 there and 0.2 here"),
        ("config", "new", 5, "config.new is absent there and 5 here"),
        ("source", "experiment", "b", "source.experiment is a there and b here"),
        ("source", "experiments/_gpt.py", "b", "source.experiments/_gpt.py is absent there"),
        ("data", "train", "y", "data.train is x there and y here"),
        ("versions", "jax", "2", "versions.jax is 1 there and 2 here"),
        ("implementations", "attention", "tpu", "implementations.attention is absent there and tpu here"),
    ],
)
def test_every_difference_is_named_or_accepted(section, name, value, said):
    other = changed(section, name, value)
    with pytest.raises(UserError, match=f"^runs/a was made with other {section}: {said}.*--accept={section}$") as error:
        identity.check("runs/a", HERE, other)
    assert "\n" not in str(error.value)
    assert len(identity.check("runs/a", HERE, other, [section])) == 1
    assert identity.digest(HERE) != identity.digest(other)


def test_all_of_them_in_one_line():
    other = changed("config", "seed", 1) | {"versions": {"jax": "2"}, "data": {"name": "digits", "train": "y"}}
    with pytest.raises(UserError) as error:
        identity.check("runs/a", HERE, other, ["data"])
    assert "other config, versions: config.seed is 0 there and 1 here, versions.jax is 1" in str(error.value)
    assert "--accept=data,config,versions" in str(error.value) and "data.train" not in str(error.value)
    with pytest.raises(UserError) as error:
        identity.check("runs/a", HERE, other, ["data"], acceptable=["data", "versions"])
    assert "--accept" not in str(error.value) and "(--config.seed=0)" in str(error.value)


def test_what_may_change():
    assert identity.check("runs/a", HERE, changed("config", "mesh", "data:2")) == []
    assert identity.check("runs/a", {"config": HERE["config"]}, HERE) == []  # an older directory's


def test_the_order_of_fields_is_no_part_of_the_digest():
    turned = {section: dict(reversed(fields.items())) for section, fields in reversed(HERE.items())}
    assert list(turned) != list(HERE) and identity.digest(turned) == identity.digest(HERE)


def test_the_kernels_are_those_for_the_devices():
    """Of which there may be fewer than there are here."""
    source = sources.collect(experiment.find("digits_mlp"))
    wired = experiment.load(source).build(experiment.configure(source, {"mesh": "data:8"}))
    with pytest.raises(UserError, match="mesh data:8 needs 8 devices, there are 2"):
        identity.identify(wired, source, jax.devices()[:2])


def test_unknown_sections():
    with pytest.raises(UserError, match="unknown part of the identity in --accept 'version'; did you mean versions"):
        identity.parse_accept(["data", "version"])


def test_of_an_experiment():
    """Complete, and the same each time; the mesh is not part of it."""
    source = sources.collect(experiment.find("digits_mlp"))

    def identify(**fields):
        config = experiment.configure(source, fields)
        return identity.identify(experiment.load(source).build(config), source)

    first = identify()
    assert list(first) == list(identity.SECTIONS) and "mesh" not in first["config"]
    assert first == identify() == identify(mesh="data:2")
    assert first["data"]["name"] == "digits" and len(first["data"]["train"]) > 20
    assert first["implementations"]["platform"] == "cpu"
    assert identity.differences(first, identify(seed=1)) == {"config": ["config.seed is 0 there and 1 here"]}


def test_the_kernels_that_compute():
    from deeplearn.data import blank

    def used(name, **fields):
        with blank.instead():
            wired = experiment.load(name).build(experiment.configure(name, {"mesh": "data:1", **fields}))
            return versions.kernels(wired)

    assert used("digits_mlp") == {}
    assert used("mnist_cnn") == {"convolution": "xla", "pooling": "xla"}
    assert set(used("shakespeare_gpt")) == {"attention"}


def test_recording_is_over_with_its_block():
    with target.recorded() as used:
        target.record("a", "b")
    target.record("c", "d")
    assert used == {("a", "b")}


def test_versions():
    found = versions.versions(["sklearn", "hypothesis", "jax"])
    assert {
        "python",
        "deeplearn",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "numpy",
        "ml_dtypes",
        "hypothesis",
        "sklearn",
    } == set(found)
    assert "unknown" not in found.values() and versions.code() in found["deeplearn"]


def test_the_code_that_computes(tmp_path, monkeypatch):
    """Every file that can change a number is in its digest, and those that only draw are not."""
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "deeplearn" / "identity" / "versions.py"))
    files = ("deeplearn/losses.py", "deeplearn/commands/train.py", "kernels/a/b.py", "kernels/results/a_cpu.json")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    before = versions.code()
    changes = {}
    for name in files:
        (tmp_path / name).write_text("2")
        changes[name] = versions.code() != before
        (tmp_path / name).write_text("1")
    assert changes == {name: name != "deeplearn/commands/train.py" for name in files}


def test_what_changes_while_a_study_trains(monkeypatch):
    """The data, or the library's own files."""
    source = sources.collect(experiment.find("digits_mlp"))
    config = experiment.load(source).get_config()
    data = fingerprint.fingerprint(runs.build(source, config).data)
    identified = {"data": data, "versions": versions.versions()}
    assert runs.build_again("digits_mlp in s", source, config, identified).config is config
    with pytest.raises(UserError, match="digits_mlp in s was made with other data: data.test is 3 examples there and"):
        runs.build_again("digits_mlp in s", source, config, {**identified, "data": {**data, "test": "3 examples"}})
    monkeypatch.setattr(versions, "code", lambda: "edited")
    with pytest.raises(UserError, match="other versions: versions.deeplearn is .* and 0.1.0, code edited here"):
        runs.build_again("digits_mlp in s", source, config, identified)


@pytest.mark.parametrize("name", versions.VARIABLES)
def test_variables_that_change_numbers_count(monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    before = versions.machine()
    monkeypatch.setenv(name, "1")
    assert versions.machine() == {**before, name: "1"}


CONTEXTS = {
    "default_matmul_precision": lambda: jax.default_matmul_precision("highest"),
    "enable_x64": lambda: jax.enable_x64(True),
    "default_prng_impl": lambda: jax.default_prng_impl("rbg"),
    "threefry_partitionable": lambda: jax.threefry_partitionable(False),
    "disable_jit": lambda: jax.disable_jit(),
    "numpy_dtype_promotion": lambda: jax.numpy_dtype_promotion("standard"),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_settings_of_jax_that_change_numbers_count(name):
    before = versions.machine()
    with CONTEXTS[name]():
        now = versions.machine()
    assert {key for key in before if before[key] != now[key]} == {name}


@pytest.mark.parametrize(
    "check", [lambda: jax.debug_nans(True), lambda: jax.debug_infs(True), lambda: jax.transfer_guard("disallow")]
)
def test_settings_of_jax_that_only_check_do_not(check):
    before = versions.machine()
    with check():
        assert versions.machine() == before


def test_every_setting_is_known_and_can_be_written():
    """A name that JAX does not know would be None for ever."""
    settings = {name: versions.machine()[name.removeprefix("jax_")] for name in versions.SETTINGS}
    assert {name for name, value in settings.items() if value is None} <= {"jax_default_matmul_precision"}
    assert json.loads(json.dumps(settings)) == settings


def test_flags_of_xla_count_but_not_the_number_of_devices(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3 --xla_cpu_enable_fast_math=true")
    assert versions.machine()["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=true"
