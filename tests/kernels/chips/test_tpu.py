"""The kernels compiled for TPUs that are not here."""

import json
import subprocess
import sys

import pytest

from kernels.chips import tpu


def found(subject, *options):
    """What `python -m kernels.chips.tpu` finds."""
    if tpu.find_libtpu() is None:
        pytest.skip("libtpu, which compiles for TPUs, is neither installed nor in the folder chips of the environment")
    command = [sys.executable, "-m", "kernels.chips.tpu", subject, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tpu.RESULTS.parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("subject, least", [("attention", 50), ("convolution", 70), ("pooling", 20)])
def test_it_compiles_for_every_tpu(subject, least):
    """Forward and backward, all that can be asked for: what needs more memory than a chip has is refused."""
    cases = found(subject)["cases"]
    assert len(cases) > least and not [(name, case["error"]) for name, case in cases.items() if "error" in case]
    assert {name.split()[0] for name in cases} == set(tpu.TOPOLOGIES)
    assert not [name for name, case in cases.items() if case["gathers"]]  # on meshes, of examples, heads and in a ring


@pytest.mark.slow
@pytest.mark.parametrize("subject", tpu.SCHEDULES)
def test_the_schedule_is_that_on_record(subject):
    """Within 2 %, by a compiler on record: `python -m kernels.chips.tpu attention --schedule --record`."""
    ours, record = found(subject, "--schedule"), tpu.recorded(subject)
    if ours["libtpu"] not in record:
        pytest.skip(f"no schedule on record is of libtpu {ours['libtpu']}")
    record = record[ours["libtpu"]]
    assert ours["cases"].keys() == record.keys()
    for name, case in record.items():
        for kernel, wanted in case["kernels"].items():
            schedule = ours["cases"][name]["kernels"][kernel]
            assert schedule["bundles"] == pytest.approx(wanted["bundles"], rel=0.02), (name, kernel)
            for block, expected in zip(schedule["blocks"], wanted["blocks"], strict=True):
                assert block == pytest.approx(expected, rel=0.02, abs=0.01), (name, kernel)
