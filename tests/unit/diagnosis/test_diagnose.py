"""Each fault is named and its change gains points; its healthy twin triggers nothing."""

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import yaml
from contexts import calibrated
from faulty_nets import CHANNELS, DROP, chain, facts_of, narrow_layer, scaled_grid, shifted_bias
from models import Net

from qtool.annotation.layer_patterns import name_pattern
from qtool.diagnosis.diagnose import MIN_GAIN, MIN_SHARE, _finding, diagnose, lost_points, ranked
from qtool.diagnosis.facts import Settings
from qtool.diagnosis.replacements import exact_weights
from qtool.diagnosis.rules import RULES
from qtool.diagnosis.trials import exact
from qtool.graph.original import original, store_original
from qtool.pruning.method import pruned_layers, with_masks
from qtool.quant.bit_widths import FLOAT, Bits
from qtool.recipe.loader import load_recipe
from qtool.report.report import Accuracy, Finding, Gate

RULE = {rule.name: rule for rule in RULES}


@dataclass(frozen=True)
class Fault:
    """A rule, the network that must trigger it, and the twin that must not."""

    rule: str
    faulty: dict[str, Any]
    healthy: dict[str, Any]
    words: str
    net: dict[str, Any] = field(default_factory=dict)
    twin: dict[str, Any] = field(default_factory=dict)


def outliers(x):
    """Put a sentinel into a few samples."""
    x[::16, 0, 0, 0] = 300
    return x


def growing(x):
    """Make the second half of the samples three times as large."""
    x[len(x) // 2 :] *= 3
    return x


SPREAD = {"spread": 3.0}
TENSOR = Bits(granularity="tensor")
FAULTS = [
    Fault("activation_channel_ranges", {}, {}, "equalize", SPREAD),
    Fault(
        "weight_channel_ranges", {"bits": TENSOR}, {}, "channel", {"spread": 3.0}, {"spread": 3.0}
    ),
    # The twin of each loses by the other part.
    Fault("weights", {"bits": Bits(2, 8)}, {"bits": Bits(8, 2)}, "no step that repairs it"),
    Fault("activations", {"bits": Bits(8, 2)}, {"bits": Bits(2, 8)}, "activations to 2 bits"),
    Fault("worst_layers", {"bits": narrow_layer(2)}, {}, "One layer is far noisier"),
    Fault("saturation", {"change": scaled_grid(0.1)}, {}, "saturate"),
    Fault("bias_shift", {"change": shifted_bias(0.5)}, {}, "shifts the mean"),
    Fault("outlier", {"change": scaled_grid(100.0, "x"), "feeds": outliers}, {}, "outliers"),
    Fault("shared_grid", {}, {}, "share one grid", net={"branches": 300.0}, twin={"branches": 1.0}),
    Fault("unconverged_ranges", {"samples": 48, "data": growing}, {"samples": 48}, "converged"),
]


def test_every_rule_has_a_fault_and_a_source():
    assert [fault.rule for fault in FAULTS] == [rule.name for rule in RULES]
    assert all("arXiv" in rule.source and rule.threshold > 0 for rule in RULES)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.rule)
def test_the_fault_is_suspected_and_its_words_say_so(fault):
    facts, trials = facts_of(chain(**fault.net), **fault.faulty)
    rule = RULE[fault.rule]
    suspects = rule.suspects(facts, trials)
    assert suspects and list(suspects.values()) == sorted(suspects.values(), reverse=True)
    advice = rule.advise(facts, suspects)
    assert fault.words in " ".join((advice.finding, *advice.lines))
    assert advice.evidence and advice.lines and advice.bytes >= 0


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.rule)
def test_the_trial_of_the_fault_gains_at_least_half_of_the_drop(fault):
    facts, trials = facts_of(chain(**fault.net), **fault.faulty)
    finding = _finding(RULE[fault.rule], facts, trials)
    assert finding is not None
    assert DROP / 2 <= finding.predicted_gain_points <= DROP


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.rule)
def test_the_healthy_twin_triggers_nothing(fault):
    facts, trials = facts_of(chain(**fault.twin), **fault.healthy)
    assert RULE[fault.rule].suspects(facts, trials) == {}


@pytest.mark.parametrize(("points", "is_named"), [(0.9, False), (1.1, True)])
def test_a_trial_that_gains_less_than_a_tenth_of_a_point_is_no_finding(points, is_named):
    """Exact weights recover everything: the gain is the drop."""
    facts, trials = facts_of(chain(), Bits(2, 8))
    finding = _finding(RULE["weights"], facts, replace(trials, drop=points * MIN_GAIN))
    assert (finding is not None) == is_named


def test_what_joins_values_and_what_reads_them_become_float():
    """The trial of the advice and the plan of its lines recover the same."""
    net = chain(branches=300.0)
    facts, trials = facts_of(net)
    rule = RULE["shared_grid"]
    lines = yaml.safe_load("\n".join(rule.advise(facts, rule.suspects(facts, trials)).lines))
    assert lines == {"bits": {"layers": {"name:join": "float", "name:Gemm10": "float"}}}
    plan, _ = calibrated(net, Bits(layers={"join": FLOAT, "Gemm10": FLOAT}))
    assert trials.gain_of_plan(plan) == pytest.approx(DROP, abs=0.1)
    # The join alone leaves one grid for the input of the layer behind it.
    plan, _ = calibrated(net, Bits(layers={"join": FLOAT}))
    assert trials.gain_of_plan(plan) == 0


def test_a_trial_is_compared_with_another_one():
    facts, trials = facts_of(chain(), Bits(2, 8))
    first, *_ = facts.layers
    everything = exact_weights(facts, facts.layers)
    one = exact_weights(facts, [first])
    assert trials.gain(everything, one) == pytest.approx(DROP - trials.gain(one), abs=1e-3)
    assert trials.gain(one, everything) == 0


def test_what_removed_channels_cost_is_not_called_rounding():
    facts, _ = facts_of(chain(), Bits(2, 8))
    context = facts.context
    settings = replace(facts.settings, removes_channels=True)
    found = diagnose(context, facts.plan, facts.calibrated, settings, DROP)
    assert found[0].predicted_gain_points >= DROP / 2
    store_original(context.model)
    head = list(original(context.model).graph)[-1].inputs[1]
    head.const_value = ir.tensor(np.roll(head.const_value.numpy(), 1, 0))  # all classes change
    (found, *others) = diagnose(context, facts.plan, facts.calibrated, settings, DROP)[::-1]
    assert found.finding.startswith("Removing channels costs 100% of the loss")
    assert not others


def test_more_bits_do_not_bring_pruned_weights_back():
    def pruned(plan, context):
        layers, _ = pruned_layers(context.model, {}, 0.9)
        rng = np.random.default_rng(0)
        masks = {x.weight: x.mask(rng.random(x.value.shape.numpy())) for x in layers}
        return with_masks(plan, layers, masks)

    facts, trials = facts_of(chain(), Bits(4, 8), change=pruned, steps=("gptq",))
    suspects = RULE["weights"].suspects(facts, trials)
    advice = RULE["weights"].advise(facts, suspects)
    assert advice.lines == ("bits: {weights: 8}",)
    assert trials.gain(exact_weights(facts, facts.layers)) > DROP / 2 > trials.gain(advice.trial())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.rule)
def test_the_lines_are_a_recipe(fault, tmp_path):
    facts, trials = facts_of(chain(**fault.net), **fault.faulty)
    rule = RULE[fault.rule]
    lines = rule.advise(facts, rule.suspects(facts, trials)).lines
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    (tmp_path / "data").mkdir()
    recipe = {"model": "net.onnx", "calibrate": {"images": "data"}}
    for key, value in yaml.safe_load("\n".join(lines)).items():
        recipe[key] = {**recipe[key], **value} if key in recipe else value
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        ("activation_channel_ranges", 0.5),
        ("weights", 0.5),
        ("worst_layers", 0.5),
        ("saturation", 0.5),
        ("bias_shift", 0.5),
    ],
)
def test_the_diagnosis_names_the_fault_and_its_gain(rule, least):
    fault = next(fault for fault in FAULTS if fault.rule == rule)
    bits = fault.faulty.get("bits") or (TENSOR if rule == "activation_channel_ranges" else None)
    facts, _ = facts_of(chain(**fault.net), **{**fault.faulty, "bits": bits})
    findings = diagnose(facts.context, facts.plan, facts.calibrated, facts.settings, DROP)
    words = [" ".join((each.finding, *each.recipe_lines)) for each in findings[:3]]
    (named,) = (each for each, text in zip(findings, words, strict=False) if fault.words in text)
    assert least * DROP <= named.predicted_gain_points <= DROP
    assert named is findings[0] or rule == "worst_layers"  # a repair of all layers costs no bytes
    assert all(each.predicted_gain_points >= MIN_SHARE * DROP for each in findings)


def test_exact_values_recover_everything():
    facts, trials = facts_of(chain(), Bits(2, 8))
    names = dict.fromkeys(facts.plan.grid_of, exact)
    assert trials.gain(names) == pytest.approx(DROP, abs=1e-3)  # a distance of 1e-7 remains
    assert trials.gain({}) == 0.0


@pytest.mark.parametrize(
    ("accuracy", "gates", "points"),
    [
        ({"drop": 0.5}, [], 0.0),
        ({"drop": 0.51}, [], 0.51),
        ({"drop": 0.3}, [("max_drop", False)], 0.3),
        ({"drop": 0.3}, [("max_bytes", False)], 0.0),
        ({"drop": -1.0}, [("max_drop", False)], 0.0),
        ({"agreement": 95.0}, [], 0.0),
        ({"agreement": 90.0}, [], 10.0),
        ({"agreement": 97.0}, [("min_agreement", False)], 3.0),
        ({}, [], 0.0),
        (None, [], 0.0),
    ],
)
def test_only_a_noticeable_loss_is_diagnosed(accuracy, gates, points):
    part = None if accuracy is None else Accuracy(samples=9, **accuracy)
    made = [Gate(name=name, limit=0, value=1, passed=passed) for name, passed in gates]
    assert lost_points(part, made) == pytest.approx(points)  # 100 - 97 in doubles


def test_findings_with_the_same_lines_are_shown_once():
    findings = [
        Finding(finding=name, evidence="", recipe_lines=lines, predicted_gain_points=gain)
        for name, lines, gain in [("a", ["x"], 1.0), ("b", ["y"], 3.0), ("c", ["x"], 2.0)]
    ]
    slow = Finding(finding="slow", evidence="")
    assert [each.finding for each in ranked([*findings, slow])] == ["b", "c", "slow"]


def test_channels_of_a_one_dimensional_convolution_are_axis_1():
    net, rng = Net(seed=5), np.random.default_rng(1)
    x = net.input("x", "N", 3, 20)
    for read in (3, CHANNELS):
        weight, bias = rng.normal(0, 0.3, (CHANNELS, read, 3)), rng.normal(0, 0.1, CHANNELS)
        x = net.add("Relu", net.add("Conv", x, net.const(weight), net.const(bias), pads=[1, 1]))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.output(net.add("Gemm", x, net.const(rng.normal(0, 1, (10, CHANNELS))), transB=1, out="y"))
    facts, _ = facts_of(net)
    convolutions = [site for site in facts.layers.values() if site.op == "Conv"]
    assert len(convolutions) == 2
    for site in convolutions:
        assert facts.measured.sites[site.name].mean_error.shape == (CHANNELS,)
        assert facts.measured.values[site.output].limits.shape == (CHANNELS,)
    assert facts.measured.values["x"].limits.shape == (3,)


def test_names_with_quotes_and_brackets_stand_in_recipe_lines():
    line = Settings(layers={"first": "8"}).layer_line({name_pattern('a"[0]'): "float"})
    widths = yaml.safe_load(line)
    assert widths == {"first": 8, 'name:a"[[]0]': "float"}
    assert fnmatchcase('a"[0]', list(widths)[1].removeprefix("name:"))


def test_eight_bits_for_all_weights_hold_for_layers_that_the_recipe_names():
    mixed = {
        "first": '{"weights": 8}',
        "name:a": '{"weights": 5, "activations": 16}',
        "name:b": '{"weights": "float", "activations": "float"}',
        "name:c": '{"activations": 4}',
    }
    bits = yaml.safe_load("\n".join(Settings(layers=mixed).lines_of_8_bits()))["bits"]
    assert bits["weights"] == 8
    assert bits["layers"] == {
        "first": {"weights": 8},
        "name:a": {"weights": 8, "activations": 16},
        "name:b": {"weights": "float", "activations": "float"},
        "name:c": {"activations": 4},
    }
    assert Settings(layers={"first": '{"weights": 8}'}).lines_of_8_bits() == ("bits: {weights: 8}",)


def test_every_gate_of_the_outputs_asks_for_a_diagnosis():
    accuracy = Accuracy(samples=100, drop=0.3)
    for name in ("min_accuracy", "max_regression", "max_drop"):
        gate = Gate(name=name, limit=1, value=2, passed=False)
        assert lost_points(accuracy, [gate]) == 0.3
    assert lost_points(accuracy, [Gate(name="max_bytes", limit=1, value=2, passed=False)]) == 0


def test_what_the_recipe_does_already_is_not_advised():
    for steps, lines in (
        ((), ("ptq: [gptq, bias_correction]",)),
        (("gptq", "bias_correction"), ()),
    ):
        facts, _ = facts_of(chain(), steps=steps)
        assert RULE["weights"].advise(facts, {"weights": 0.5}).lines == lines
