"""The set that is raised keeps the accuracy and has few layers more than the smallest one."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.search.partial import fewest_raised, with_one_quantized


def additive(costs, limit):
    """Accuracy is kept while the costs of the layers that are not raised sum to the limit."""
    calls = []

    def keeps(raised):
        calls.append(raised)
        return sum(cost for name, cost in costs.items() if name not in raised) <= limit

    return keeps, calls


def test_one_poisoned_layer_of_twenty_is_raised_alone():
    costs = {f"layer{k}": 0.01 for k in range(20)} | {"layer7": 50.0}
    keeps, calls = additive(costs, 1.0)
    ranked = sorted(costs, key=lambda name: -costs[name])
    assert fewest_raised(ranked, keeps) == {"layer7"} and ranked[0] == "layer7"
    assert len(calls) <= 7


def test_nothing_is_raised_where_nothing_needs_it():
    keeps, calls = additive({"a": 0.1}, 1.0)
    assert fewest_raised(["a"], keeps) == frozenset() and len(calls) == 1
    assert fewest_raised(["a"], lambda raised: False) is None
    assert fewest_raised(["a"], lambda raised: False, few=0) is None
    assert fewest_raised([], lambda raised: False) is None


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=6),
    st.floats(0, 20),
    st.randoms(use_true_random=False),
)
def test_at_most_one_more_than_the_smallest_set(costs, limit, random):
    named = {f"layer{k}": cost for k, cost in enumerate(costs)}
    keeps, _ = additive(named, limit)
    ranked = sorted(named, key=lambda name: -named[name])
    raised = fewest_raised(ranked, keeps, few=0)
    assert raised is not None and keeps(raised)
    smallest = next(
        size
        for size in range(len(named) + 1)
        if any(keeps(frozenset(some)) for some in combinations(named, size))
    )
    assert len(raised) <= smallest + 1


@given(st.sets(st.integers(0, 63)))
def test_of_few_layers_no_set_is_smaller_by_two_whatever_keeps_the_accuracy(kept):
    """Errors of layers may cancel: neither are costs additive, nor is more in float better."""
    named = [f"layer{k}" for k in range(6)]
    sets = {frozenset(n for k, n in enumerate(named) if bits >> k & 1) for bits in {*kept, 63}}
    calls = []
    raised = fewest_raised(named, lambda some: calls.append(some) or some in sets)
    assert raised in sets and len(raised) <= min(map(len, sets)) + 1
    assert len(calls) <= 70
    assert fewest_raised(named, lambda some: calls.append(some) and False) is None


def test_a_layer_that_was_ranked_too_high_is_taken_out():
    costs = {"a": 0.0, "b": 5.0, "c": 4.0, "d": 0.1}
    keeps, _ = additive(costs, 1.0)
    assert fewest_raised(["a", "b", "c", "d"], keeps, few=0) == {"b", "c"}


@pytest.mark.parametrize("trim", [0, 1])
def test_trimming_is_bounded(trim):
    costs = {"a": 0.0, "b": 0.0, "c": 5.0}
    keeps, _ = additive(costs, 1.0)
    assert len(fewest_raised(["a", "b", "c"], keeps, trim, few=0)) == 3 - trim


def test_a_network_never_becomes_float_as_a_whole():
    assert with_one_quantized(["a", "b"], 3) == ["a", "b"]
    assert with_one_quantized(["a", "b", "c"], 3) == ["a", "b"]
    assert with_one_quantized(["a"], 1) == []
