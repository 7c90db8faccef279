import hashlib
import json
import os
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import requests
from hypothesis import example, given
from hypothesis import strategies as st

from deeplearn.data import text, tokenizers
from deeplearn.errors import UserError

TINY = "#version: 0.2\nl o\nlo w\nĠ low\ne r\n"
AWKWARD = (
    "",
    " ",
    "  \n\n \t x",
    "ends in spaces   ",
    "We'll, they've; I'm 'd '' 'S don't",
    "x2019 12,345.67 ²½Ⅷ٣五",
    "naïve café cafe\u0301 ÅÄÖ ß ﬁ",
    "Привет мир, καλημέρα κόσμε, 你好世界, こんにちは, नमस्ते, שלום",
    "🙂 👨‍👩‍👧‍👦 🇩🇪 a\u200bb\ufeff",
    "a\xa0b\u3000c\u2028d\x85e\x1cf\x00g\x7f\xad",
    "def f(x):\n    return x  # tab\there\r\n",
    "<|endoftext|>one  <|endoftext|><|endoftext|> two<|endoftext",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𝟘𝟙 𓀀",
    "=" * 70 + "aaaaaaaaaaaaaaaaaaaaa" + " " * 40,
)


LETTERS = tokenizers.characters("abc")
PAIRS = tokenizers.byte_pairs("pairs", np.zeros((0, 2), np.int32))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """tiny(folder): put a vocab.bpe there; the one with the right checksum is `TINY`."""
    path = tmp_path / "checksums.tsv"
    path.write_text(f"{tokenizers.GPT2_URL}\t0\t{hashlib.sha256(TINY.encode()).hexdigest()}\tvocab.bpe\n")
    monkeypatch.setattr(tokenizers, "_CHECKSUMS", path)

    def write(folder, content=TINY):
        folder.mkdir(exist_ok=True)
        (folder / "vocab.bpe").write_text(content, encoding="utf-8", newline="")

    return write


# characters


@given(st.text(), st.text())
@example("", "")
@example("\r\n\x00\U0001f600", "")
@example("aa", "b")
def test_characters(content, more):
    vocabulary = "".join(sorted(set(content + more)))
    tokenizer = tokenizers.characters(vocabulary)
    tokens = tokenizer.encode(content)
    assert tokens.dtype == np.int32 and tokens.tolist() == text.encode(content, vocabulary).tolist()
    assert tokenizer.decode(tokens) == content and tokenizer.vocabulary_size == len(vocabulary)


def test_other_characters_are_another_tokenizer():
    assert tokenizers.characters("ab").name == tokenizers.characters("ab").name != tokenizers.characters("ac").name


# words


@pytest.mark.parametrize(
    "content, words",
    [
        ("", []),
        ("two words", ["two", " words"]),
        ("a  b", ["a", " ", " b"]),
        ("a \n\n b", ["a", " \n\n", " b"]),
        ("a\n\nb", ["a", "\n", "\n", "b"]),
        ("a  ", ["a", "  "]),
        ("\t\tx", ["\t", "\t", "x"]),
        ("we're I'LL 's", ["we", "'re", " I", "'", "LL", " '", "s"]),
        ("o'tis", ["o", "'t", "is"]),
        ("I'm he'd they've we'll", ["I", "'m", " he", "'d", " they", "'ve", " we", "'ll"]),
        ("abc123def", ["abc", "123", "def"]),
        ("x² ½ Ⅷ 五", ["x", "²", " ½", " Ⅷ", " 五"]),  # No, No, Nl; the last is a letter
        ("cafe\u0301s", ["cafe", "\u0301", "s"]),  # a mark is no letter
        ("a_b", ["a", "_", "b"]),
        ("a\xa0b", ["a", "\xa0", "b"]),
        ("a\x1cb", ["a", "\x1c", "b"]),
        ("a\x1c!", ["a", "\x1c!"]),  # no whitespace, whatever Python's \s says
        ("!? ...", ["!?", " ..."]),
        ("a<|endoftext|> b", ["a", "<|endoftext|>", " b"]),
        ("a  <|endoftext|>", ["a", "  ", "<|endoftext|>"]),
        ("a <|endoftext", ["a", " <|", "endoftext"]),
    ],
)
def test_words(content, words):
    assert tokenizers.words(content) == words


@given(st.text() | st.text("ab1 \n'.\u0301\x85"), st.booleans())
@example("a<|endoftext|> b", True)
@example("a<|endoftext|> b", False)
def test_words_are_the_text(content, special):
    words = tokenizers.words(content, special)
    assert "".join(words) == content and "" not in words


def test_the_end_as_words():
    assert tokenizers.words("a <|endoftext|>b", special=False) == ["a", " <|", "endoftext", "|>", "b"]


def test_every_code_point_is_of_its_class():
    """Letters go on with a word of letters, numbers with one of numbers, what is neither nor white with others."""
    kind = {chr(code): unicodedata.category(chr(code))[0] for code in range(sys.maxunicode + 1)}
    everything = [c for c in kind if kind[c] != "C" or ord(c) < 256 or ord(c) % 101 == 0]  # few of the unassigned
    white = set("\t\n\v\f\r\x85") | {c for c in everything if kind[c] == "Z"}
    pattern = tokenizers._pattern()

    def going_on(before):
        """The characters that are of one word with this one before them."""
        found = pattern.findall("".join(before + c + "\n" for c in everything if c != "\n"))
        return {word[1] for word in found if len(word) == 2 and word[0] == before} - {"\n"}

    assert going_on("a") == {c for c in everything if kind[c] == "L"}
    assert going_on("1") == {c for c in everything if kind[c] == "N"}
    assert going_on("!") == {c for c in everything if kind[c] not in "LN" and c not in white}
    assert len(white) == 25


# byte pairs


def joined(tokens, pair, token):
    """The tokens, with each occurrence of the pair, from the left, made one."""
    if len(tokens) < 2:
        return tokens
    found = tuple(tokens[:2]) == pair
    return [token, *joined(tokens[2:], pair, token)] if found else [tokens[0], *joined(tokens[1:], pair, token)]


def plainly(tokens, pairs):
    """Sennrich et al. 2016: again and again, the earliest merge that occurs, wherever it does."""
    for _ in tokens:
        there = [pair for pair in pairs if pair in zip(tokens, tokens[1:], strict=False)]
        tokens = joined(tokens, there[0], 256 + pairs.index(there[0])) if there else tokens
    return tokens


@given(st.data(), st.text("abc", max_size=30), st.text("abc ", max_size=60))
def test_joined_as_the_paper_says(data, learnt, content):
    """On the word whose neighbours were joined to learn the merges, and on another text."""
    numbers = dict(zip("abc ", (64, 65, 66, 220), strict=True))
    tokens, pairs = [numbers[letter] for letter in learnt], []
    while len(tokens) > 1 and data.draw(st.booleans() | st.just(True)):
        where = data.draw(st.integers(0, len(tokens) - 2))
        pairs.append((tokens[where], tokens[where + 1]))
        tokens = joined(tokens, pairs[-1], 255 + len(pairs))
    tokenizer = tokenizers.byte_pairs("learnt", np.array(pairs, np.int32).reshape(-1, 2))
    assert tokenizer.encode(learnt).tolist() == tokens
    expected = [plainly([numbers[letter] for letter in word], pairs) for word in tokenizers.words(content)]
    assert tokenizer.encode(content).tolist() == sum(expected, [])
    assert tokenizer.decode(tokenizer.encode(content)) == content


@given(st.text() | st.lists(st.sampled_from(["<|endoftext|>", "<|", "|>", "endoftext", " ", "low"])).map("".join))
@example("".join(AWKWARD))
@example("<|endoftext|>")
@example("<|endoftext|><|endoftext|>x<|endoftext")
def test_any_text_comes_back(content):
    for special in (True, False):
        tokenizer = tokenizers.byte_pairs("tiny", tokenizers.read_merges(TINY), special)
        tokens = tokenizer.encode(content)
        assert tokenizer.decode(tokens) == content
        assert (tokens == 260).sum() == (content.count("<|endoftext|>") if special else 0)


def test_a_long_word():
    """A quadratic loop would take hours."""
    tokenizer = tokenizers.byte_pairs("tiny", tokenizers.read_merges(TINY))
    assert tokenizer.encode("low" * 100_000).tolist() == [257] * 100_000


def test_bytes_have_gpt2_s_numbers():
    tokenizer = tokenizers.byte_pairs("bytes", tokenizers.read_merges("#version: 0.2\n"))
    assert tokenizer.vocabulary_size == 257
    numbers = {"!": [0], "A": [32], "a": [64], "~": [93], "\0": [188], "\n": [198], " ": [220], "\x7f": [221]}
    numbers |= {"\xa0": [126, 254], "¡": [126, 94], "ÿ": [127, 123], "\xad": [126, 255]}
    assert {character: tokenizer.encode(character).tolist() for character in numbers} == numbers
    ascii_alone = sorted(tokenizer.decode(np.array([token])) for token in range(256))
    assert ascii_alone == [chr(byte) for byte in range(128)] + ["\ufffd"] * 128


def test_the_end_is_one_token():
    tokenizer = tokenizers.byte_pairs("tiny", tokenizers.read_merges(TINY))
    assert tokenizer.encode("low<|endoftext|>low").tolist() == [257, 260, 257]
    assert tokenizer.decode(np.array([260, 257])) == "<|endoftext|>low"


def test_the_end_as_plain_text():
    """No token of it can be had from any text; decoding is the same."""
    tokenizer = tokenizers.byte_pairs("tiny", tokenizers.read_merges(TINY), special=False)
    letters = [tokenizers._PLACES[byte] for byte in b"<|endoftext|>"]
    assert tokenizer.encode("low<|endoftext|>low").tolist() == [257, *letters, 257]
    assert tokenizer.vocabulary_size == 261 and tokenizer.decode(np.array([260, 257])) == "<|endoftext|>low"
    assert list(tokenizers.pieces(tokenizer, tokenizer.encode("é<|endoftext|>"))) == ["é", *"<|endoftext|>"]


def test_half_a_character_is_replaced():
    tokenizer = tokenizers.byte_pairs("tiny", tokenizers.read_merges(TINY))
    tokens = tokenizer.encode("lowé")
    assert tokenizer.decode(tokens[:-1]) == "low\ufffd" and tokenizer.decode(tokens[-1:]) == "\ufffd"
    assert tokenizer.decode(np.array([])) == ""


@given(st.text(), st.lists(st.integers(0, 255)))
@example("".join(AWKWARD), [])
def test_pieces_are_the_text(content, more):
    """Of any tokens; of a text, without a half of a character."""
    tokens = PAIRS.encode(content).tolist()
    found = list(tokenizers.pieces(PAIRS, tokens))
    assert "".join(found) == content and ("\ufffd" in content or not any("\ufffd" in piece for piece in found))
    assert "".join(tokenizers.pieces(PAIRS, tokens + more)) == PAIRS.decode(np.array(tokens + more))


# the file


@pytest.mark.parametrize("argument", ["data_dir", "manual_dir", None])
def test_the_file_on_disk_is_read_once(tiny, tmp_path, monkeypatch, user_cache, argument):
    tiny(tmp_path if argument == "manual_dir" else tmp_path / "gpt2")
    where = {argument: tmp_path} if argument else {}
    if not argument:
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    first = tokenizers.gpt2(**where)
    monkeypatch.setattr(tokenizers, "_vocabulary", None)
    names = ("gpt2", "gpt2_ordinary")
    for name, tokenizer in (("gpt2", first), *((name, tokenizers.load(name, "any", **where)) for name in names)):
        assert tokenizer.name == name and tokenizer.vocabulary_size == 261
        assert tokenizer.encode("low lower").tolist() == [257, 258, 259]
        assert (260 in tokenizer.encode("low<|endoftext|>")) == (name == "gpt2")
    assert [path.name for path in user_cache.iterdir()] == ["gpt2-merges2.arrays"]


class Response:
    def __init__(self, content):
        self.content = content

    def raise_for_status(self):
        pass


def test_downloaded_once(tiny, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(requests, "get", lambda url, timeout: asked.append(url) or Response(TINY.encode()))
    for _ in range(2):
        assert tokenizers.gpt2(data_dir=tmp_path).encode("low").tolist() == [257]
    assert asked == [tokenizers.GPT2_URL]


def refuse(url, timeout):
    raise requests.ConnectionError("no network\nin a test")


@pytest.mark.parametrize(
    "get, there, said",
    [
        (refuse, None, r"cannot download https://\S*/vocab.bpe \(ConnectionError\); put that file into {} and start"),
        (
            lambda url, timeout: Response(b"<html>"),
            None,
            r"https://\S*/vocab.bpe is damaged or another file .*; put the",
        ),
        (None, TINY[:-1], r"{}/vocab.bpe is damaged or another file .*; put the right one into {} and start again"),
        (None, "", r"{}/vocab.bpe is damaged or another file"),
    ],
)
def test_a_file_that_cannot_be_had(tiny, tmp_path, monkeypatch, user_cache, get, there, said):
    monkeypatch.setattr(requests, "get", get)
    if there is not None:
        tiny(tmp_path / "gpt2", there)
    with pytest.raises(UserError, match="^gpt2: " + said.replace("{}", re.escape(str(tmp_path / "gpt2")))) as raised:
        tokenizers.gpt2(data_dir=tmp_path)
    assert "\n" not in str(raised.value) and not user_cache.exists()


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "gpt2" / "vocab.bpe").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^gpt2: cannot read \S*/gpt2/vocab.bpe \(Is a directory\); check that it"):
        tokenizers.gpt2(data_dir=tmp_path)


def test_any_changed_byte_of_the_kept_merges(tiny, tmp_path, user_cache, caplog):
    """They are read from vocab.bpe again."""
    tiny(tmp_path / "gpt2")
    expected = tokenizers.gpt2(data_dir=tmp_path)
    (kept,) = user_cache.iterdir()
    content = kept.read_bytes()
    for place in range(len(content)):
        kept.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        caplog.clear()
        tokenizer = tokenizers.gpt2(data_dir=tmp_path)
        assert tokenizer.vocabulary_size == expected.vocabulary_size
        assert tokenizer.encode("low lower").tolist() == expected.encode("low lower").tolist()
        assert f"{kept} is damaged" in caplog.text and kept.read_bytes() == content


# mistakes


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: tokenizers.load("gpt", "x"), "unknown tokenizer 'gpt'; did you mean gpt2?"),
        (lambda: LETTERS.encode("ab%"), "character 2 of the text, '%', is not in the vocabulary; leave it out or use"),
        (lambda: LETTERS.decode(np.array([0, 3])), "token 3 is out of range, characters-"),
        (lambda: PAIRS.decode(np.array([0, 257])), "token 257 is out of range, pairs has 0 to 256; decode with the"),
        (lambda: PAIRS.decode(np.array([-1])), "token -1 is out of range"),
        (lambda: PAIRS.encode("ab\ud83d"), "character 2 of the text, '\\ud83d', is a surrogate, which is no"),
    ],
)
def test_mistakes(call, said):
    with pytest.raises(UserError, match=f"^{re.escape(said)}") as raised:
        call()
    assert "\n" not in str(raised.value)


# the real one

DATA = Path(os.environ.get("TFDS_DATA_DIR") or "absent")
FOLDERS = (
    DATA / "gpt2",
    DATA.parent / "raw" / "tokenizer_vocab",
)  # where the code looks, and where upstream's files lie


@pytest.fixture
def folder():
    found = [folder for folder in FOLDERS if (folder / "vocab.bpe").exists()]
    return found[0] if found else pytest.skip("no vocab.bpe for GPT-2 beside TFDS_DATA_DIR")


@pytest.mark.parametrize(
    "content, tokens",
    [
        ("", []),
        ("We'll see,  in 2019\n\n ...", [1135, 1183, 766, 11, 220, 287, 13130, 628, 2644]),
        ("naïve cafe\u0301 ²½五", [2616, 38776, 26725, 136, 223, 1587, 110, 23141, 49390]),
        ("🙂 你好", [8582, 25081, 220, 19526, 254, 25001, 121]),
        ("a\xa0b\x1c!\x85 \t x", [64, 1849, 65, 216, 0, 126, 227, 220, 197, 2124]),
        ("def f(x):\n    return x", [4299, 277, 7, 87, 2599, 198, 220, 220, 220, 1441, 2124]),
        ("<|endoftext|>one<|endoftext|>", [50256, 505, 50256]),
    ],
)
def test_known_tokens(folder, content, tokens):
    """As tiktoken 0.14 encodes them."""
    tokenizer = tokenizers.gpt2(manual_dir=folder)
    assert tokenizer.vocabulary_size == 50_257
    assert tokenizer.encode(content).tolist() == tokens and tokenizer.decode(tokens) == content


@pytest.mark.parametrize(
    "content, tokens",
    [
        ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]),
        ("We'll see", [1135, 1183, 766]),
    ],
)
def test_known_ordinary_tokens(folder, content, tokens):
    """As tiktoken's encode_ordinary."""
    tokenizer = tokenizers.gpt2(manual_dir=folder, special=False)
    assert tokenizer.encode(content).tolist() == tokens and tokenizer.decode(tokens) == content


@pytest.fixture
def encoder(folder):
    """OpenAI's other file, which says the same: {symbol: token}."""
    if not (folder / "encoder.json").exists():
        pytest.skip("no encoder.json beside vocab.bpe")
    return json.loads((folder / "encoder.json").read_text(encoding="utf-8"))


def test_the_vocabulary_is_openai_s(folder, encoder):
    tokenizer = tokenizers.gpt2(manual_dir=folder)
    hidden = [*range(33), *range(127, 161), 173]
    assert sorted(encoder.values()) == list(range(tokenizer.vocabulary_size))
    for symbol, token in encoder.items():
        content = bytes(ord(letter) if ord(letter) < 256 else hidden[ord(letter) - 256] for letter in symbol)
        assert tokenizer.decode(np.array([token])) == content.decode(errors="replace")


def test_as_hugging_face_encodes(folder, encoder):
    theirs = pytest.importorskip("tokenizers").ByteLevelBPETokenizer.from_file(
        str(folder / "encoder.json"), str(folder / "vocab.bpe")
    )
    theirs.add_special_tokens([tokenizers.END])
    ours = tokenizers.gpt2(manual_dir=folder)
    for content in AWKWARD:
        assert ours.encode(content).tolist() == theirs.encode(content).ids
        assert ours.decode(ours.encode(content)) == content


@pytest.mark.skipif(not (DATA / "tiny_shakespeare").is_dir(), reason="not in TFDS_DATA_DIR")
def test_shakespeare(folder):
    """Karpathy's nanoGPT counts 301,966 tokens in the same first 90 % of the characters."""
    tokenizer = tokenizers.gpt2(manual_dir=folder)
    data = text.load("tiny_shakespeare", length=1, tokenizer=tokenizer, data_dir=DATA)
    tokens = data.train.arrays["tokens"]
    assert tokens.shape == (301_965, 2) and tokens.dtype == np.uint16
    assert tokenizer.decode(tokens[:3, 0]) == "First Citizen:"
