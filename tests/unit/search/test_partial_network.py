"""Nothing quantized is the float network; everything quantized is the simulation, to the bit."""

import numpy as np
import pytest
from contexts import calibrated
from models import BUILDERS

from qtool.quant.bit_widths import Bits
from qtool.search.partial_network import PartialNetwork


@pytest.mark.parametrize("name", BUILDERS)
def test_all_units_are_the_simulation_and_none_the_float_network(name):
    plan, context = calibrated(BUILDERS[name](), Bits(weights=4), rows=6)
    network, data = PartialNetwork(context, plan), context.calibration
    assert {unit.name for unit in network.units} >= set(plan.sites)
    none = network.run(context, data, lambda unit: None)
    assert np.array_equal(none, context.outputs(data))
    both = network.run(context, data, lambda unit: "both")
    assert np.array_equal(both, context.outputs(data, plan))
    assert not np.array_equal(none, both)


def test_parts_of_a_unit_differ():
    plan, context = calibrated(BUILDERS["residual"](), Bits(weights=4), rows=6)
    network, data = PartialNetwork(context, plan), context.calibration
    first = network.units[0]
    outputs = [
        network.run(context, data, lambda unit, part=part: part if unit == first else None)
        for part in (None, "weights", "activations", "both")
    ]
    for k, one in enumerate(outputs):
        assert all(not np.array_equal(one, other) for other in outputs[k + 1 :])
