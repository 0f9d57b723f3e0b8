"""Names of layers, runs and files in a report: safe to show, and cut where they do not differ."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

_WORD = re.compile(r"[^/._,=:\s]+")


def clean(text: str) -> str:
    """Replace what a terminal or XML could act on (control, bidi and unassigned characters)."""
    return "".join("\ufffd" if unicodedata.category(char)[0] == "C" else char for char in text)


def shorten(text: str, width: int) -> str:
    """Cut the middle out of a long name, since names differ at both ends."""
    text = clean(text)
    if len(text) <= width:
        return text
    head = (width - 1) // 3
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def short_names(names: Sequence[str], width: int) -> list[str]:
    """Cut names to a width, word by word, in what they share.

    From a name that is too long the words go that it repeats, then those that most names have, of
    these first the ones far from its rarest words. From each other name it keeps a word
    that the other one has not, where there is one. What is still too long is cut in the middle.

    Args:
        names: shown together.
        width: of the longest result.
    """
    texts = [clean(name) for name in names]
    keys = [_keys(_words(text)) for text in texts]
    counts = Counter(key for each in keys for key in set(each))
    for position, text in enumerate(texts):
        if len(text) > width:
            others = [(texts[k], set(keys[k])) for k in range(len(texts)) if k != position]
            texts[position] = _cut(text, width, counts, others)
    return [shorten(text, width) for text in texts]


def _cut(
    text: str, width: int, counts: Mapping[str, int], others: Sequence[tuple[str, set[str]]]
) -> str:
    """Leave words out of one name until it fits, or until only its rarest words are left.

    Args:
        text: the name.
        width: that it has to fit.
        counts: key of a word -> names that have it.
        others: the other names as they are shown, with the keys of all their words.
    """
    words = _words(text)
    keys = _keys(words)
    shares = [counts[key] for key in keys]
    own = [k for k, share in enumerate(shares) if share == min(shares)]
    apart = [theirs for _, theirs in others if not set(keys) <= theirs]
    taken = {shown for shown, _ in others}
    left = list(range(len(words)))

    def order(k: int) -> tuple[bool, int, int, int]:
        """Return how well a word can be spared."""
        word = words[k].group()
        # Equal numbers count other things, unless one follows the other: layer1/layer1.0.
        repeats = not _has_digit(word) or (k + 1 in left and words[k + 1].group() == word)
        repeated = repeats and sum(words[each].group() == word for each in left) > 1
        return repeated, shares[k], min(abs(k - rare) for rare in own), len(word)

    while len(text) > width and len(left) > 1:
        for k in sorted(left, key=order, reverse=True):
            rest = [each for each in left if each != k]
            shown = _with_gaps(words, rest)
            rest_keys = {keys[each] for each in rest}
            if shown not in taken and not any(rest_keys <= theirs for theirs in apart):
                text, left = shown, rest
                break
        else:
            break
    return text


def _words(text: str) -> list[re.Match[str]]:
    """Return the words between the separators of a name."""
    return list(_WORD.finditer(text))


def _keys(words: Sequence[re.Match[str]]) -> list[str]:
    """Return what identifies each word: itself, and the word before it where it has a number.

    The 2 of features.2 is another one than that of conv.2.
    """
    texts = ["", *(word.group() for word in words)]
    return [f"{before} {word}" if _has_digit(word) else word for before, word in pairwise(texts)]


def _has_digit(word: str) -> bool:
    return any(char.isdigit() for char in word)


def _with_gaps(words: Sequence[re.Match[str]], left: Sequence[int]) -> str:
    """Return a name of which some words are left, with an ellipsis for the others."""
    text = words[0].string
    shown = text[: words[0].start()] if left[0] == 0 else "…"
    for before, k in zip([None, *left], left, strict=False):
        if before is not None:
            near = before == k - 1
            shown += text[words[before].end() : words[k].start()] if near else "…"
        shown += words[k].group()
    return shown + (text[words[-1].end() :] if left[-1] == len(words) - 1 else "…")
