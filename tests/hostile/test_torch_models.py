"""Torch models that are wrong: one sentence, the right exit code, nothing run without trust."""

import pickle

import pytest
import torch
from torch import nn
from torch_nets import INPUTS, source, write_nets

from qtool.errors import ModelError, UnsupportedError
from qtool.loading.pytorch.checkpoint import load_weights
from qtool.loading.pytorch.factory import build, import_factory
from qtool.loading.pytorch.loader import TensorInput, TorchSource, export_to, load_torch
from qtool.user_code import isolated_imports


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def refused(torch_source, folder, kind=ModelError):
    with pytest.raises(kind) as caught:
        load_torch(torch_source, lambda parts: folder / "stages" / "float.onnx")
    assert not list(folder.glob("stages/*"))
    text = str(caught.value)
    assert "\n" not in text
    return text


FACTORIES = [
    ("nest:net", "torch: there is no module nest; expected it in "),
    ("nets:nett", 'has no `nett`; did you mean "net"?'),
    ("nets:constant", "nets:constant is a int; expected a function"),
    ("nets:raising", "raised ValueError: no such width; "),
    ("nets:leaving", "calling nets:leaving(): "),
    ("nets:leaving", "raised SystemExit: 0"),
    ("nets:number", "nets:number() returned a int; expected a torch.nn.Module"),
    ("nets:Net.forward", "raised TypeError"),
    ("broken:net", "broken.py:1 raised SyntaxError"),
    ("needy:net", "raised ModuleNotFoundError: No module named 'no_such_package'; expected it to "),
    ("needy:net", "finish: install no_such_package"),
    ("leaver:net", "torch: importing leaver: "),
    ("leaver:net", "raised SystemExit: 3"),
    ("json:net", "has the name of a module that is already in use"),
]


@pytest.mark.parametrize(("name", "expected"), FACTORIES)
def test_a_factory_that_gives_no_network(folder, name, expected):
    (folder / "broken.py").write_text("def net(:\n")
    (folder / "needy.py").write_text("import no_such_package\n")
    (folder / "leaver.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "json.py").write_text("def net(): 1\n")
    assert expected in refused(TorchSource(name, None, INPUTS, folder), folder)


def test_the_place_in_the_users_file_is_named(folder):
    line = (
        (folder / "nets.py").read_text().splitlines().index('    raise ValueError("no such width")')
    )
    assert f"nets.py:{line + 1} raised" in refused(source(folder, "raising"), folder)


def test_a_module_of_that_name_from_another_folder_is_not_taken(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "nets.py").write_text("def only_here(): pass\n")
    import sys

    sources = []
    for place, name in ((folder, "net"), (other, "only_here"), (folder, "net")):
        with isolated_imports(place):
            sources.append(import_factory(f"nets:{name}", place)[1])
    assert sources[0] == sources[2] == (folder / "blocks.py", folder / "nets.py")
    assert sources[1] == (other / "nets.py",)
    assert not {"nets", "blocks"} & set(sys.modules)


class Harm:
    def __reduce__(self):
        return (open, ("harmed", "w"))


def _of(net, change):
    state = dict(net.state_dict())
    change(state)
    return state


WEIGHTS = [
    (lambda net: _of(net, lambda s: s.pop("fc.bias")), "1 missing keys: fc.bias;"),
    (lambda net: _of(net, lambda s: s.update(x=torch.ones(1))), "1 unexpected keys: x;"),
    (lambda net: {f"k{i}": torch.ones(1) for i in range(14)}, "k9 and 4 more;"),
    (
        lambda net: _of(net, lambda s: s.update({"fc.bias": torch.ones(9)})),
        "1 tensors do not fit: ",
    ),
    (lambda net: {"epoch": 3}, "found a mapping with the keys epoch, expected names and tensors"),
    (lambda net: [1, 2], "found a list, expected names and tensors"),
    (lambda net: {"state_dict": Harm()}, "holds pickled Python objects, which could run code"),
    (lambda net: net, "holds pickled Python objects, which could run code"),
]


@pytest.mark.parametrize(("make", "expected"), WEIGHTS)
def test_weights_that_do_not_fit(folder, make, expected, monkeypatch):
    monkeypatch.chdir(folder)
    with isolated_imports(folder):
        net = build("nets:net", import_factory("nets:net", folder)[0])
        pickled = make(net)
        torch.save(pickled, folder / "w.pth")
    with pytest.raises(ModelError) as caught:
        load_weights(net, folder / "w.pth")
    assert expected in str(caught.value)
    assert not (folder / "harmed").exists()


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04", pickle.dumps({"a": 1})])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights(folder, data, suffix):
    path = folder / f"w{suffix}"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=f"weights .*w{suffix}: "):
        load_weights(nn.Linear(1, 1), path)


def test_missing_files(folder):
    assert "no such file" in refused(source(folder, weights=folder / "w.pth"), folder)
    assert "no such file" in refused(TorchSource(str(folder / "net.pt2")), folder)


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
@pytest.mark.parametrize("data", [b"", b"garbage"])
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_files_that_are_no_networks(folder, suffix, data):
    path = folder / f"net{suffix}"
    path.write_bytes(data)
    expected = "not a TorchScript file" if suffix == ".pt" else "not a file of torch.export.save"
    assert expected in refused(TorchSource(str(path), None, INPUTS), folder)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_state_dict_is_no_torchscript(folder):
    torch.save({"a": torch.ones(1)}, folder / "net.pt")
    text = refused(TorchSource(str(folder / "net.pt"), None, INPUTS), folder)
    assert 'write model: {torch: "module:factory", weights: net.pt' in text


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_needs_shapes(folder):
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), folder / "net.pt")
    text = refused(TorchSource(str(folder / "net.pt")), folder)
    assert "its inputs are not known; add their shapes to the recipe" in text


@pytest.mark.parametrize("part", [nn.BatchNorm2d(4), nn.Dropout()])
def test_a_program_in_training_mode(folder, part):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), part).train()
    torch.export.save(torch.export.export(net, (torch.randn(2, 3, 4, 4),)), folder / "net.pt2")
    text = refused(TorchSource(str(folder / "net.pt2")), folder, UnsupportedError)
    assert "call .eval() before torch.export.export" in text


def test_shapes_the_network_refuses(folder):
    network = TorchSource("nets:net", None, (TensorInput("image", ("N", 5, 8, 8)),), folder)
    text = refused(network, folder)
    assert "the network fails on random inputs image float32[2, 5, 8, 8]" in text


class Fixed(nn.Module):
    """Counts in Python, which tracing turns into a constant."""

    def forward(self, x):
        for _ in range(int(x.abs().sum())):
            x = x * 1.1
        return x


class Unknown(nn.Module):
    """Computes what ONNX has no operator for."""

    def forward(self, x):
        return torch.linalg.eigvals(x).real


class Words(nn.Module):
    def forward(self, x):
        return "words"


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Fixed(), "does not compute what torch computes on 3 random samples"),
        (Unknown(), "torch cannot export the network to ONNX"),
        (Words(), "returns str, expected a tensor"),
    ],
)
def test_networks_that_cannot_be_exported(tmp_path, module, expected):
    with pytest.raises(UnsupportedError) as caught:
        export_to(module, [TensorInput("x", ("N", 4, 4))], tmp_path / "x.onnx")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.onnx").exists()
