"""Torch models become ONNX files: one form from both exporters, made once, equal to torch."""

import collections
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch_nets import INPUTS, source, write_nets

from qtool.errors import UnsupportedError
from qtool.loading.pytorch import export as exporting
from qtool.loading.pytorch import loader as loading
from qtool.loading.pytorch.export import eval_mode, export_module
from qtool.loading.pytorch.factory import build, import_factory
from qtool.loading.pytorch.loader import TensorInput, TorchSource, export_to, load_torch
from qtool.runtime.ort_session import OrtSession
from qtool.user_code import isolated_imports


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


@pytest.fixture
def place(tmp_path):
    def at(parts):
        return tmp_path / "stages" / f"float-{abs(hash(parts))}.onnx"

    return at


@pytest.fixture
def net(folder):
    with isolated_imports(folder):
        return build("nets:net", import_factory("nets:net", folder)[0]).eval()


def weighted(model):
    kinds = ("Conv", "BatchNormalization", "Relu", "Gemm", "Add")
    return [(n.name, n.op_type) for n in model.graph if n.op_type in kinds]


def test_a_factory_with_weights_becomes_a_file_that_computes_the_same(folder, place, net):
    nn.init.normal_(net.fc.bias)
    torch.save(net.state_dict(), folder / "w.pth")
    loaded = load_torch(source(folder, weights=folder / "w.pth"), place)
    ops = collections.Counter(n.op_type for n in loaded.model.graph)
    assert ops["BatchNormalization"] == ops["Conv"] == 3
    assert loaded.name == loaded.shown == "nets:net"
    assert loaded.path.is_file() and loaded.path.parent.name == "stages"
    assert any("torch and ONNX agree" in note for note in loaded.notes)
    assert [str(v.name) for v in (*loaded.model.graph.inputs, *loaded.model.graph.outputs)] == [
        "image",
        "output",
    ]
    for rows in (1, 5):
        x = torch.randn(rows, 3, 8, 8)
        with OrtSession(loaded.model) as session:
            output = session({"image": x.numpy()})["output"]
        with torch.no_grad():
            # Float32 sums of at most 72 products, in another order.
            np.testing.assert_allclose(output, net(x).numpy(), atol=1e-5)


def test_nodes_are_called_after_modules_by_both_exporters(net):
    feeds = {"image": torch.randn(2, 3, 8, 8)}
    with eval_mode(net):
        first, notes = export_module(net, INPUTS, feeds, ["output"], True)
        second, more = export_module(net, INPUTS, feeds, ["output"], True, ["tracing"])
    assert weighted(first) == weighted(second)
    assert ("/layer1/layer1.0/conv1/Conv", "Conv") in weighted(first)
    assert ("/stem/stem.1/BatchNormalization", "BatchNormalization") in weighted(first)
    assert notes == more == []
    names = [n.name for n in first.graph]
    assert len(set(names)) == len(names)
    assert not any(n.metadata_props for n in first.graph)


def test_an_export_is_made_once(folder, place, monkeypatch):
    first = load_torch(source(folder), place)
    before = first.path.stat().st_mtime_ns
    monkeypatch.setattr(loading, "export_module", lambda *args: 1 / 0)
    again = load_torch(source(folder), place)
    assert (again.path, again.sha256, again.notes) == (first.path, first.sha256, first.notes)
    assert again.path.stat().st_mtime_ns == before
    with pytest.raises(ZeroDivisionError):
        load_torch(source(folder), place, fresh=True)


def test_changed_weights_and_changed_sources_are_exported_again(folder, place, net):
    torch.save(net.state_dict(), folder / "w.pth")
    first = load_torch(source(folder, weights=folder / "w.pth"), place)
    nn.init.zeros_(net.fc.bias)
    torch.save(net.state_dict(), folder / "w.pth")
    second = load_torch(source(folder, weights=folder / "w.pth"), place)
    (folder / "blocks.py").write_text((folder / "blocks.py").read_text() + "\n# changed\n")
    third = load_torch(source(folder, weights=folder / "w.pth"), place)
    assert len({first.path, second.path, third.path}) == 3
    assert len({first.sha256, second.sha256, third.sha256}) == 3


def test_the_path_is_searched_only_while_importing(folder, place):
    import sys

    before = list(sys.path)
    load_torch(source(folder), place)
    assert sys.path == before


def test_what_the_users_code_prints_stays_off_stdout(folder, place, capfd):
    load_torch(source(folder), place)
    out, err = capfd.readouterr()
    assert out == ""
    assert "the factory prints" in err


WRAPPED = [
    (lambda state: {"state_dict": state, "epoch": 3}, 'taken from "state_dict"'),
    (lambda state: {"model": {"state_dict": state}}, 'taken from "model"'),
    (lambda state: {f"module.{k}": v for k, v in state.items()}, 'the prefix "module."'),
    (lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()}, None),
    (lambda state: {"model_state_dict": state}, 'taken from "model_state_dict"'),
]


@pytest.mark.parametrize(("wrap", "note"), WRAPPED)
def test_wrapped_weights_are_unwrapped_in_the_open(net, tmp_path, wrap, note):
    from qtool.loading.pytorch.checkpoint import load_weights

    state = {name: value + 1 for name, value in net.state_dict().items()}
    torch.save(wrap(state), tmp_path / "w.pth")
    notes = load_weights(net, tmp_path / "w.pth")
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert notes and (note is None or note in notes[0])


def test_safetensors_are_read(net, tmp_path):
    from qtool.loading.pytorch.checkpoint import load_weights

    state = {name: value + 1 for name, value in net.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    assert load_weights(net, tmp_path / "w.safetensors") == []
    assert torch.equal(net.fc.bias, state["fc.bias"])


def test_a_program_keeps_its_names_and_its_dynamic_batch(net, tmp_path, place):
    shapes = {"image": {0: torch.export.Dim("rows")}}
    program = torch.export.export(net, (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = load_torch(TorchSource(str(tmp_path / "net.pt2")), place)
    assert ("/layer1/layer1.0/conv1/Conv", "Conv") in weighted(loaded.model)
    assert isinstance(loaded.model.graph.inputs[0].shape[0].value, str)
    assert loaded.shown == str(tmp_path / "net.pt2")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_is_exported_by_tracing(net, tmp_path, place):
    torch.jit.save(torch.jit.trace(net, torch.randn(2, 3, 8, 8)), tmp_path / "net.pt")
    loaded = load_torch(TorchSource(str(tmp_path / "net.pt"), None, INPUTS), place)
    assert ("/layer1/layer1.0/conv1/Conv", "Conv") in weighted(loaded.model)
    assert "TorchScript: exported by tracing" in loaded.notes


class Two(nn.Module):
    def forward(self, ids, mask):
        masked = (ids * 2 - mask).float()
        return {"sum": masked.sum(1), "pair": (masked, masked.mean(1))}


def test_where_the_newer_exporter_fails_the_other_one_is_used_and_it_is_said(net, monkeypatch):
    monkeypatch.setattr(exporting, "_dynamic", lambda inputs: 1 / 0)
    feeds = {"image": torch.randn(2, 3, 8, 8)}
    with eval_mode(net):
        model, notes = export_module(net, INPUTS, feeds, ["output"], True)
    assert ("/layer1/layer1.0/conv1/Conv", "Conv") in weighted(model)
    assert "exported by tracing" in notes[0] and "division by zero" in notes[0]


def test_attention_is_traced_and_its_fused_form_stays_for_others(tmp_path):
    module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    inputs = [TensorInput("src", ("N", 5, 8))]
    loaded = export_to(module, inputs, tmp_path / "x.onnx", exporters=["tracing"])
    assert any("torch and ONNX agree" in note for note in loaded.notes)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_16_bit_networks_are_compared_within_their_own_rounding(tmp_path, kind):
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).to(getattr(torch, kind))
    loaded = export_to(module, [TensorInput("x", ("N", 64), kind)], tmp_path / "x.onnx")
    dtype = loaded.model.graph.inputs[0].dtype
    assert dtype is not None and dtype.name == ("FLOAT16" if kind == "float16" else "FLOAT")
    note = next(note for note in loaded.notes if "torch and ONNX agree" in note)
    # Rounded to 8 bits a bfloat16 network is further from the float32 graph than float32 allows.
    assert (float(note.split()[7]) > 1e-3) == (kind == "bfloat16")


def test_what_torch_prints_from_c_stays_off_stdout(tmp_path, capfd):
    inputs = [TensorInput("x", ("N", 8))]
    with pytest.raises(UnsupportedError, match="rms_norm"):
        export_to(nn.RMSNorm(8), inputs, tmp_path / "x.onnx", exporters=["tracing"])
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("exporter", exporting.EXPORTERS)
def test_several_inputs_and_outputs_keep_their_names(tmp_path, exporter):
    inputs = [TensorInput(name, ("N", "T"), "int64") for name in ("mask", "ids")]
    module = Two().train()
    export_to(module, inputs, tmp_path / "two.onnx", exporters=[exporter])
    assert module.training
    import onnx_ir as ir

    graph = ir.load(tmp_path / "two.onnx").graph
    assert [v.name for v in graph.inputs] == ["ids", "mask"]
    assert [v.name for v in graph.outputs] == ["sum", "pair_0", "pair_1"]
    notes = json.loads(ir.load(tmp_path / "two.onnx").metadata_props["qtool.notes"])
    assert any("torch and ONNX agree" in note for note in notes)
