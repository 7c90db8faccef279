"""A GPT's gradient compiled for four TPUs v5p that are not here.

    python -m tests.deeplearn.parallel.tpu_program MESH ...

prints JSON, for each mesh the kernels and the collectives of the program, with the shapes of what they give.
"""

import json
import os
import re
import sys

from kernels.chips import tpu

KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def compiled(text: str) -> str:
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from deeplearn.models.gpt import AXES, GPT, Architecture
    from deeplearn.parallel import mesh as meshes
    from deeplearn.parallel import placement
    from deeplearn.tasks.language_modelling import language_modelling

    mesh = meshes.parse(text, topologies.get_topology_desc(tpu.TOPOLOGIES["v5p"], "tpu").devices)
    model = GPT(Architecture(vocabulary=512, length=512, width=256, depth=2, heads=4, dtype=jnp.bfloat16))
    task, rules = language_modelling(model, 512), (*AXES, *placement.RULES)
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    placed = placement.place(params, mesh, rules)

    def loss(params, tokens):
        params = placement.gather(params, placed, rules)
        return task.loss(params, {}, {"tokens": tokens}, jax.random.key(0))[0]

    params = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), params, placed)
    tokens = jax.ShapeDtypeStruct((8, 513), jnp.int32, sharding=meshes.batch_sharding(mesh))
    gradient = jax.jit(meshes.within(mesh, jax.grad(loss)), out_shardings=placed)
    return gradient.lower(params, tokens).compile().as_text()


def main():
    folder = tpu.find_libtpu()
    sys.path[:0] = [folder] if folder else []
    os.environ |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
    found = {}
    for text in sys.argv[1:]:
        lines = [line.lstrip() for line in compiled(text).splitlines()]
        kernels = (re.match(r"(?:ROOT )?%(\w+)", line) for line in lines if '"tpu_custom_call"' in line)
        collectives = (re.match(rf"(?:ROOT )?%\S+ = (.*?) ({KINDS})(?:-start)?\(", line) for line in lines)
        found[text] = {
            "kernels": [name[1] for name in kernels],
            "collectives": [kind.groups() for kind in collectives if kind],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
