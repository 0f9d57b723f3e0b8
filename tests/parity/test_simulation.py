"""The float simulation and the parity check on whole networks, against the emitted file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from models import (
    BUILDERS,
    Net,
    bind,
    feeds_for,
    frozen_plan,
    quantized,
    rewritten,
    run,
    scale_of,
    sqnr,
)

from qtool.graph.queries import by_name, macs
from qtool.quant.bit_widths import FLOAT, Bits
from qtool.quant.primitives import QuantParams, fake_quantize
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import Simulation, constant_tensor, raw_edges
from qtool.verification.captured_outputs import (
    MOST_SAMPLES,
    capturable_values,
    sample_count,
    with_outputs,
)
from qtool.verification.layers.noise import measure_layers
from qtool.verification.parity import Count, _in_steps, compare


def network(name: str, tmp_path: Path) -> ir.Model:
    model = BUILDERS[name]().load(tmp_path)
    bind(model, feeds_for(model))
    rewritten(model)
    return model


def captured(
    model: ir.Model, emitted: ir.Model, plan, folder: Path, count: int = 2
) -> dict[str, str]:
    """Write captures as the verifying process does: inputs and every watched value."""
    names = capturable_values(emitted, plan)
    watched = with_outputs(emitted, names)
    for k in range(count):
        feeds = feeds_for(model, rows=2, seed=50 + k)
        values = run(watched, feeds)
        arrays = {f"o{j}": values[name] for j, name in enumerate(names)}
        np.savez(folder / f"{k}.npz", **arrays, **{f"i:{n}": a for n, a in feeds.items()})
    return names


@pytest.mark.parametrize("name", BUILDERS)
def test_the_file_computes_what_the_kernels_say(name, tmp_path):
    model = network(name, tmp_path)
    emitted, plan = quantized(model)
    names = captured(model, emitted, plan, tmp_path)
    counts = compare(model, plan, tmp_path, names, 2)
    assert counts.integer.total > 0
    assert (counts.integer.off, counts.integer.largest, counts.worst) == (0, 0, {})
    assert counts.after_float.off == 0


def test_a_damaged_code_is_counted_where_it_is(tmp_path):
    """One code of one layer, changed by three steps, counts at that layer and at its readers."""
    model = network("residual", tmp_path)
    emitted, plan = quantized(model)
    names = captured(model, emitted, plan, tmp_path, 1)
    site = list(plan.sites.values())[1]
    index = list(names).index(f"{site.output}_quantized")
    with np.load(tmp_path / "0.npz") as archive:
        arrays = {n: archive[n].copy() for n in archive.files}
    flat = arrays[f"o{index}"].reshape(-1)
    flat[7] = flat[7] - 3 if flat[7] > 100 else flat[7] + 3
    np.savez(tmp_path / "0.npz", **arrays)
    counts = compare(model, plan, tmp_path, names, 1)
    assert counts.worst[site.output] == 1
    assert counts.integer.largest >= 3
    assert 0 < counts.integer.share < 0.1


def test_a_simulation_of_other_weights_is_noticed(tmp_path):
    model = network("depthwise", tmp_path)
    emitted, plan = quantized(model)
    names = captured(model, emitted, plan, tmp_path, 1)
    site = next(iter(plan.sites.values()))
    wrong = plan.codes[site.weight].copy()
    wrong.reshape(-1)[0] += 40 if wrong.reshape(-1)[0] < 0 else -40
    counts = compare(
        model, replace(plan, codes={**plan.codes, site.weight: wrong}), tmp_path, names, 1
    )
    assert counts.worst.keys() == {site.output}


@pytest.mark.parametrize("name", BUILDERS)
def test_the_float_simulation_is_close_to_the_file(name, tmp_path):
    """What differs are values within a float's error of a half, one step each: below -40 dB."""
    model = network(name, tmp_path)
    emitted, plan = quantized(model)
    feeds = feeds_for(model, seed=9)
    file = run(emitted, feeds)["y"]
    simulated = Simulation(model, plan)(feeds)["y"].numpy()
    assert sqnr(file, simulated) > 40
    assert 15 < sqnr(run(model, feeds)["y"], file) < 70  # and the file is not the float network


@pytest.mark.parametrize("name", BUILDERS)
def test_constants_are_those_of_the_file(name, tmp_path):
    model = network(name, tmp_path)
    emitted, plan = quantized(model)
    initializers = emitted.graph.initializers
    assert plan.codes
    for constant in plan.codes:
        codes = initializers[f"{constant}_quantized"].const_value.numpy().astype(np.float64)
        scale = scale_of(by_name(emitted.graph)[f"{constant}_scale"]).astype(np.float64)
        params = plan.params(constant)
        shape = [1] * codes.ndim
        if scale.ndim:
            shape[params.spec.granularity.axis] = -1
        want = ((codes - params.zero_point.max()) * scale.reshape(shape)).astype(np.float32)
        assert np.array_equal(constant_tensor(plan, constant).numpy(), want)


def test_rounding_twice_changes_nothing(tmp_path):
    model = network("conv_bn_relu", tmp_path)
    plan = frozen_plan(model)
    simulation, feeds = Simulation(model, plan), feeds_for(model)
    rounded = fake_quantize(torch.from_numpy(feeds["x"]), plan.params("x"))
    assert not torch.equal(rounded, torch.from_numpy(feeds["x"]))
    assert torch.equal(simulation(feeds)["y"], simulation({"x": rounded})["y"])


def test_a_plan_without_grids_is_the_float_network(tmp_path):
    model = network("residual", tmp_path)
    plan = frozen_plan(model)
    feeds = feeds_for(model)
    free = replace(plan, grid_of={}, codes={}, sites={}, data_movement_ops=frozenset())
    assert torch.equal(Simulation(model, free)(feeds)["y"], Executor(model)(feeds)["y"])


def normed_twice_read() -> Net:
    """LayerNormalization's value goes to a product (in integers) and to an Add (in float)."""
    net = Net()
    x = net.input("x", "N", 8)
    h = net.add("LayerNormalization", x, net.weight(8), net.weight(8), out="h")
    z = net.add("MatMul", h, net.weight(8, 8))
    z = net.add("LayerNormalization", z, net.weight(8), net.weight(8))
    return net.output(net.add("Add", z, h, out="y", name="add"))


def test_a_float_op_reads_what_a_float_op_wrote(tmp_path):
    """The file feeds it the unrounded value, and so does the simulation."""
    model = normed_twice_read().load(tmp_path)
    bind(model, feeds_for(model))
    rewritten(model)
    emitted, plan = quantized(model)
    assert "h" in plan.grid_of
    simulation, feeds = Simulation(model, plan), feeds_for(model, seed=4)
    assert simulation.raw == {("add", "h")}
    file = run(emitted, feeds)["y"]
    close = sqnr(file, simulation(feeds)["y"].numpy())
    simulation.raw = frozenset()
    assert close > 40 > sqnr(file, simulation(feeds)["y"].numpy())


def test_a_float_op_behind_an_integer_op_reads_its_codes(tmp_path):
    model = network("residual", tmp_path)
    plan = frozen_plan(model, Bits(layers=dict.fromkeys({"Add5"}, FLOAT)))
    assert any(site.output in plan.grid_of for site in plan.sites.values())
    assert not raw_edges(model, plan) & {("Add5", v) for v in plan.grid_of}


def test_the_layer_table_points_at_the_worst_layer(tmp_path):
    model = network("residual", tmp_path)
    plan = frozen_plan(model)
    batches = [feeds_for(model, seed=3)]
    before = measure_layers(model, plan, batches)
    assert set(before) == {s.name for s in plan.sites.values() if s.weight}
    assert all(noise.alone.db > 30 for noise in before.values())
    bad = list(plan.sites.values())[1]
    grid = plan.params(bad.weight)
    coarse = QuantParams(grid.spec, grid.scale * 16, grid.zero_point)
    codes = np.rint(plan.codes[bad.weight] / 16).astype(np.int8)
    worse = replace(
        plan, grids={**plan.grids, bad.weight: coarse}, codes={**plan.codes, bad.weight: codes}
    )
    after = measure_layers(model, worse, batches)
    assert min(after, key=lambda name: after[name].alone.db) == bad.name
    assert after[bad.name].alone.db < before[bad.name].alone.db - 10
    others = set(before) - {bad.name}
    assert all(
        after[name].alone.db == pytest.approx(before[name].alone.db, abs=1e-9) for name in others
    )


def test_a_layer_that_loses_nothing_has_no_number(tmp_path):
    net = Net()
    x = net.input("x", "N", 4)
    net.output(net.add("Gemm", x, net.const(np.eye(4)), out="y"))
    model = net.load(tmp_path)
    bind(model, feeds_for(model))
    plan = frozen_plan(model)
    step = float(plan.params("x").scale)
    batch = {"x": (np.arange(8).reshape(2, 4) * np.float32(step)).astype(np.float32)}
    noise = measure_layers(model, plan, [batch])["Gemm0"].alone
    assert noise.signal > 0
    assert noise.db is None or noise.db > 120  # 1 = 127 * float32(1 / 127), nearly


def test_counts_add_up():
    count = Count()
    assert count.share == 0
    assert count.add(torch.tensor([1.0, 2, 3]), np.array([1, 2, 3], np.uint8)) == 0
    assert count.add(torch.tensor([1.0, 255]), np.array([3, 255], np.uint8)) == 1
    assert (count.total, count.off, count.largest, count.share) == (5, 1, 2, 0.2)


def test_floats_differ_by_steps_of_their_range_and_not_by_the_code_they_round_to():
    step = np.float32(1 / 2**15)
    got = np.array([1, 2.5 * step, 3 * step], np.float32)
    expected = torch.tensor([1.0, np.nextafter(got[1], np.float32(1)), 5 * step])
    count = Count()
    assert count.add(*_in_steps(expected, got)) == 1  # 2.5 steps and a bit: two codes, one value
    assert (count.total, count.largest) == (3, 2)
    odd = np.array([np.nan, np.inf, np.inf], np.float32)
    count.add(*_in_steps(torch.tensor([np.nan, np.inf, 1.0]), odd))
    assert (count.total, count.off) == (6, 2)


def test_parity_affords_fewer_samples_of_a_large_network(tmp_path):
    model = network("conv_bn_relu", tmp_path)
    each = sum(macs(node) for node in model.graph)
    assert each > 0
    assert sample_count(model, 1000) == MOST_SAMPLES
    assert sample_count(model, 5) == 5
