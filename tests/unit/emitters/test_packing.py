"""Packed codes: which form is chosen, what lies in the file, what the runtime makes of it."""

import numpy as np
import onnx_ir as ir
import pytest
from models import optimized
from widened import book, grid, model_of, widened

from qtool.emitters import packing
from qtool.emitters.packing import bits_of, form_of, index_bits, pack, pack_trits, planes, unpack
from qtool.quant.primitives import Codebook

ALL = ("int4", "int2", "bytes", "base3")
AT_21 = ("int4", "bytes", "base3")
MANY = np.zeros(8192, np.int8)


@pytest.mark.parametrize(
    ("params", "forms", "want"),
    [
        (grid(8), ALL, (8, "container")),
        (grid(7), ALL, (7, "bytes")),
        (grid(5), ("int4", "int2"), (8, "container")),
        (grid(4), ALL, (4, "int4")),
        (grid(4), ("bytes",), (4, "bytes")),
        (grid(3), ALL, (3, "bytes")),
        (grid(3), ("int4",), (4, "int4")),
        (grid(2), ALL, (2, "int2")),
        (grid(2), AT_21, (2, "bytes")),
        (grid(2), ("int4",), (4, "int4")),
        (grid(2), (), (8, "container")),
        (book([-1, 1]), ALL, (1, "bytes")),
        (book([-1, 1]), ("int2",), (2, "int2")),
        (book([-1, 0, 1]), ALL, (1.6, "base3")),
        (book([-1, 0, 1]), ("bytes",), (2, "bytes")),
        (book([-90, -20, 0, 7, 100]), ALL, (3, "bytes")),
        (book([-90, 100]), ("int4", "int2"), (8, "container")),
        (book(range(-8, 8)), AT_21, (4, "int4")),
        (book(np.arange(16) * 9 - 60), AT_21, (4, "bytes")),
    ],
)
def test_the_smallest_form_that_the_target_folds(params, forms, want):
    assert form_of(MANY, params, forms) == want


def test_a_shifted_grid_may_need_another_form():
    """Symmetric grids leave their lowest code free, others do not."""
    assert form_of(MANY, grid(4), AT_21, shift=-1) == (4, "int4")
    assert form_of(MANY, grid(4, symmetric=False), AT_21, shift=-1) == (5, "bytes")
    assert form_of(MANY, grid(8), AT_21, shift=-1) == (8, "container")


def test_small_tensors_stay_as_they_are():
    """A node costs as much as 200 codes of 4 bits save; three bits are smaller as four at first."""
    short = np.zeros(2 * packing.NODE, np.int8)
    assert form_of(short, grid(4), ALL) == (8, "container")
    assert form_of(np.append(short, np.int8(0)), grid(4), ALL) == (4, "int4")
    assert form_of(np.zeros(4000, np.int8), grid(3), AT_21) == (4, "int4")
    assert form_of(np.zeros(4008, np.int8), grid(3), AT_21) == (3, "bytes")


def test_wider_containers_are_packed_too():
    wide = np.zeros(4096, np.int16)
    assert form_of(wide, grid(12), ALL) == (16, "container")
    assert form_of(wide, book([-3000, -1, 1, 3000]), ALL) == (2, "bytes")


@pytest.mark.parametrize(
    ("lo", "hi", "bits"),
    [(-1, 1, 2), (-2, 1, 2), (-3, 1, 3), (-8, 7, 4), (-8, 8, 5), (0, 15, 4), (-128, 126, 8)],
)
def test_bits_of(lo, hi, bits):
    assert bits_of(lo, hi) == bits


def test_index_bits():
    assert [index_bits(np.arange(n)) for n in (1, 2, 3, 4, 5, 16, 17)] == [1, 1, 2, 2, 3, 4, 5]


def test_planes_fill_the_width_from_the_lowest_bits_up():
    assert planes(7) == ((4, 0), (2, 4), (1, 6))
    assert planes(5) == ((4, 0), (1, 4)) and planes(1) == ((1, 0),)


def test_bytes_by_hand():
    """Nine codes of 5 bits: low nibbles two to a byte, high bits eight to a byte, then zeros."""
    codes = np.array([1, 2, 3, 4, 5, 6, 7, 8, -1], np.int8)
    low, high = pack(codes, 5)
    assert low.tolist() == [0x21, 0x43, 0x65, 0x87, 0x0F, 0, 0, 0]
    assert high.tolist() == [0, 1]
    assert unpack(low, 4)[:4].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_trits_by_hand():
    assert pack_trits(np.array([2, 2, 2, 2, 2, 1])).tolist() == [242, 1]


def grids():
    for bits in range(2, 9):
        for signed, symmetric in ((True, True), (True, False), (False, False)):
            yield f"{bits}{'s' if signed else 'u'}{symmetric:d}", grid(bits, signed, symmetric)
    for levels in ([-1, 1], [-1, 0, 1], [-127, -3, 90], [5]):
        yield f"book{levels}", book(levels)
    for count in (4, 5, 8, 11, 16, 30, 60, 100):
        yield f"book{count}", book(np.linspace(-128, 127, count).round())


GRIDS = dict(grids())
FORMS = [(), ("int4",), ("bytes",), ("int4", "bytes"), ("base3",), ALL]


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("level", [0, 99])
@pytest.mark.parametrize("tables", [0.01, 1e9])
def test_the_runtime_widens_every_form(name, forms, level, tables, monkeypatch):
    """Folded or computed at every run, for shapes that fill their bytes and shapes that do not."""
    monkeypatch.setattr(packing, "NODE", 0)
    monkeypatch.setattr(packing, "TABLES", tables)
    params, rng = GRIDS[name], np.random.default_rng(0)
    spec = params.spec
    for shape in ((3, 5, 3, 3), (16, 4), (1,), (7, 2)):
        if isinstance(params, Codebook):
            codes = rng.choice(params.levels, shape)
            codes.flat[0] = params.levels[-1]
        else:
            codes = rng.integers(spec.qmin, spec.qmax + 1, shape)
            codes.flat[0] = spec.qmin
        codes = codes.astype(spec.container)
        got = widened(codes, params, forms, level=level)
        assert got.dtype == codes.dtype
        np.testing.assert_array_equal(got, codes)


@pytest.mark.parametrize(
    "params", [grid(7), grid(4), grid(3), grid(4, symmetric=False), book([-1, 0, 1]), book([-9, 4])]
)
def test_codes_and_levels_can_be_shifted(params):
    rng, spec = np.random.default_rng(1), params.spec
    drawn = (
        rng.choice(params.levels, (40, 33))
        if isinstance(params, Codebook)
        else rng.integers(spec.qmin, spec.qmax + 1, (40, 33))
    )
    for forms in (ALL, AT_21, ()):
        got = widened(drawn.astype(np.int8), params, forms, shift=-1)
        np.testing.assert_array_equal(got, drawn - 1)


def test_levels_beyond_int8_keep_their_container():
    levels = np.array([-3000, -7, 0, 150, 9000], np.int16)
    codes = np.random.default_rng(2).choice(levels, (33, 41))
    got = widened(codes, book(levels), ("bytes",))
    assert got.dtype == np.int16
    np.testing.assert_array_equal(got, codes)


PACKED = [grid(b) for b in range(2, 8)] + [book([-1, 1]), book([-1, 0, 1]), book([-9, 1, 2, 5, 6])]


@pytest.mark.parametrize("params", PACKED)
@pytest.mark.parametrize("forms", [AT_21, ALL, ("bytes",)])
def test_the_file_holds_so_many_bits_and_loading_folds_them(params, forms, tmp_path):
    rng = np.random.default_rng(3)
    levels = params.levels if isinstance(params, Codebook) else np.arange(-1, 2)
    codes = rng.choice(levels, (64, 31, 3, 3)).astype(np.int8)
    model = model_of(codes, params, forms)
    bits, _ = form_of(codes, params, forms)
    size = len(ir.to_proto(model).SerializeToString())
    # A table of 256 bytes by 8 codes is the largest thing beside the codes; three bits have two.
    assert codes.size * bits / 8 <= size <= codes.size * bits / 8 + 6000
    folded = optimized(model, tmp_path).graph
    assert [n.op_type for n in folded] in ([], ["Identity"])
    held = {v.dtype for v in folded.initializers.values()}
    assert held == {ir.DataType.INT8}


@pytest.mark.parametrize(("size", "table"), [(4096, 16), (400_000, 512)])
def test_large_tables_are_for_large_tensors(size, table):
    """16 levels: a table of 16 and wide indices, or one of 512 and little memory at load."""
    levels = np.arange(16) * 9 - 60
    codes = np.random.default_rng(4).choice(levels, size).astype(np.int8)
    tables = model_of(codes, book(levels), AT_21).graph.initializers
    held = max(v.const_value.nbytes for k, v in tables.items() if k.startswith("codes_"))
    assert held == table


def test_equal_tables_are_stored_once():
    store = model_of(np.ones((64, 64), np.int8), grid(3), ("bytes",)).graph
    assert sum(name.startswith("codes_") for name in store.initializers) == 2
