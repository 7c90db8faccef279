"""write on from a prompt, by a language model that was trained

    python -m deeplearn generate --workdir=runs/gpt --prompt="ROMEO:" [--tokens=500] [--temperature=0.8] [--top_k=40]

Temperature 0 takes the likeliest token each time. The same seed writes the same text.
"""

import sys

from absl import flags

from deeplearn.commands import accepting, cluster

WORKDIR = flags.DEFINE_string("workdir", None, "the run's directory")
PROMPT = flags.DEFINE_string("prompt", "\n", "the text to go on from")
TOKENS = flags.DEFINE_integer("tokens", 500, "how many tokens to write", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "divides the logits; 0: the likeliest token", lower_bound=0.0)
TOP_K = flags.DEFINE_integer("top_k", 0, "draw among the k likeliest tokens; 0: among all", lower_bound=0)
TOP_P = flags.DEFINE_float("top_p", 1.0, "draw among the fewest of this probability", lower_bound=0.0, upper_bound=1.0)
SEED = flags.DEFINE_integer("seed", 0, "of what is drawn", lower_bound=0, upper_bound=2**32 - 1)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by validation) or last")
MESH = flags.DEFINE_string("mesh", None, "of the devices here, as --config.mesh of train; the run's own unless given")
flags.mark_flag_as_required("workdir")
flags.adopt_module_key_flags(accepting)


def main() -> None:
    import jax
    import numpy as np

    from deeplearn import files, sampling
    from deeplearn.commands import runs
    from deeplearn.data import tokenizers
    from deeplearn.errors import UserError
    from deeplearn.models import gpt
    from deeplearn.parallel import mesh
    from deeplearn.training.state import key

    cluster.alone("generate")
    runs.prepare_jax()
    workdir, accept = files.reach(WORKDIR.value), accepting.sections()
    opened = runs.open_run(workdir, accept, accepting.COPY.value)
    experiment, program, restored = runs.restore(workdir, opened, CHECKPOINT.value, MESH.value, accept)
    model, tokenizer = experiment.model, experiment.tokenizer
    if not isinstance(model, gpt.GPT):
        raise UserError(f"{WORKDIR.value} holds a {type(model).__name__}; generate needs a GPT, as in shakespeare_gpt")
    prompt = tokenizer.encode(PROMPT.value)
    if not len(prompt):
        raise UserError("the prompt is empty; give at least one character, as in --prompt=A")
    architecture = model.architecture

    def step(params, tokens, cache):
        logits, cache = model.apply({"params": params}, tokens, cache=cache)
        return logits[..., : architecture.vocabulary], cache  # beyond are rows of no token, with logits of -inf

    @jax.jit
    def start(state, seed):
        params = experiment.optimizer.evaluation_params(state.opt_state, state.params)
        return params, gpt.empty(architecture, batch=1), key(seed)

    state = restored.state
    params, empty, rng = start(state, mesh.beside(np.uint32(SEED.value), state.step))
    tokens = sampling.generate(
        step,
        params,
        empty,
        architecture.length,
        prompt[None],
        TOKENS.value,
        rng,
        temperature=TEMPERATURE.value,
        top_k=TOP_K.value,
        top_p=TOP_P.value,
    )
    sys.stdout.write(PROMPT.value)
    for piece in tokenizers.pieces(tokenizer, (token for (token,) in tokens)):
        sys.stdout.write(piece)
        sys.stdout.flush()
    print(flush=True)
