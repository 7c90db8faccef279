"""Texts by name, in characters or other tokens: prepared by TFDS or by our builder, encoded once, kept as arrays."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeplearn.data import blank, datasets, integrity
from deeplearn.data.cache import cached
from deeplearn.data.sources import Arrays
from deeplearn.data.splits import SPLITS, Data, check
from deeplearn.errors import UserError

if TYPE_CHECKING:
    from deeplearn.data.tokenizers import Tokenizer

_CACHE_FORMAT = 2


def load(
    name: str,
    *,
    length: int,
    tokenizer: "Tokenizer | None" = None,
    margin: int = 0,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
) -> Data:
    """The text of this name in windows: examples {"tokens": (length + 1,)}, uint8, int32 beyond 256 characters.

    With a tokenizer (see `tokenizers.load`) the tokens are its, in the smallest of uint8, uint16 and int32 that holds
    its vocabulary; each tokenizer's are kept in a file of their own. Windows for training reach a `margin` further.

    Train, validation and test are TFDS's, texts of their own; see `windows` for how each is cut, and `encode` for the
    numbers. Any data set that was prepared as ArrayRecord, with a feature `text` and the three splits, can be loaded;
    tiny_shakespeare is prepared if it is not. A split of many examples is read as one text, end to end. The files are
    verified before use, see `integrity` and `cache`.

    Args:
      name: of the data set.
      length: tokens of a window, without the one that follows.
      tokenizer: None: characters.
      margin: tokens by which windows for training are longer.
      data_dir, manual_dir: those of `datasets.load`.

    Raises:
      UserError: an unknown name; data that is absent, damaged or not as expected; a length that does not fit.
    """
    if data := blank.windows(name, length, margin, tokenizer):
        return data
    folder = datasets.prepared(name, data_dir, manual_dir)
    arrays = _arrays(name, folder, tokenizer)
    margins = dict.fromkeys(SPLITS, 0) | {"train": margin}
    cut = (Arrays({"tokens": windows(arrays[split], length, margins[split])}) for split in SPLITS)
    return check(Data(name, *cut, version=folder.name))


def vocabulary(
    name: str, *, data_dir: str | os.PathLike | None = None, manual_dir: str | os.PathLike | None = None
) -> str:
    """The characters of this name's three texts, each once, in the order of their code points.

    Of all three, so that there is no unknown character in any; what occurs in the test alone would be an output that
    training never asks for, and tells a model nothing more. (In tiny_shakespeare all 65 occur in train.)
    """
    if characters := blank.vocabulary(name):
        return characters
    return _text(_arrays(name, datasets.prepared(name, data_dir, manual_dir))["vocabulary"])


def encode(text: str, vocabulary: str) -> np.ndarray:
    """The place of each character in the vocabulary, which is sorted: (len(text),) uint8, int32 beyond 256 characters.

    Raises UserError for a character that the vocabulary lacks.

    >>> encode("abba", "\\nab")
    array([1, 2, 2, 1], dtype=uint8)
    """
    codes, known = _codes(text), _codes(vocabulary)
    absent = ~np.isin(codes, known)
    if absent.any():
        where = int(np.argmax(absent))
        remedy = f"leave it out or use one of {vocabulary!r}"
        raise UserError(f"character {where} of the text, {text[where]!r}, is not in the vocabulary; {remedy}")
    return np.searchsorted(known, codes).astype(np.uint8 if len(known) <= 256 else np.int32)


def decode(tokens: np.ndarray, vocabulary: str) -> str:
    """The text of tokens (T,): what `encode` undoes.

    >>> decode(np.array([1, 2, 2, 1]), "\\nab")
    'abba'
    """
    return "".join(vocabulary[token] for token in tokens)


def windows(tokens: np.ndarray, length: int, margin: int = 0) -> np.ndarray:
    """Cut (N,) into windows of `length` + 1, of which the first is the last of the window before:

        windows[i] = tokens[i length : (i + 1) length + 1],   i < (N - 1) // length

    so that each token but the first is asked for once, up to the (N - 1) % length at the end, which fill no window.
    With a margin each goes on for so many tokens more, as far as there are as many: with `length` - 1, every run of
    `length` + 1 tokens but the last few is in one of them, from which language modelling takes one at random.
    Returns ((N - 1 - margin) // length, length + 1 + margin). Raises UserError for a length that gives no window.

    >>> windows(np.arange(8), 3)
    array([[0, 1, 2, 3],
           [3, 4, 5, 6]])
    """
    if not 1 <= length < len(tokens) - margin:
        most = (len(tokens) - 1 - margin) if margin < len(tokens) - 1 else 0
        raise UserError(f"length {length} does not fit a text of {len(tokens)}; choose one from 1 to {most}")
    starts = np.arange((len(tokens) - 1 - margin) // length) * length
    return tokens[starts[:, None] + np.arange(length + 1 + margin)]


def _codes(text: str) -> np.ndarray:
    """The code point of each character, (len(text),) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _text(codes: np.ndarray) -> str:
    return "".join(map(chr, codes))


def _arrays(name: str, folder: Path, tokenizer=None) -> dict[str, np.ndarray]:
    """The tokens of each split; without a tokenizer also `vocabulary`, the characters' code points."""
    what = f"tokens{_CACHE_FORMAT}" + (f"-{tokenizer.name}" if tokenizer else "")
    file, folders = datasets.kept_in(name, folder, what)
    return cached(file, folders, lambda: _encoded(_read(name, folder), tokenizer))


def _encoded(texts: dict[str, str], tokenizer) -> dict[str, np.ndarray]:
    if tokenizer:
        size = tokenizer.vocabulary_size
        dtype = np.uint8 if size <= 2**8 else np.uint16 if size <= 2**16 else np.int32
        return {split: tokenizer.encode(text).astype(dtype) for split, text in texts.items()}
    known = np.unique(_codes("".join(texts.values())))
    return {"vocabulary": known, **{split: encode(text, _text(known)) for split, text in texts.items()}}


def _read(name: str, folder: Path) -> dict[str, str]:
    """The text of each split."""
    import tensorflow_datasets as tfds

    builder = datasets.open_builder(name, folder)
    features = dict(builder.info.features.items())
    if not isinstance(features.get("text"), tfds.features.Text):
        raise UserError(f"{name} has the features {', '.join(features)}; a text is needed")

    def read(split):
        source, pieces = datasets.open_split(name, builder, split)
        integrity.check_bytes(name, split, [path for path, _ in pieces], int(builder.info.splits[split].num_bytes))
        try:
            return b"".join(example["text"] for example in source.__getitems__(range(len(source)))).decode()
        except Exception as error:  # whatever the reader or the decoder makes of a damaged file
            cause = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"{name}: cannot read the {split} split in {folder} ({cause}); {integrity.REMEDY}"
            ) from error

    return {split: read(split) for split in SPLITS}
