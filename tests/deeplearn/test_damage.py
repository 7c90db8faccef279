"""Random damage never yields other numbers: one flipped bit in any file of a run, a study, a data set or a cache.

After each flip everything in the file's directory is read by the library's own readers. The result is the original
content, an older intact checkpoint with its warning, arrays that were built again and are equal, or a UserError of one
line. Any other result, and any other exception, fails.

Not covered are the files that no command reads back, because they are for people or for one moment:
  of a run     evaluation.json, parameters.txt, the pictures, tensorboard/, profile/, metrics.jsonl.1 and so on
  of a study   report.html, the tables (.md, .csv, .parquet), the figures, tensorboard/
  of both      .lock (the number of a process, for a message) and .token (a secret that processes compare)
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplearn.comparison import plans
from deeplearn.data import datasets, integrity, text, tokenizers
from deeplearn.data.cache import SUFFIX
from deeplearn.errors import UserError
from deeplearn.parallel import compile_cache
from deeplearn.training import logs, manifest
from tests.deeplearn import directories
from tests.deeplearn.directories import plain

SEED = 7
TEXTS = {"train": "to be, or not to be:\nthat is the question", "validation": "be not\n", "test": "that it be"}
MERGES = "#version: 0.2\nt h\nth a\nb e\n"
KEY = "jit_step-0123"


@dataclasses.dataclass
class Kind:
    """Files that one reader reads.

    Fields:
      files: the paths.
      read: reads the whole directory of the files, and returns what is there as plain data and arrays.
      acceptable: `(result, warnings)`, whether a result other than the original one is right; the warnings are text.
    """

    files: list[Path]
    read: Callable[[], Any]
    acceptable: Callable[[Any, str], bool] = lambda result, warnings: False


def build_run(folder):
    source = directories.project(folder.parent / "project")
    directories.train(folder, source)
    directories.train(folder, source, accept=["versions"], versions={"jax": "2"})

    def read():
        return directories.read_run(folder)

    (original, _), everything = read(), sorted((folder / "checkpoints").rglob("*"))
    records = [path for path in everything if path.name == "record.json"]
    arrays = [path for path in everything if path.is_file() and path not in records]
    copies = [path for path in (folder / "source").rglob("*") if path.is_file()]

    def older(result, warnings):
        without_one = result[1] in ([2, 2], [3, 1])  # without the newest, 3, or the best, 2
        return plain(result[0]) == plain(original) and without_one and "skipped the damaged" in warnings

    return {
        "manifest of a run": Kind([folder / manifest.MANIFEST], read),
        "source copy": Kind(copies, read),
        "metrics": Kind([folder / logs.METRICS], read),
        "record of a checkpoint": Kind(records, read, older),
        "arrays of a checkpoint": Kind(arrays, read, older),
    }


def build_study(folder):
    directories.compare(folder, directories.declare())

    def read():
        return directories.read_study(folder)

    files = sorted((folder / "runs").rglob("*.json"))
    return {
        "study.json": Kind([folder / manifest.STUDY], read),
        "manifest of a study": Kind([folder / manifest.MANIFEST], read),
        "record of a study's run": Kind([path for path in files if path.name != plans.PLAN], read),
        "plan of a study's runs": Kind([path for path in files if path.name == plans.PLAN], read),
    }


def prepare(root):
    """The directories of the data sets "tiny", images, and "tiny_text"."""
    import tensorflow_datasets as tfds

    from deeplearn.data import builders

    random = np.random.RandomState(0)
    splits = {
        split: (random.randint(0, 256, (size, 4, 5, 3)).astype(np.uint8), random.randint(0, 3, size))
        for split, size in (("train", 20), ("test", 5))
    }

    class Tiny(builders.LabelledImages, skip_registration=True):
        """Tiny images."""

        VERSION = tfds.core.Version("1.0.0")
        IMAGE_SHAPE = (4, 5, 3)
        CLASSES = ("a", "b", "c")
        HOMEPAGE = "https://example.org"

        def _read(self, dl_manager):
            return splits

    class TinyText(builders.TinyShakespeare, skip_registration=True):
        """Tiny texts."""

        VERSION = tfds.core.Version("1.0.0")

        def _read(self, dl_manager):
            return TEXTS

    folders = []
    for builder in (Tiny, TinyText):
        builder = builder(data_dir=root, file_format="array_record")
        builder.download_and_prepare()
        folders.append(Path(builder.data_dir))
        integrity.record(folders[-1])
    return folders


def build_data(root, user_cache):
    images, texts = prepare(root)

    def read():
        data = datasets.load("tiny", data_dir=root)
        result = [data.classes, data.version]
        result += [data.split(split).arrays for split in ("train", "validation", "test")]
        gpt2 = tokenizers.gpt2(data_dir=root)
        for tokenizer in (None, gpt2):
            data = text.load("tiny_text", length=4, tokenizer=tokenizer, data_dir=root)
            result += [data.split(split).arrays for split in ("train", "validation", "test")]
        return [*result, text.vocabulary("tiny_text", data_dir=root), gpt2.encode("that be the bet")]

    def caches():
        return sorted(path for place in (root, user_cache) for path in place.rglob(f"*{SUFFIX}"))

    def read_anew():
        for path in caches():
            path.unlink()
        return read()

    read()
    kept = caches()
    files = [path for folder in (images, texts) for path in folder.iterdir() if path not in kept]
    records = [path for path in files if path.match("*.array_record*")]
    checksums = [path for path in files if path.name == integrity.CHECKSUMS]
    return {
        "description of a data set": Kind([p for p in files if p not in [*records, *checksums]], read),
        "checksums of a data set": Kind(checksums, read),
        "decoded images": Kind([p for p in kept if p.name.startswith("tiny-")], read),
        "encoded texts": Kind([p for p in kept if p.name.startswith("tiny_text-")], read),
        "merges of a tokenizer": Kind([p for p in kept if p.name.startswith("gpt2-")], read),
        "records of a data set": Kind(records, read_anew),  # the last one: it removes the caches
    }


def build_compiled(folder):
    from jax._src.lru_cache import LRUCache

    cache = compile_cache.CheckedCache(LRUCache(str(folder), max_size=-1))
    payload = np.random.default_rng(0).bytes(4000)
    cache.put(KEY, payload)

    def read():
        return cache.get(KEY)

    # Without an intact entry the program is compiled again.
    return {"compiled program": Kind(list(folder.iterdir()), read, lambda result, warnings: result is None)}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Every kind of file that is read back, by its name, with what the intact files hold."""
    root = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        patch.setattr(tokenizers, "_vocabulary", lambda folder: MERGES.encode())
        places = [
            build_run(root / "run"),
            build_study(root / "study"),
            build_compiled(root / "compiled"),
            build_data(root / "data", root / "cache"),
        ]
        yield {name: (kind, plain(kind.read())) for place in places for name, kind in place.items()}


def check_flips(kinds, caplog, number):
    """Flip one bit `number` times in the files of each kind, and check what is read after each flip."""
    rng, outcomes = np.random.default_rng(SEED), {name: set() for name in kinds}
    for name, (kind, original) in kinds.items():
        assert kind.files, name
        for _ in range(number):
            path = kind.files[rng.integers(len(kind.files))]
            intact = path.read_bytes()
            place, bit = int(rng.integers(len(intact))), int(rng.integers(8))
            damaged = bytearray(intact)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            caplog.clear()
            where = f"{name}: bit {bit} of byte {place} of {path}"
            try:
                result = kind.read()
            except UserError as error:
                assert "\n" not in str(error), where
                outcomes[name].add("refused")
            else:
                same = plain(result) == original
                assert same or kind.acceptable(result, caplog.text), where
                outcomes[name].add("same" if same else "older or made again")
            finally:
                path.write_bytes(intact)
    return outcomes


def test_a_sample_of_flips(kinds, caplog):
    """Eight for each of 16 kinds of files."""
    outcomes = check_flips(kinds, caplog, 8)
    assert len(outcomes) == 16
    assert "refused" in outcomes["manifest of a run"] and "refused" in outcomes["study.json"]
    assert "older or made again" in outcomes["record of a checkpoint"]
    assert outcomes["decoded images"] == outcomes["merges of a tokenizer"] == {"same"}


@pytest.mark.slow
def test_500_flips(kinds, caplog):
    check_flips(kinds, caplog, 32)  # 512
