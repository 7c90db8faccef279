"""Sources and tests in any order: a module is loaded once, so that what a test patches is what the code uses."""

import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(str(ROOT / name) for name in ("deeplearn", "kernels", "experiments"))


def test_no_module_is_loaded_twice():
    modules = {id(module): name for name, module in sys.modules.items()}
    stale = []
    for name, module in list(sys.modules.items()):
        if not str(getattr(module, "__file__", "")).startswith(OURS):
            continue
        for attribute, value in vars(module).items():
            if isinstance(value, ModuleType) and str(getattr(value, "__file__", "")).startswith(OURS):
                if id(value) not in modules:
                    stale.append(f"{name}.{attribute}")
            elif isinstance(value, FunctionType) and value.__code__.co_filename.startswith(OURS):
                home = sys.modules.get(value.__module__)
                if home is not None and home.__dict__ is not value.__globals__:
                    stale.append(f"{name}.{attribute}")
    assert not stale


def test_sources_before_tests():
    """Pytest loads each source that it is given; a package that imports it first would have another copy."""
    sources = ("kernels/attention/masks.py", "deeplearn/roles/tracing.py", "deeplearn/optimizers/layers.py")
    itself = f"{Path(__file__).relative_to(ROOT)}::{test_no_module_is_loaded_twice.__name__}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sources, itself]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
