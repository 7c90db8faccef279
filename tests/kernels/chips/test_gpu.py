"""The kernels compiled for an H200 that is not there."""

import pytest

from kernels.chips import gpu


@pytest.mark.slow
def test_attention_compiles_for_an_h200():
    """Within its shared memory, without a spilt register, and to what `python -m kernels.chips.gpu` recorded."""
    if reason := gpu.missing():
        pytest.skip(reason)
    found = gpu.compiled("attention")
    for kernels in found.values():
        assert len(kernels) >= 3
        for kernel in kernels.values():
            assert kernel["shared"] <= gpu.SHARED and not kernel["serialized"]
            assert kernel["spill_stores"] == kernel["spill_loads"] == 0
    assert found == gpu.recorded("attention").get(gpu.versions(), found)
