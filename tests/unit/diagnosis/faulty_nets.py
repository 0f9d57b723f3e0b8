"""Small calibrated networks, each healthy or with one fault."""

from dataclasses import replace

import numpy as np
from contexts import calibrated
from models import Net

from qtool.data.dataset import Dataset
from qtool.data.spool import ArraySource
from qtool.diagnosis.facts import Facts, Settings
from qtool.diagnosis.measurements import measure
from qtool.diagnosis.trials import Trials
from qtool.quant.bit_widths import Bits, Widths
from qtool.quant.freeze import freeze
from qtool.quant.primitives import QuantParams

CHANNELS, CLASSES, ROWS = 16, 10, 64
DROP = 40.0
"""Points that each faulty network is said to have lost."""


def chain(spread: float = 0.0, branches: float = 0.0) -> Net:
    """Return three convolutions and a Gemm.

    Args:
        spread: channels between the first two are scaled by exp(U(-spread, spread)), and back.
        branches: factor between the two inputs of a Concat behind the pools; 0: no Concat.
    """
    net = Net(seed=5)
    rng = np.random.default_rng(1)
    scale = np.exp(rng.uniform(-spread, spread, CHANNELS))
    first = rng.normal(0, 0.3, (CHANNELS, 3, 3, 3)) * scale[:, None, None, None]
    second = rng.normal(0, 0.12, (CHANNELS, CHANNELS, 3, 3)) / scale[None, :, None, None]
    x = net.input("x", "N", 3, 8, 8)
    for weight, bias in ((first, rng.normal(0, 0.1, CHANNELS) * scale), (second, None)):
        bias = rng.normal(0, 0.1, CHANNELS) if bias is None else bias
        conv = net.add("Conv", x, net.const(weight), net.const(bias), pads=[1] * 4)
        x = net.add("Relu", conv)
    width = CHANNELS
    if branches:
        wide = rng.normal(0, 0.12, (CHANNELS, CHANNELS, 3, 3)) * branches
        other = net.add("Conv", x, net.const(wide), net.const(np.zeros(CHANNELS)), pads=[1] * 4)
        both = [net.add("GlobalAveragePool", y) for y in (net.conv(x, CHANNELS, CHANNELS), other)]
        x = net.add("Concat", *both, axis=1, name="join")
        width = 2 * CHANNELS
    else:
        x = net.add("GlobalAveragePool", x)
    x = net.add("Flatten", x)
    head = rng.normal(0, 1, (CLASSES, width))
    if branches:
        head[:, CHANNELS:] /= 1000 * branches  # what the narrow branch says decides
    return net.output(
        net.add("Gemm", x, net.const(head), net.const(np.zeros(CLASSES)), transB=1, out="y")
    )


def facts_of(
    net: Net,
    bits: Bits | None = None,
    change=None,
    samples: int = 512,
    feeds=None,
    data=None,
    **settings,
) -> tuple[Facts, Trials]:
    """Return the facts of a calibrated network, and trials on its holdout samples.

    Args:
        net: the network.
        bits: of the recipe.
        change: made to the plan before it is frozen.
        samples: the number that the recipe is said to have.
        feeds: changes the samples that statistics are measured on.
        data: changes all samples.
        settings: of the recipe.
    """
    plan, context = calibrated(net, bits, ROWS, change=data)
    if change is not None:
        plan = change(plan, context)
    unfrozen, plan = plan, freeze(context.model, plan)
    measured = context.fit
    if feeds is not None:
        arrays = {"x": feeds(next(iter(measured.batches(measured.count)))["x"].copy())}
        measured = Dataset(measured.names, ArraySource(arrays), tuple(range(measured.count)))
    made = Settings(samples=samples, **settings)
    facts = Facts(context, plan, unfrozen, measure(context, plan, measured), made)
    return facts, Trials(context, plan, context.holdout, DROP)


def scaled_grid(factor: float, value: str = ""):
    """Return a change that scales the grid of one activation; by default of the second layer's."""

    def change(plan, context):
        outputs = [site.output for site in plan.sites.values() if site.weight is not None]
        grid = plan.grid_of[value or outputs[1]]
        old = plan.grids[grid]
        assert isinstance(old, QuantParams)
        new = QuantParams(old.spec, old.scale * np.float32(factor), old.zero_point)
        return replace(plan, grids={**plan.grids, grid: new})

    return change


def shifted_bias(amount: float):
    """Return a change that adds a constant to the biases of the second layer."""

    def change(plan, context):
        site = [s for s in plan.sites.values() if s.weight is not None][1]
        value = next(v for v in context.model.graph.initializers.values() if v.name == site.bias)
        return plan.with_bias_shift(site.bias, value, np.linspace(-amount, amount, CHANNELS))

    return change


def narrow_layer(bits: int) -> Bits:
    """Return the bits of a recipe in which the second convolution has fewer."""
    return Bits(layers={"Conv2": Widths(bits, 8)})
