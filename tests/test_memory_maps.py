import jax
import jax.numpy as jnp
import pytest

from tests import memory_maps


@pytest.mark.skipif(memory_maps.count() == 0, reason="the system does not say how many maps a process has")
def test_programs_are_dropped_above_the_limit_alone():
    before = memory_maps.count()
    programs = [jax.jit(lambda x, n=n: jnp.sin(x) + n) for n in range(40)]
    for program in programs:
        program(jnp.ones(3))
    compiled = memory_maps.count()
    assert compiled > before + 40
    memory_maps.free(limit=compiled + 1000)
    assert all(program._cache_size() == 1 for program in programs)
    memory_maps.free(limit=0)
    assert all(program._cache_size() == 0 for program in programs) and memory_maps.count() < compiled
