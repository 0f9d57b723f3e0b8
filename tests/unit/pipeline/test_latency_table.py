"""The times of layers: every kernel of a layer is counted as its, in floats and in integers."""

import pytest

from qtool.graph.queries import by_name, sample_elements
from qtool.pipeline.context import RunOptions
from qtool.pipeline.search.latency_table import measure_latency
from qtool.pipeline.search.trial import TrialRunner
from qtool.recipe.loader import load_recipe
from qtool.steps.stage_cache import temporary_cache


def test_every_layer_has_its_time_in_both_files(digits, tmp_path):
    recipe = load_recipe(digits / "int8.yaml", ["calibrate.count=8", "ptq=[]"])
    with temporary_cache() as cache:
        runner = TrialRunner.of(recipe, cache, RunOptions(threads=1), tmp_path)
        plan, context = runner.quantized(recipe)
        names = [name for name, site in plan.sites.items() if site.weight is not None]
        table = measure_latency(runner, recipe, names)
        pairs = {(names[edge.source], names[edge.reader]): edge for edge in table.conversions}
        _check_conversions(pairs, names, plan, by_name(context.model.graph))
    for times, total in (
        (table.float_ms, table.total_float),
        (table.integer_ms, table.total_integer),
    ):
        assert all(times[name] > 0 for name in names)
        assert total / 2 < sum(times.values()) <= total
    assert table.rest == pytest.approx(table.total_integer - sum(table.integer_ms.values()))


def _check_conversions(pairs, names, plan, values):
    """Check the layers that read from one another, through sums too, and that elements take time.

    The digits network has three sums, of which one is read by the next block alone.
    """
    assert all(names.index(source) < names.index(reader) for source, reader in pairs)
    direct = {plan.sites[name].output: name for name in names}
    for name in names:
        for value in plan.sites[name].inputs:
            if value in direct:
                assert (direct[value], name) in pairs
    adds = {"/blocks/blocks.0/pointwise/pointwise.0/Conv", "/reduce/reduce.0/Conv"}
    behind = "/blocks/blocks.1/conv/conv.0/Conv"
    assert {source for source, reader in pairs if reader == behind} == adds
    readers = {reader for _, reader in pairs}
    assert set(names) - readers <= {names[0]}  # the first reads the image
    # The time of a value is that of its elements, in equal shares for the layers of a sum.
    rates = []
    for (_, reader), edge in pairs.items():
        shares = sum(name == reader for _, name in pairs)
        elements = sample_elements(values[plan.sites[reader].inputs[0]])
        for amounts in (edge.to_codes, edge.to_floats):
            rates.append(amounts["latency"] * shares / elements)
    assert min(rates) > 0
    assert rates[::2] == pytest.approx([rates[0]] * len(pairs))
    assert rates[1::2] == pytest.approx([rates[1]] * len(pairs))
