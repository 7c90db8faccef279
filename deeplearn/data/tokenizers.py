"""Tokenizers, from text to tokens and back: a text's characters, and the byte pairs of GPT-2."""

import functools
import hashlib
import heapq
import itertools
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeplearn.data import blank, datasets, integrity, text
from deeplearn.data.cache import SUFFIX, cached, user_cache
from deeplearn.errors import UserError, unknown

NAMES = ("characters", "gpt2", "gpt2_ordinary")
END = "<|endoftext|>"
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
GPT2_MERGES = 50_000

_CACHE_FORMAT = 2
_CHECKSUMS = Path(__file__).parent / "checksums.tsv"

# GPT-2 numbers the bytes whose Latin-1 character is visible before all others.
_BYTES = bytes(sorted(range(256), key=lambda byte: chr(byte) == " " or not chr(byte).isprintable()))
_VISIBLE = 188
_PLACES = bytes(map(_BYTES.index, range(256)))  # the token of each byte


class Tokenizer(NamedTuple):
    """Two pure functions that undo each other: decode(encode(text)) is the text, for every text that can be encoded.

    name: identifies it: tokenizers of one name give the same tokens.
    vocabulary_size: tokens are the integers below it.
    encode: text to tokens (T,), int32.
    decode: tokens (T,) of any integer type to text.

    Both raise UserError for what is not in the vocabulary.
    """

    name: str
    vocabulary_size: int
    encode: Callable[[str], np.ndarray]
    decode: Callable[[np.ndarray], str]


def load(
    name: str,
    dataset: str,
    *,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
) -> Tokenizer:
    """The tokenizer of this name for a text data set.

    Args:
      name: "characters", those of its `text.vocabulary`; "gpt2"; or "gpt2_ordinary", `gpt2` without `special`.
      dataset: the name of the text data set.
      data_dir, manual_dir: those of `text.load` and of `gpt2`.

    Raises:
      UserError: an unknown name.
    """
    if name == "characters":
        return characters(text.vocabulary(dataset, data_dir=data_dir, manual_dir=manual_dir))
    if name in ("gpt2", "gpt2_ordinary"):
        return gpt2(data_dir=data_dir, manual_dir=manual_dir, special=name == "gpt2")
    raise unknown("tokenizer", name, NAMES)


def characters(vocabulary: str) -> Tokenizer:
    """A token for each character of a vocabulary, which is sorted: `text.encode` and `text.decode`.

    >>> tokenizer = characters("\\nab")
    >>> tokenizer.encode("abba")
    array([1, 2, 2, 1], dtype=int32)
    >>> tokenizer.decode(np.array([1, 2, 2, 1]))
    'abba'
    """
    name = f"characters-{hashlib.sha256(vocabulary.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
    return Tokenizer(
        name,
        len(vocabulary),
        lambda content: text.encode(content, vocabulary).astype(np.int32),
        lambda tokens: text.decode(_checked(tokens, len(vocabulary), name), vocabulary),
    )


def gpt2(
    *, data_dir: str | os.PathLike | None = None, manual_dir: str | os.PathLike | None = None, special: bool = True
) -> Tokenizer:
    """GPT-2's tokenizer: `byte_pairs` of its 50,000 merges, 50,257 tokens, of which the last is `<|endoftext|>`.

    The merges are OpenAI's file vocab.bpe, 456 kB: looked for in `manual_dir`, by default `data_dir/gpt2`, where
    `data_dir` is by default `$TFDS_DATA_DIR` or `~/tensorflow_datasets`; else downloaded. Either way it is checked
    against `checksums.tsv`, and kept as an array in the user's cache directory, which is asked first.

    Args:
      data_dir, manual_dir: where the file is.
      special: see `byte_pairs`; without it the name is gpt2_ordinary.

    Raises:
      UserError: a file that cannot be had or is not the right one; says what to put where.

    Source: Radford et al. 2019, Language models are unsupervised multitask learners, section 2.2.
    """
    name = "gpt2" if special else "gpt2_ordinary"
    if blank.wanted():
        return byte_pairs(name, np.zeros((GPT2_MERGES, 2), np.int32), special)
    folder = Path(manual_dir or datasets.data_root(data_dir) / "gpt2")
    file = f"gpt2-merges{_CACHE_FORMAT}{SUFFIX}"
    kept = cached(file, [user_cache()], lambda: {"merges": read_merges(_vocabulary(folder).decode())})
    return byte_pairs(name, kept["merges"], special)


def byte_pairs(name: str, merges: np.ndarray, special: bool = True) -> Tokenizer:
    """Byte-pair encoding of UTF-8: tokens are the 256 bytes, a join of two tokens for each merge, and `END`.

    Token 256 + i joins the two tokens merges[i]; merges (M, 2) are in the order in which they were learnt. A text is
    cut into `words`; in each word's bytes, of all neighbours that are a merge, those of the earliest are joined, the
    leftmost first, until there are none. Any text can be encoded but one with surrogates (half a pair of UTF-16).
    Decoding replaces bytes that are not UTF-8, such as a part of a character, by U+FFFD.

    Args:
      name, merges: see above.
      special: whether `<|endoftext|>` in a text is one token, as by tiktoken's `allowed_special="all"`, or plain text,
        as by its `encode_ordinary`. Its own default is an error.

    >>> merges = read_merges("#version: 0.2\\nl o\\nlo w\\nĠ low\\n")
    >>> tokenizer = byte_pairs("tiny", merges)
    >>> tokenizer.encode("low slow low")
    array([257, 220,  82, 257, 258], dtype=int32)
    >>> tokenizer.decode(np.array([257, 258, 0]))
    'low low!'

    Source: Sennrich et al. 2016, Neural machine translation of rare words with subword units, section 3.2; on bytes,
    Radford et al. 2019, section 2.2.
    """
    symbols = [bytes([byte]) for byte in _BYTES]
    for left, right in merges.tolist():
        symbols.append(symbols[left] + symbols[right])
    joins = {tuple(pair): token for token, pair in enumerate(merges.tolist(), 256)}
    end = len(symbols)
    symbols.append(END.encode())

    @functools.lru_cache(2**18)  # words recur
    def tokens_of(word: str) -> list[int]:
        return [end] if special and word == END else _join(list(word.encode().translate(_PLACES)), joins)

    def encode(content: str) -> np.ndarray:
        if surrogate := re.search(r"[\ud800-\udfff]", content):
            where = f"character {surrogate.start()} of the text, {surrogate.group()!r}"
            raise UserError(f"{where}, is a surrogate, which is no character in UTF-8; leave it out")
        return np.fromiter(itertools.chain.from_iterable(map(tokens_of, words(content, special))), np.int32)

    def decode(tokens: np.ndarray) -> str:
        tokens = _checked(tokens, len(symbols), name).tolist()
        return b"".join(map(symbols.__getitem__, tokens)).decode(errors="replace")

    return Tokenizer(name, len(symbols), encode, decode)


def pieces(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """The text of tokens as they come; the first bytes of a character wait for the rest of it.

    >>> tokenizer = byte_pairs("bytes", np.zeros((0, 2), np.int32))
    >>> list(pieces(tokenizer, tokenizer.encode("né!")))
    ['n', 'é', '!']
    """
    waiting = []
    for token in tokens:
        waiting.append(token)
        content = tokenizer.decode(np.array(waiting))
        if not content.endswith("\ufffd"):
            yield content
            waiting = []
    if waiting:
        yield tokenizer.decode(np.array(waiting))


def read_merges(content: str) -> np.ndarray:
    """The merges of a file like GPT-2's vocab.bpe: the two tokens that each joins, (M, 2) int32; see `byte_pairs`.

    After a line with the version, line i has the two symbols of merge i. A symbol is written with a character for each
    byte: itself where its Latin-1 character is visible, else, in the bytes' order, a character from U+0100 on, so
    that a space is U+0120.

    >>> read_merges("#version: 0.2\\nl o\\nlo w\\nĠ low\\n").tolist()
    [[75, 78], [256, 86], [220, 257]]
    """
    written = [chr(byte) for byte in _BYTES[:_VISIBLE]] + [chr(256 + i) for i in range(256 - _VISIBLE)]
    tokens = {character: place for place, character in enumerate(written)}
    pairs = [line.split(" ") for line in content.split("\n")[1:] if line]
    merges = []
    for token, (left, right) in enumerate(pairs, 256):
        merges.append((tokens[left], tokens[right]))
        tokens[left + right] = token
    return np.array(merges, np.int32)


def words(content: str, special: bool = True) -> list[str]:
    """What GPT-2 joins no bytes across: the text cut at `END` where that is `special`, and then into the longest

        's, 't, 're, 've, 'm, 'll or 'd; letters, numbers or other signs after at most one space; whitespace, without
        the last of it where a word follows

    where letters, numbers and whitespace are Unicode's (\\p{L}, \\p{N} and White_Space). Together they are the text.
    Characters that are younger than the Unicode of this Python (14 in 3.11, 15 in 3.12) are other signs.

    >>> words("We'll see,  in 2019 ...")
    ['We', "'ll", ' see', ',', ' ', ' in', ' 2019', ' ...']
    """
    pattern = _pattern()
    parts = re.split(f"({re.escape(END)})", content) if special else [content]
    return [word for part in parts for word in ([END] if special and part == END else pattern.findall(part))]


@functools.cache
def _pattern() -> re.Pattern:
    """GPT-2's pattern, whose classes `re` lacks: its \\w is not letters and numbers, its \\s has U+001C to U+001F."""
    ranges = {"L": "", "N": "", "Z": r"\t-\r\x85"}  # White_Space is the separators and these
    codes = range(sys.maxunicode + 1)
    for kind, run in itertools.groupby(codes, lambda code: unicodedata.category(chr(code))[0]):
        if kind in ranges:
            run = list(run)
            ranges[kind] += f"\\U{run[0]:08x}-\\U{run[-1]:08x}"
    letter, number, space = ranges.values()
    return re.compile(
        f"'(?:[stmd]|re|ve|ll)| ?[{letter}]+| ?[{number}]+| ?[^{space}{letter}{number}]+"
        f"|[{space}]+(?![^{space}])|[{space}]+"
    )


def _join(tokens: list[int], joins: dict[tuple[int, int], int]) -> list[int]:
    """Join neighbours, those of the least result first, until no pair is in `joins`; a heap, O(T log T)."""
    size = len(tokens)
    before, after = list(range(-1, size - 1)), list(range(1, size + 1))
    heap = []

    def propose(left, right):
        if left >= 0 and right < size and (joined := joins.get((tokens[left], tokens[right]))):
            heapq.heappush(heap, (joined, left, right))

    for left in range(size - 1):
        propose(left, left + 1)
    while heap:
        joined, left, right = heapq.heappop(heap)
        if joins.get((tokens[left], tokens[right])) != joined:  # another join took one of the two
            continue
        tokens[left], tokens[right] = joined, None
        after[left] = after[right]
        if after[left] < size:
            before[after[left]] = left
        propose(before[left], left)
        propose(left, after[left])
    return [token for token in tokens if token is not None]


def _checked(tokens: np.ndarray, size: int, name: str) -> np.ndarray:
    """The tokens as an array; UserError if one is not in the vocabulary."""
    tokens = np.asarray(tokens)
    wrong = tokens[(tokens < 0) | (tokens >= size)]
    if wrong.size:
        remedy = "decode with the tokenizer that made it"
        raise UserError(f"token {wrong[0]} is out of range, {name} has 0 to {size - 1}; {remedy}")
    return tokens


def _vocabulary(folder: Path) -> bytes:
    """GPT-2's vocab.bpe, from the folder or downloaded, with the right checksum."""
    import requests

    path = folder / "vocab.bpe"
    rows = [line.split("\t") for line in _CHECKSUMS.read_text().splitlines()]
    checksum = next(checksum for url, _, checksum, _ in rows if url == GPT2_URL)
    try:
        origin, content = path, path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        try:
            response = requests.get(GPT2_URL, timeout=10)
            response.raise_for_status()
        except requests.RequestException as error:
            cause = f"cannot download {GPT2_URL} ({type(error).__name__})"
            raise UserError(f"gpt2: {cause}; put that file into {folder} and start again") from error
        origin, content = GPT2_URL, response.content
    except OSError as error:
        raise integrity.unreadable("gpt2", path, error) from error
    if hashlib.sha256(content).hexdigest() != checksum:
        cause = f"{origin} is damaged or another file (its SHA-256 is not {checksum})"
        raise UserError(f"gpt2: {cause}; put the right one into {folder} and start again")
    return content
