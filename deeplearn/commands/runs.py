"""What the commands share: a config's experiment, and the ways of JAX that every run wants."""

import os
from pathlib import Path


def prepare_jax() -> None:
    """Keep compiled programs on disk, so that the second start of the same experiment compiles nothing."""
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path.home() / ".cache" / "deeplearn" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def build(path: str, config):
    """The Experiment of the file at `path` with this config."""
    from deeplearn import experiment

    return experiment.load(path).build(config)
