"""Sizes of files: parts add up to the whole, and agree with published sizes of a network."""

import onnx_ir as ir
import pytest
from models import BUILDERS, Net, bind, cpu, feeds_for, make_grids, make_plan, quantized, rewritten

from qtool.calibration import MinMax
from qtool.emitters import emit_qdq, save_model
from qtool.emitters.qonnx import emit_qonnx
from qtool.emitters.qoperator import to_operators
from qtool.quant.bit_widths import FLOAT, Bits
from qtool.quant.freeze import freeze
from qtool.verification.file_size import file_bytes, file_parts, size_part, weight_bytes
from qtool.weights import SCHEMES

# MobileNet-v1: (in, out) of its 13 depthwise separable pairs, first and last layer below.
PAIRS = [(32, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512)]
PAIRS += [(512, 512)] * 5 + [(512, 1024), (1024, 1024)]
MIDDLE = [n for i, o in PAIRS for n in (9 * i, i * o)]
FIRST, LAST = 27 * 32, 1024 * 1000


@pytest.mark.parametrize(("bits", "published"), [(8, 4.2), (4, 2.6), (2, 1.8), (1, 1.4)])
def test_published_sizes_of_mobilenet_v1(bits, published):
    """Check Krishnamoorthi's table (4 209 088 parameters, first and last layer of 8 bits)."""
    assert FIRST + sum(MIDDLE) + LAST == 4_209_088
    layers = [(FIRST, 8), *((n, bits) for n in MIDDLE), (LAST, 8)]
    assert round(weight_bytes(layers) / 1e6, 1) == published


def test_odd_counts_fill_their_last_byte():
    assert weight_bytes([(3, 4), (9, 1), (5, 1.6)]) == 2 + 2 + 1


def network(net: Net) -> ir.Model:
    model = net.model()
    bind(model, feeds_for(model))
    rewritten(model)
    return model


def large() -> Net:
    net = Net(21, 10)
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 48, name="first"))
    x = net.add("Relu", net.conv(x, 48, 64, name="second"))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    last = net.add("Gemm", x, net.weight(70, 64), net.weight(70), transB=1, out="y", name="last")
    return net.output(last)


def planned(net: Net, bits: Bits, scheme: str):
    model = network(net)
    plan = make_plan(model, cpu(), bits)
    grids = make_grids(model, plan, [feeds_for(model)], MinMax(), SCHEMES[scheme]())
    return model, freeze(model, grids)


@pytest.mark.parametrize(
    ("bits", "scheme"),
    [(8, "uniform"), (5, "uniform"), (4, "kmeans"), (3, "kmeans"), (2, "ternary"), (1, "binary")],
)
@pytest.mark.parametrize("acts", [8, None])
def test_the_parts_add_up_to_the_file(bits, scheme, acts, tmp_path):
    model, plan = planned(large(), Bits(bits, acts), scheme)
    emitted = emit_qdq(model, plan, cpu())
    save_model(emitted, tmp_path / "q.onnx")
    whole, layers = file_parts(emitted)
    assert whole.total == pytest.approx(file_bytes(tmp_path / "q.onnx"), rel=0.01)
    parts = [layers[name] for name in ("first", "second", "last")]
    assert sum(part.payload for part in parts) == whole.payload
    assert sum(part.code_books for part in parts) == whole.code_books
    # 16 levels of one byte, or a table; nothing where codes are widened by a Cast or not at all.
    assert (whole.code_books > 0) == (bits not in (8, 4) or scheme == "kmeans")
    size = size_part(1000, tmp_path / "q.onnx", model, plan, whole)
    sizes = (size.payload_bytes, size.scale_bytes, size.code_book_bytes, size.graph_bytes)
    assert sum(sizes) == whole.total
    assert size.weight_bits_mean == bits
    packed = whole.payload - sum(4 * n for n in (48, 64, 70))
    width = 1.6 if scheme == "ternary" else bits
    # Small tensors are not packed, and groups are filled up.
    assert packed >= 0.9 * width / 8 * (48 * 64 * 9)
    assert packed <= width / 8 * (48 * 64 * 9 + 70 * 64) + 48 * 4 * 9 + 70 * 64


@pytest.mark.parametrize("name", BUILDERS)
def test_small_files_of_every_format_add_up(name, tmp_path):
    model = network(BUILDERS[name]())
    emitted, plan = quantized(model)
    for file in (emitted, to_operators(emitted.clone(), plan), emit_qonnx(model, plan)):
        save_model(file, tmp_path / "q.onnx")
        whole, _ = file_parts(file)
        assert whole.total == pytest.approx(file_bytes(tmp_path / "q.onnx"), rel=0.01)


def test_shared_constants_count_once():
    emitted, _ = quantized(network(BUILDERS["tied"]()))
    whole, layers = file_parts(emitted)
    first, second = (layers[n.name].payload for n in emitted.graph if n.op_type == "Conv")
    assert (first, second) == (4 * 4 * 9 + 4 * 4, 4 * 4)  # the second has only its bias
    assert sum(part.payload for part in layers.values()) == whole.payload


def test_size_adds_up(tmp_path):
    model = BUILDERS["conv_bn_relu"]().load(tmp_path)
    bind(model, feeds_for(model))
    rewritten(model)
    emitted, plan = quantized(model)
    save_model(emitted, tmp_path / "q.onnx")
    before = (tmp_path / "net.onnx").stat().st_size
    size = size_part(before, tmp_path / "q.onnx", model, plan, file_parts(emitted)[0])
    assert size.float_bytes == before
    assert size.quantized_bytes == (tmp_path / "q.onnx").stat().st_size
    assert size.compression == pytest.approx(size.float_bytes / size.quantized_bytes, abs=1e-4)
    assert size.weight_bits_mean == 8
    # The first convolution may be widened to four input channels; codes are one byte each.
    codes = [plan.codes[site.weight] for site in plan.sites.values() if site.weight]
    assert size.weight_payload_bytes == sum(array.size for array in codes)


def test_a_float_layer_counts_its_32_bits(tmp_path):
    net = Net()
    x = net.conv(net.input("x", 1, 4, 8, 8), 4, 4, k=1, name="small")
    net.output(net.conv(x, 4, 4, k=3, name="large", out="y"))
    model = net.load(tmp_path)
    emitted, plan = quantized(model, Bits(layers=dict.fromkeys({"small"}, FLOAT)))
    save_model(emitted, tmp_path / "q.onnx")
    size = size_part(1000, tmp_path / "q.onnx", model, plan, file_parts(emitted)[0])
    assert size.weight_bits_mean == pytest.approx((16 * 32 + 144 * 8) / 160)
    assert size.weight_payload_bytes == 16 * 4 + 144


def test_external_data_is_part_of_the_file(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"12345")
    assert file_bytes(tmp_path / "m.onnx") == 5
    (tmp_path / "m.onnx.data").write_bytes(b"678")
    assert file_bytes(tmp_path / "m.onnx") == 8
