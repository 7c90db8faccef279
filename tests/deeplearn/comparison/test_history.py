import json
import sys

import pytest

from deeplearn.comparison import history, study
from deeplearn.errors import UserError

SMALL = {"small": {"experiment": "digits_mlp", "epochs": 2.0}}
FIELDS = {"workloads": SMALL, "optimizers": ["adam", "lion"], "points": 4}
SPACES = {"adam": {"b1": (0.5, 0.6)}}


def make(**fields):
    return study.make(**{**FIELDS, **fields})


def identities(made, **changes):
    """What each workload was made with; `changes` replace a section of all."""
    rest = {"source": {"experiment": "s"}, "data": {"train": "d"}, "versions": {}, "implementations": {}, **changes}

    def config(workload):
        fields = json.loads(json.dumps(workload.config.to_dict()))
        return {name: value for name, value in fields.items() if name != "mesh"}

    return {workload.name: {"config": config(workload), **rest} for workload in made.workloads}


def start(workdir, made, accept=(), **changes):
    extended = history.extended(workdir, history.read(workdir), made, identities(made, **changes), accept)
    history.write(workdir, extended)
    return extended


def test_what_is_written_is_read(tmp_path):
    made = make(points=4, spaces=SPACES, seeds=2, together=True, lanes=3)
    written = start(tmp_path, made)
    read = history.existing(tmp_path)
    assert read == written
    again = study.make(**read.study)
    assert study.as_json(again) == study.as_json(made)
    assert study.search(again, "adam", 0) == study.search(made, "adam", 0)


def test_the_stored_study_executes_no_experiment(tmp_path, monkeypatch):
    made = make(points=4, spaces=SPACES)
    start(tmp_path, made)
    monkeypatch.setattr("deeplearn.experiment.load", lambda path: 1 / 0)
    declared = history.declared(history.read(tmp_path))
    assert declared.workloads[0].config.to_dict() == {**made.workloads[0].config.to_dict(), "features": [128, 128]}
    assert declared.optimizers == ["adam", "lion"] and study.search(declared, "adam", 0) == study.search(
        made, "adam", 0
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizers": ["adam", "lion", "muon"]},
        {"optimizers": ["lion"]},
        {"points": 8, "seeds": 5, "reruns": 9},
        {"workloads": {**SMALL, "sequence_rnn": {}}},
        {"optimizers": ["adam", "muon"], "spaces": {"muon": {"beta": (0.5, 0.9)}}},
        {"together": False, "lanes": 2},
    ],
)
def test_a_study_may_grow(tmp_path, fields):
    start(tmp_path, make(points=4))
    start(tmp_path, make(**{"points": 4, **fields}))


CHANGES = [
    (
        {"workloads": {"small": {"experiment": "digits_mlp", "epochs": 3.0}}},
        {},
        "config.epochs is 2.0 there and 3.0 here",
    ),
    ({"workloads": {"small": {"experiment": "sequence_rnn"}}}, {}, "config.dataset is digits there and absent here"),
    ({}, {"source": {"experiment": "t"}}, "source.experiment is s there and t here"),
    ({}, {"data": {"train": "e"}}, "data.train is d there and e here"),
    ({}, {"versions": {"jax": "2"}}, "versions.jax is absent there and 2 here"),
    ({}, {"implementations": {"devices": 2}}, "implementations.devices is absent there and 2 here"),
    ({"spaces": {"adam": {"b1": (0.1, 0.9)}}}, {}, r"spaces.adam.b1 is \[0.5, 0.6\] there and \[0.1, 0.9\] here"),
    ({"spaces": {}}, {}, "spaces.adam.b1 is .* there and absent here"),
    ({"spaces": {**SPACES, "lion": {"b1": (0.5, 0.6)}}}, {}, "spaces.lion.b1 is absent there"),
]


@pytest.mark.parametrize("between", [False, True], ids=["at once", "after another study"])
@pytest.mark.parametrize("fields, sections, said", CHANGES)
def test_a_study_may_not_change(tmp_path, fields, sections, said, between):
    """Nor after another workload and another optimizer were compared in the same directory."""
    start(tmp_path, make(spaces=SPACES))
    if between:
        start(tmp_path, make(workloads={"other": {"experiment": "sequence_rnn"}}, optimizers=["muon"]))
    before = (tmp_path / "study.json").read_bytes()
    with pytest.raises(UserError, match=said) as raised:
        start(tmp_path, make(**{"spaces": SPACES, **fields}), **sections)
    assert "\n" not in str(raised.value) and "another --workdir" in str(raised.value)
    assert (tmp_path / "study.json").read_bytes() == before


def test_accepted_differences_are_recorded(tmp_path):
    first = start(tmp_path, make())
    second = start(tmp_path, make(), accept=["versions"], versions={"jax": "2"})
    kept = second.identities["small"]
    assert {entry["id"] for entry in kept} == history.ids(second, "small") and len(kept) == 2
    assert kept[0] == first.identities["small"][0] and kept[1]["accepted"] == [
        "versions.jax is absent there and 2 here"
    ]
    assert start(tmp_path, make(), versions={"jax": "2"}).identities["small"] == kept
    assert len(history.ids(history.read(tmp_path), "small")) == 2
    with pytest.raises(UserError, match="versions.jax is 2 there"):
        start(tmp_path, make())


def test_of_an_old_study_the_configs_are_compared(tmp_path):
    """And its runs are known; those of a workload that it no longer names are not."""
    (tmp_path / "study.json").write_text(json.dumps(study.as_json(make(spaces=SPACES))))
    assert history.ids(history.read(tmp_path), "small") == {None}
    with pytest.raises(UserError, match="config.epochs is 2.0 there and 3.0"):
        start(tmp_path, make(spaces=SPACES, workloads={"small": {"experiment": "digits_mlp", "epochs": 3.0}}))
    with pytest.raises(UserError, match="spaces.adam.b1"):
        start(tmp_path, make())
    extended = start(tmp_path, make(spaces=SPACES, workloads={**SMALL, "new": {"experiment": "digits_mlp"}}))
    assert None in history.ids(extended, "small") and None not in history.ids(extended, "new")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[]", b"7", b"{}", b"\xff{}", b'{"workloads": 1}', b'{"workloads": {}}',
        b'{"workloads": {"a": 1}}', b'{"workloads": {"a": {}}}',
        b'{"workloads": {"a": {"experiment": "x"}}, "spaces": 1}',
        b'{"workloads": {"a": {"experiment": "x"}}, "identities": []}',
        b'{"workloads": {"a": {"experiment": "x"}}, "identities": {"a": 1}}',
        b'{"workloads": {"a": {"experiment": "x"}}, "identities": {"a": []}}',
        b'{"workloads": {"a": {"experiment": "x"}}, "identities": {"a": [{"config": 1}]}}',
        b'{"workloads": {"a": {"experiment": "x"}}, "optimizers": 1}',
        b'{"workloads": {"a": {"experiment": "x"}}, "searched": []}',
        b'{"workloads": {"a": {"experiment": "x"}}, "searched": {"adam": 1}}',
    ],
)  # fmt: skip
def test_a_damaged_study_is_one_line(tmp_path, content):
    (tmp_path / "study.json").write_bytes(content)
    for attempt in (lambda: history.existing(tmp_path), lambda: start(tmp_path, make())):
        with pytest.raises(UserError, match="study.json") as raised:
            attempt()
        assert "\n" not in str(raised.value) and "again" not in str(raised.value)
    assert (tmp_path / "study.json").read_bytes() == content


def test_no_study(tmp_path):
    with pytest.raises(UserError, match="holds no study"):
        history.existing(tmp_path)
    (tmp_path / "manifest.json").write_text('{"config": {"seed": 0}, "experiment": "x"}')
    with pytest.raises(UserError, match="holds a run, not a study"):
        history.existing(tmp_path)


def test_a_stored_source_is_executed_on_request(tmp_path):
    """The studied file changed since."""
    from deeplearn.identity import source as sources

    file = tmp_path / "mine.py"
    file.write_text((study.experiment.HOME / "digits_mlp.py").read_text())
    made = make(workloads={"mine": {"experiment": str(file)}})
    workdir = tmp_path / "study"
    sources.keep(made.workloads[0].source, workdir)
    start(workdir, made, source=sources.digests(made.workloads[0].source))
    kept = history.read(workdir)
    assert history.source_of(workdir, kept, "mine", (), False).experiment == file
    file.write_text("1 / 0")
    with pytest.raises(UserError, match="--execute_copy"):
        history.source_of(workdir, kept, "mine", (), False)
    assert history.source_of(workdir, kept, "mine", (), True).experiment.is_relative_to(workdir)
    assert sys.modules.get("mine") is None
