"""The scale kind a recipe asks for, from its key to the grids of a frozen plan."""

from dataclasses import replace

import numpy as np
import pytest
from models import BUILDERS, Net, bind, cpu, feeds_for, make_grids, make_plan, rewritten

from qtool.calibration import MSE
from qtool.errors import RecipeError
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import BIAS_LIMIT, freeze
from qtool.quant.primitives import Codebook
from qtool.quant.scale_formats import as_integers
from qtool.recipe.model import Bits as RequestedBits
from qtool.recipe.sections.layer_bits import resolve_bits
from qtool.weights import SCHEMES
from qtool.weights.scale_constraints import SCALES, ScaleKind, request_scale_kind


def planned(model, bits: Bits, scheme=None):
    plan = make_plan(model, cpu(), bits)
    return make_grids(model, plan, [feeds_for(model, seed=1)], MSE(), scheme)


def network(name: str, tmp_path):
    model = BUILDERS[name]().load(tmp_path)
    bind(model, feeds_for(model))
    rewritten(model)
    return model


def asked(**keys) -> str:
    bits = resolve_bits(RequestedBits(**keys), Net().output().model(), cpu())
    return bits.scale


def test_the_key_becomes_a_kind():
    assert asked() == "float"
    assert asked(scale="power_of_two") == "power_of_two"
    assert asked(scale="fixed_point") == "fixed_point:16"
    assert asked(scale={"fixed_point": {"width": 12}}) == "fixed_point:12"
    assert set(SCALES) == {"float", "power_of_two", "double_shift", "fixed_point"}


@pytest.mark.parametrize("name", SCALES)
def test_every_scale_kind_fulfils_the_protocol(name):
    """Its kind is its name, with options behind a colon, and one that rescaling understands."""
    entry: ScaleKind = SCALES[name]()
    assert entry.kind.partition(":")[0] == name
    assert as_integers(np.float64(0.5), entry.kind).value == 0.5


def test_weights_alone_have_no_scale_kind():
    with pytest.raises(RecipeError, match=r"bits\.scale: power_of_two is about integer layers"):
        asked(scale="power_of_two", weights=4, activations="float")
    assert asked(scale="float", weights=4, activations="float") == "float"


@pytest.mark.parametrize("kind", ["power_of_two", "double_shift"])
def test_all_scales_of_integer_layers_have_the_form(kind, tmp_path):
    plan = planned(network("residual", tmp_path), Bits(scale=kind))
    for site in plan.sites.values():
        for value in site.inputs:
            assert np.frexp(plan.params(value).scale)[0] == 0.5
        if site.weight is not None:
            w = plan.params(site.weight)
            assert w.spec.scale_kind == kind
            assert as_integers(w.scale.astype(np.float64), kind).value.shape == w.scale.shape


def test_float_ops_keep_their_scales(tmp_path):
    """A code book of a float op's weights is widened to floats at load: any scale does."""
    net = Net()
    x = net.add("Gather", net.weight(64, 16, name="rows"), net.input("i", "N", dtype=7))
    x = net.add("Gemm", x, net.weight(5, 16), net.weight(5), transB=1, name="mm")
    model = net.output(net.add("Gemm", x, net.weight(5, 5), out="y")).load(tmp_path)
    plan = request_scale_kind(make_plan(model, cpu(), Bits()), "power_of_two")
    assert plan.weight_only == {"rows"}
    assert plan.spec("rows").scale_kind == "float"
    assert plan.spec(plan.sites["mm"].weight).scale_kind == "power_of_two"
    assert plan.spec(plan.sites["mm"].bias).scale_kind == "float"


@pytest.mark.parametrize("scheme", ["kmeans", "ternary"])
def test_code_books_take_the_form_and_new_codes(scheme, tmp_path):
    """Codes that the scheme chose for its own scale are chosen again for the one they get."""
    model = network("residual", tmp_path)
    bits = Bits(weights=2 if scheme == "ternary" else 4, scale="power_of_two")
    plan = freeze(model, planned(model, bits, SCHEMES[scheme]()))
    narrow = [s for s in plan.sites.values() if isinstance(plan.params(s.weight or ""), Codebook)]
    assert narrow
    for site in narrow:
        book = plan.params(site.weight)
        assert np.all(np.frexp(book.scale)[0] == 0.5)
        assert set(np.unique(plan.codes[site.weight])) <= set(book.levels)


@pytest.mark.parametrize("kind", ["power_of_two", "double_shift", "fixed_point:16"])
def test_a_scale_widened_for_its_bias_keeps_the_form(kind, tmp_path):
    net = Net()
    weight = np.random.default_rng(0).normal(0, 1, (4, 4, 1, 1))
    weight[2] *= 1e-9
    x = net.add("Conv", net.input("x", "N", 4, 4, 4), net.const(weight),
                net.const(np.full(4, 50.0)))  # fmt: skip
    model = net.output(net.conv(x, 4, 2, out="y")).load(tmp_path)
    bind(model, feeds_for(model))
    found = planned(model, Bits(scale=kind))
    plan = freeze(model, found)
    site = next(iter(plan.sites.values()))
    before, after = found.params(site.weight).scale, plan.params(site.weight).scale
    assert after[2] > before[2] and np.array_equal(after[[0, 1, 3]], before[[0, 1, 3]])
    assert np.frexp(after[2] / before[2])[0] == 0.5
    assert np.abs(plan.codes[site.bias]).max() <= BIAS_LIMIT
    assert any("widened" in line for line in plan.log)


def test_a_snapped_plan_is_another_shape_than_a_float_one(tmp_path):
    """So that a plan file made for one kind is refused for another."""
    from qtool.quant.plan import same_structure

    model = network("residual", tmp_path)
    plan = make_plan(model, cpu(), Bits())
    assert same_structure(plan, replace(plan))
    assert not same_structure(plan, request_scale_kind(plan, "power_of_two"))
