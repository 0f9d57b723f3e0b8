"""Target files: what is read from them, and every way to get one wrong."""

import pytest
import yaml

from qtool.errors import RecipeError
from qtool.quant.primitives import PerChannel, QuantSpec
from qtool.rewrites import REWRITES, SAMPLE_REWRITES
from qtool.targets.loader import config_folder, load_target, target_names
from qtool.targets.target import FORMS

CPU = config_folder("targets") / "onnxruntime-cpu.yaml"


@pytest.mark.parametrize("name", target_names())
def test_shipped_targets_load_and_name_what_exists(name):
    target = load_target(name)
    assert target.name == name
    assert set(target.rewrites) <= set(REWRITES)
    assert set(target.sample_rewrites) <= set(SAMPLE_REWRITES)
    assert {rule.form for rule in target.ops.values()} <= set(FORMS)
    # ONNX Runtime would; others do what Q and DQ say.
    assert ("Conv" in target.requantizes) == (target.runtime in ("onnxruntime", "an NPU"))


def test_what_the_cpu_file_says():
    target = load_target("onnxruntime-cpu")
    assert target.activations == QuantSpec(8, False, False)
    assert target.weights == QuantSpec(8, True, True, PerChannel(0))
    conv = target.ops["Conv"]
    assert (conv.form, conv.weight, conv.bias, conv.absorbs) == ("weighted", 1, 2, ("Relu", "Clip"))
    assert target.ops["Add"].inputs == () and target.ops["Gemm"].when == {"transA": 0}


def refused(path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_target(str(path))
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_an_unknown_name_gets_the_nearest_one():
    text = refused("onnxruntime-cpi")
    assert 'did you mean "onnxruntime-cpu"?' in text and "give the path of a .yaml file" in text


def test_a_path_works_and_needs_no_requantizes(tmp_path):
    raw = yaml.safe_load(CPU.read_text())
    del raw["requantizes"]
    path = tmp_path / "mine.yml"
    path.write_text(yaml.safe_dump(raw))
    assert load_target(str(path)).requantizes == ()


@pytest.mark.parametrize("content", [None, b"ops: [", b"\xff\xfe\x00bad", b"a: &x\n  - *y"])
def test_unreadable_files(content, tmp_path):
    path = tmp_path / "t.yaml"
    if content is not None:
        path.write_bytes(content)
    assert refused(path).startswith(f"target {path}: cannot be read: ")


@pytest.mark.parametrize("content", ["", "3", "- a", "text"])
def test_a_file_that_is_no_mapping(content, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(content)
    assert f"target {path}: expected a mapping, found" in refused(path)


KEYS = ["name", "description", "measured", "opset", "activations", "weights", "ops", "rewrites"]


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key(key, tmp_path):
    assert f'key "{key}" is missing' in edited(tmp_path, lambda raw: raw.pop(key))


def edited(tmp_path, edit) -> str:
    """The message about the shipped file after an edit."""
    raw = yaml.safe_load(CPU.read_text())
    edit(raw)
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(raw))
    text = refused(path)
    assert text.startswith(f"target {path}: ")
    return text.removeprefix(f"target {path}: ")


EDITS = [
    (lambda r: r.update(rewrite=[]), 'unknown key "rewrite"; did you mean "rewrites"?'),
    (lambda r: r.update(ops=["Conv"]), "ops: expected a mapping, found ['Conv']"),
    (lambda r: r.update(ops=None), "ops: expected a mapping, found None"),
    (lambda r: r["ops"].update(Conv="weighted"), "ops.Conv: expected a mapping, found str"),
    (lambda r: r["ops"].update(Conv={}), 'ops.Conv: key "form" is missing'),
    (lambda r: r["ops"]["Conv"].update(form="waited"), 'did you mean "weighted"?'),
    (lambda r: r["ops"]["Conv"].update(form=["weighted"]), "ops.Conv.form"),
    (lambda r: r["ops"]["Conv"].update(absorb=[]), 'did you mean "absorbs"?'),
    (lambda r: r["ops"]["Conv"].update(absorbs="Relu"), "ops.Conv.absorbs: expected a list"),
    (lambda r: r["ops"]["Conv"].update(absorbs=[1]), "ops.Conv.absorbs: expected a text, found 1"),
    (lambda r: r["ops"]["Conv"].update(weight="1"), "ops.Conv.weight: expected an integer"),
    (lambda r: r["ops"]["Conv"].pop("weight"), 'ops.Conv: key "weight" is missing'),
    (lambda r: r["ops"]["Conv"].update(output="floats"), 'output: "floats" is not one of'),
    (lambda r: r["ops"]["Conv"].update(when=[1]), "ops.Conv.when: expected a mapping"),
    (lambda r: r["ops"]["Add"].update(inputs=0), "ops.Add.inputs: expected a list, found 0"),
    (lambda r: r["ops"]["Pad"].update(on_codes="yes"), "on_codes: expected true or false"),
    (lambda r: r["ops"]["Pad"].update(on_codes_bits="8"), "on_codes_bits: expected an integer"),
    (lambda r: r["ops"]["Pad"].pop("on_codes"), "on_codes_bits: of use only with on_codes: true"),
    (lambda r: r["ops"]["Pad"].update(on_code_bits=8), 'did you mean "on_codes_bits"?'),
    (lambda r: r.update(weights=8), "weights: expected a mapping, found int"),
    (lambda r: r["weights"].pop("bits"), 'weights: key "bits" is missing'),
    (lambda r: r["weights"].update(bits="8"), "weights.bits: expected an integer, found '8'"),
    (lambda r: r["weights"].update(bits=True), "weights.bits: expected an integer, found True"),
    (lambda r: r["weights"].update(signed=1), "weights.signed: expected true or false, found 1"),
    (lambda r: r["weights"].update(granularity="row"), 'granularity: "row" is not one of'),
    (lambda r: r["weights"].update(granularity=["channel"]), "granularity"),
    (lambda r: r.update(opset="21"), "opset: expected an integer, found '21'"),
    (lambda r: r.update(name=3), "name: expected a text, found 3"),
    (lambda r: r.update(rewrites="fold_pad"), "rewrites: expected a list, found 'fold_pad'"),
    (lambda r: r.update(requantizes={}), "requantizes: expected a list, found {}"),
    (lambda r: r.update(packing="int4"), "packing: expected a list, found 'int4'"),
    (lambda r: r.update(packing=["int3"]), 'packing: "int3" is not one of int4, int2, bytes'),
    (lambda r: r.update(packing=[4]), "packing: expected a text, found 4"),
    (lambda r: r.update(opsets=[21]), "opsets: expected [oldest, newest] around its opset 21"),
    (lambda r: r.update(opsets=[22, 25]), "opsets: expected [oldest, newest] around its opset 21"),
    (lambda r: r.update(opsets=[21, 99]), "and up to 26, found [21, 99]"),
    (lambda r: r.update(formats=[]), "formats: expected at least one of qdq, qoperator, qonnx"),
    (lambda r: r.update(formats=["qop"]), 'formats: "qop" is not one of qdq, qoperator, qonnx'),
    (lambda r: r.update(granularities=["row"]), 'granularities: "row" is not one of channel'),
    (lambda r: r.update(bias="int16"), 'bias: "int16" is not one of int32, float'),
    (lambda r: r.update(isa="amx"), "isa: expected a list, found 'amx'"),
    (lambda r: r.update(unsigned_where_positive=1), "expected true or false, found 1"),
    (lambda r: r["ops"]["Add"].update(fused_into="Conv"), "ops.Add.fused_into: expected a list"),
    (lambda r: r["activations"].update(narrow=0), "activations.narrow: expected true or false"),
    (lambda r: r.update(group_channels="32"), "group_channels: expected an integer, found '32'"),
    (lambda r: r.update(weight_zero_point=-1), "weight_zero_point: expected a mapping, found int"),
    (lambda r: r.update(weight_zero_point={"value": -1}), 'weight_zero_point: key "min_k" is'),
    (
        lambda r: r.update(weight_zero_point={"value": 1, "min_k": 1, "min_macs": 1}),
        "weight_zero_point.value: expected -1, found 1",
    ),
    (lambda r: r.update(weigth_zero_point={}), 'did you mean "weight_zero_point"'),
    (lambda r: r.update(like="onnxruntime"), 'like: "onnxruntime" is not one of'),
]


def test_a_file_like_another_says_only_what_differs(tmp_path):
    path = tmp_path / "mine.yaml"
    own = {"name": "mine", "description": "d", "measured": "nothing"}
    path.write_text(yaml.safe_dump({"like": "onnxruntime-cpu", **own, "requantizes": []}))
    target, base = load_target(str(path)), load_target("onnxruntime-cpu")
    assert (target.name, target.measured, target.requantizes) == ("mine", "nothing", ())
    assert (target.ops, target.widths, target.packing) == (base.ops, base.widths, base.packing)


@pytest.mark.parametrize("key", ["name", "description", "measured"])
def test_what_a_file_like_another_must_say_itself(key, tmp_path):
    path = tmp_path / "mine.yaml"
    own = {"name": "mine", "description": "d", "measured": "nothing"}
    path.write_text(
        yaml.safe_dump({"like": "onnxruntime-cpu", **own, key: None}).replace(f"{key}: null\n", "")
    )
    assert f'key "{key}" is missing' in refused(path)


def test_likeness_has_one_step(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"like": "onnxruntime-arm64", "name": "mine"}))
    assert "is itself like another; name that one" in refused(path)


@pytest.mark.parametrize(("edit", "complaint"), EDITS, ids=range(len(EDITS)))
def test_a_wrong_value(edit, complaint, tmp_path):
    assert complaint in edited(tmp_path, edit)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("float_patterns", ["box_decoding"], 'did you mean "box_decode"?'),
        ("no_gain", ["AveragePol"], 'did you mean "AveragePool"?'),
        ("island_gain_db", 0, "expected a number of dB above 0"),
        ("island_gain_db", True, "expected a number of dB above 0"),
    ],
)
def test_keys_of_placement_are_checked(key, value, words, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(CPU.read_text()), key: value}))
    assert key in refused(path) and words in refused(path)


def test_a_target_may_have_no_patterns_and_no_islands(tmp_path):
    raw = yaml.safe_load(CPU.read_text())
    changes = {"float_patterns": [], "no_gain": [], "island_gain_db": None}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**raw, **changes}))
    target = load_target(str(path))
    assert (target.float_patterns, target.no_gain, target.island_gain_db) == ((), (), None)
