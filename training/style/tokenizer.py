# SPDX-License-Identifier: Apache-2.0
"""A CLIP tokenizer whose vocabulary is learnt from prompts by byte-pair encoding."""

from collections import Counter
from itertools import pairwise

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from .prompts import Prompts

START, END = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(prompts: Prompts, vocabulary: int, length: int) -> CLIPTokenizer:
    """Make a CLIP tokenizer that knows the words of the prompts and spells all others.

    The byte-pair encoding is learnt here: the library's own trainer breaks ties by chance, and a
    training that is resumed needs the same tokens again.

    Args:
        vocabulary: largest number of tokens; 514 are there before any is learnt.
        length: tokens of a prompt.
    """
    parts = CLIPTokenizer().backend_tokenizer
    texts = [prompts.instance, *(p for ways in prompts.styles.values() for p in ways)]
    words = Counter(
        (*word[:-1], word[-1] + "</w>")
        for text in texts
        for word, _ in parts.pre_tokenizer.pre_tokenize_str(parts.normalizer.normalize_str(text))
    )
    bytes_ = sorted(ByteLevel.alphabet())
    tokens = [START, END, *bytes_, *(byte + "</w>" for byte in bytes_)]
    merges: list[tuple[str, str]] = []
    while len(tokens) < vocabulary:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        first, second = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((first, second))
        tokens.append(first + second)
        words = Counter({_merged(word, first, second): n for word, n in words.items()})
    numbers = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=length)


def _merged(word: tuple[str, ...], first: str, second: str) -> tuple[str, ...]:
    """Merge every `first` followed by `second` in a word's symbols."""
    symbols, rest = [], list(word)
    while rest:
        symbol = rest.pop(0)
        if symbol == first and rest and rest[0] == second:
            symbol += rest.pop(0)
        symbols.append(symbol)
    return tuple(symbols)
