"""The kernels compiled for an H200 that is not there."""

import pytest

from kernels.chips import gpu


@pytest.mark.slow
@pytest.mark.parametrize("subject, least", [("attention", 3), ("convolution", 3), ("pooling", 2)])
def test_it_compiles_for_an_h200(subject, least):
    """Within its shared memory, without a spilt register, and to what `python -m kernels.chips.gpu` recorded."""
    if reason := gpu.missing():
        pytest.skip(reason)
    found = gpu.compiled(subject)
    for kernels in found.values():
        assert len(kernels) >= least
        for kernel in kernels.values():
            assert kernel["shared"] <= gpu.SHARED and not kernel["serialized"]
            assert kernel["spill_stores"] == kernel["spill_loads"] == 0
    assert found == gpu.recorded(subject).get(gpu.versions(), found)
