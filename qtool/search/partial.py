"""Find the fewest layers that must be more precise: float, 16 or 8 bits."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import chain, combinations

# Of so few layers all sets that are smaller by two and more are tried too.
FEW = 6


def fewest_raised(
    ranked: Sequence[str],
    keeps: Callable[[frozenset[str]], bool],
    trim: int = 8,
    few: int = FEW,
) -> frozenset[str] | None:
    """Return a small set of layers with which the accuracy is kept.

    The shortest prefix of the ranking that keeps it is found by bisection; then layers are taken
    out one by one, the cheapest ones first, where the accuracy is kept without them. Of up to six
    layers all sets that are smaller by two and more are tried too, so that the result has at most
    one layer more than the smallest set.

    Source: Wu et al. 2020, sec. 4.2 ("partial quantization"), arXiv:2004.09602.
    Departure: layers of the prefix that turn out not to be needed are quantized again.

    Args:
        ranked: layers, the most damaging first.
        keeps: whether the accuracy is kept with these layers raised; called on held-out samples.
        trim: how many layers to try to take out.
        few: layers of which smaller sets are tried too.

    Returns:
        The layers to raise; None where raising all of them does not keep the accuracy.
    """
    if keeps(frozenset()):
        return frozenset()
    if not ranked or not keeps(frozenset(ranked)):
        return None
    # No prefix and the whole ranking are measured: the shortest one lies between them.
    lengths = range(len(ranked))
    length = bisect_left(lengths, True, 1, key=lambda k: keeps(frozenset(ranked[:k])))
    raised = frozenset(ranked[:length])
    # The last of the prefix is needed: without it the accuracy was not kept.
    for name in list(ranked[: length - 1])[::-1][:trim]:
        if keeps(raised - {name}):
            raised -= {name}
    if len(ranked) > few:
        return raised
    smaller = chain.from_iterable(combinations(ranked, n) for n in range(1, len(raised) - 1))
    return next((some for some in map(frozenset, smaller) if keeps(some)), raised)


def with_one_quantized(ranked: Sequence[str], layers: int) -> list[str]:
    """Return the layers that can become float: without the last where a ranking names all layers.

    A network of float layers alone is not a quantized one.

    Args:
        ranked: layers, the most damaging first.
        layers: number of quantized layers of the network.
    """
    return list(ranked if len(ranked) < layers else ranked[:-1])
