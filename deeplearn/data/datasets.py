"""Data sets by name: prepared by TFDS or by our builders, decoded once and kept as arrays."""

import functools
import hashlib
import os
import re
import shutil
import uuid
from pathlib import Path

import jax
import numpy as np
from absl import logging

from deeplearn import files
from deeplearn.data import blank, integrity
from deeplearn.data.cache import SUFFIX, cached, user_cache, writable
from deeplearn.data.sources import Arrays, Records, Source, Subset
from deeplearn.data.splits import Data, check, hold_out
from deeplearn.errors import UserError, unknown

# builders.BUILDERS, named without importing TFDS
BUILT = ("digits", "mnist", "fashion_mnist", "cifar10", "tiny_shakespeare")
IN_MEMORY = 2 * 2**30  # bytes, decoded

_CACHE_FORMAT = 2
_DECODED_AT_ONCE = 1000


def load(
    name: str,
    *,
    validation: float = 0.1,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
    image_shape: tuple[int, ...] | None = None,
) -> Data:
    """The labelled images of this name: examples {"image": (H, W, C) uint8, "label": () int32}.

    They are looked for in the TFDS directory `data_dir`, by default `$TFDS_DATA_DIR` or `~/tensorflow_datasets`: any
    data set that was prepared there as ArrayRecord, with an image and a label feature, can be loaded, and those in
    `BUILT` are prepared if they are not. The test split is TFDS's "test", or its "validation" where it has no test;
    the validation split is held out from TFDS's "train" by `splits.hold_out`.

    Up to `IN_MEMORY` bytes the images are decoded once, kept in a file beside the prepared data (or in the user's
    cache directory), and returned as `Arrays`; beyond, they stay on disk and are returned as `Records`.

    Args:
      name: the data set; "name/config" where TFDS has configurations.
      validation: the fraction of the training examples that is held out.
      data_dir: the TFDS directory.
      manual_dir: where upstream files lie that need no download, by default `data_dir/name`.
      image_shape: what the images' shape must be, if that matters.

    The files are verified before use, see `integrity` and `cache`.

    Raises UserError for a name that is unknown, and for data that is absent, damaged or not as expected.

    >>> import tempfile
    >>> data = load("digits", data_dir=tempfile.mkdtemp())
    >>> len(data.train), len(data.validation), len(data.test), data.spec["image"].shape
    (1293, 144, 360, (8, 8, 1))
    """
    if data := blank.images(name, validation):
        return check(data, image_shape)
    folder = prepared(name, data_dir, manual_dir)
    opened = functools.cache(lambda: _open(name, folder))
    file, caches = kept_in(name, folder, f"arrays{_CACHE_FORMAT}")
    if any(os.path.exists(cache / file) for cache in caches) or _decoded_bytes(opened()) <= IN_MEMORY:
        arrays = cached(file, caches, lambda: _decode(name, opened()))
        classes = tuple(arrays["classes"].tolist())
        train, test = (
            Arrays({key: arrays[f"{split}_{key}"] for key in ("image", "label")}) for split in ("train", "test")
        )
    else:
        train, test = opened()["train"], opened()["test"]
        classes = train.classes
    rows, held_out = hold_out(len(train), validation)
    return check(Data(name, _part(train, rows), _part(train, held_out), test, classes, folder.name), image_shape)


def _part(source: Source, rows: np.ndarray) -> Source:
    return Arrays(source.__getitems__(rows)) if isinstance(source, Arrays) else Subset(source, rows)


def data_root(data_dir: str | os.PathLike | None) -> Path:
    """The TFDS directory: `data_dir`, by default `$TFDS_DATA_DIR` or `~/tensorflow_datasets`."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepared(name: str, data_dir, manual_dir) -> Path:
    """The directory of the newest version that is prepared; it is prepared first if it is ours to build.

    Raises UserError for a name that is unknown, and for data that cannot be had.
    """
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    own = user_cache() / "tfds"
    if files.in_bucket(chosen):
        root = own
        if there := newest(files.reach(chosen) / name):
            return brought(there, own / name)
    else:
        root = Path(chosen).expanduser()
    for place in (root, own):
        if there := newest(place / name):
            return there
    if name in BUILT:
        from deeplearn.data import builders

        place = root if writable(root) else own
        return builders.prepare(name, place, Path(manual_dir or place / name))
    if files.in_bucket(chosen):
        raise UserError(f"{chosen} has no {name} that is prepared; correct data_dir or TFDS_DATA_DIR")
    if not root.exists():
        raise UserError(f"the data directory {root} does not exist; correct data_dir or TFDS_DATA_DIR")
    there = {str(info.parents[1].relative_to(root)) for info in root.glob("**/[0-9]*.*.*/dataset_info.json")}
    raise unknown("data set", name, there.union(BUILT))


def newest(folder: Path) -> Path | None:
    """The newest of the prepared versions in a data set's directory."""
    versions = {}
    for info in folder.glob("*/dataset_info.json"):
        if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name):
            versions[tuple(map(int, info.parent.name.split(".")))] = info.parent
    return versions[max(versions)] if versions else None


def brought(there: Path, folder: Path) -> Path:
    """The copy in `folder` of a version that is prepared in a bucket, made if need be: records are read from a disk."""
    here = folder / there.name
    if not here.exists():
        logging.info("copying %s to %s, once", there, here)
        with files.writing(here):
            temporary = folder / f".{there.name}.{uuid.uuid4().hex}"
            temporary.mkdir(parents=True)
            for file in there.iterdir():
                (temporary / file.name).write_bytes(file.read_bytes())
            try:
                temporary.rename(here)
            except OSError:  # another process was faster?
                shutil.rmtree(temporary)
                if not here.exists():
                    raise
    return here


def kept_in(name: str, folder: Path, what: str) -> tuple[str, tuple[Path, Path]]:
    """The file that keeps what was decoded of a prepared directory, and the folders that may hold it; see `cached`.

    The descriptions are verified first, where checksums of them exist. The file's name holds a hash of
    `dataset_info.json`: after a change of it the records are decoded again. It holds none of the class names, so that
    a cache file that was made of an intact directory is used on if they are damaged.
    """
    integrity.verify(name, folder, records=False)
    identity = hashlib.sha256(integrity.read(name, folder / "dataset_info.json")).hexdigest()[:12]
    return f"{name.replace('/', '-')}-{folder.name}-{identity}-{what}{SUFFIX}", (folder, user_cache())


def open_builder(name: str, folder: Path):
    """The TFDS builder of a prepared directory; UserError if its files are damaged."""
    import tensorflow_datasets as tfds

    integrity.verify(name, folder, records=True)
    try:
        builder = tfds.builder_from_directory(folder)
        _ = [split.file_instructions for split in builder.info.splits.values()]  # TFDS parses the file names only now
        features = builder.info.features.items()
        labels = {key: (x.names, x.num_classes) for key, x in features if isinstance(x, tfds.features.ClassLabel)}
    except Exception as error:  # whatever TFDS makes of damaged descriptions
        cause = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        raise UserError(f"{name}: cannot read {folder} ({cause}); {integrity.REMEDY}") from error
    for key, (names, count) in labels.items():
        integrity.check_class_names(name, folder / f"{key}.labels.txt", names, count)
    return builder


def open_split(name: str, builder, split: str):
    """The `tfds.data_source` of a split, and path and number of examples of each of its files.

    Raises UserError for a split that is empty, in a format without random access, or has not its number of examples.
    """
    info, folder = builder.info, Path(builder.data_dir)
    if split not in info.splits or info.splits[split].num_examples == 0:
        raise UserError(f"{name}: the {split} split in {folder} is empty; prepare the data set again")
    try:
        source = builder.as_data_source(split)
    except NotImplementedError as error:
        remedy = 'prepare it again with file_format="array_record"'
        raise UserError(f"{name}: {folder} is in the format {info.file_format.value}; {remedy}") from error
    integrity.check_files(name, folder, [path.name for split in info.splits.values() for path in split.filepaths])
    pieces = [(file.filename, file.take) for file in info.splits[split].file_instructions]
    integrity.check_counts(name, split, pieces)
    return source, pieces


def _open(name: str, folder: Path) -> dict[str, Records]:
    """The data set's train and test split as records."""
    import tensorflow_datasets as tfds

    info = (builder := open_builder(name, folder)).info
    features = dict(info.features.items())
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"{name} has the features {', '.join(features)}; an image and a label are needed")
    if None in image.shape:
        raise UserError(f"{name}: its images differ in size; prepare them in one size")

    def records(split: str) -> Records:
        source, pieces = open_split(name, builder, split)
        spec = jax.ShapeDtypeStruct(image.shape, image.np_dtype)
        return Records(f"{name} {split}", source, spec, tuple(label.names), pieces, int(info.splits[split].num_bytes))

    test = "test" if "test" in info.splits else "validation"
    return {"train": records("train"), "test": records(test)}


def _decoded_bytes(splits: dict[str, Records]) -> int:
    return sum(len(split) * (split.image.size * split.image.dtype.itemsize + 4) for split in splits.values())


def _decode(name: str, splits: dict[str, Records]) -> dict[str, np.ndarray]:
    """All examples, as {split_image, split_label, classes}."""
    arrays = {"classes": np.array(splits["train"].classes)}
    for split, records in splits.items():
        integrity.check_bytes(name, split, [path for path, _ in records.files], records.num_bytes)
        logging.info("decoding the %d images of %s, once", len(records), records.name)
        starts = range(0, len(records), _DECODED_AT_ONCE)
        parts = [records.__getitems__(range(n, min(n + _DECODED_AT_ONCE, len(records)))) for n in starts]
        for key in ("image", "label"):
            arrays[f"{split}_{key}"] = np.concatenate([part[key] for part in parts])
    return arrays
