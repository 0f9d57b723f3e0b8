"""The integer-only reference on real networks: no layer is more than one code off the file."""

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

import qtool
from qtool.data import open_dataset
from qtool.emitters import emit_qdq
from qtool.recipe.model import Calibrate
from qtool.runtime.ort_options import session_options
from qtool.simulation.integer_network import IntegerNetwork
from qtool.verification.captured_outputs import capturable_values, with_outputs

DATA = Path(os.environ.get("QTOOL_DATA", "missing"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="QTOOL_DATA names no folder"),
]

IMAGES = {"images": str(DATA / "imagenet_sample/val"), "count": 64}
NETWORKS = {
    "resnet20": (
        "resnet20",
        {"images": str(DATA / "cifar10/train"), "count": 64, "preprocess": "cifar10"},
    ),
    "mobilenet_v2": ("mobilenet_v2_1.0_224", {**IMAGES, "preprocess": "tf"}),
    "squeezenet1_1": ("squeezenet1_1", {**IMAGES, "preprocess": "imagenet_227"}),
    "fsdd_dscnn": (
        "fsdd_dscnn",
        {"arrays": {"path": str(DATA / "fsdd/fsdd_train.npz"), "inputs": {"input": "x"}},
         "count": 64},
    ),
}  # fmt: skip
ROWS = 8
# Codes that may differ, by scale kind: none where every multiplier is a shift; else the values that
# lie within a float32's error of a half, or within that of a 16-bit multiplier in sums and pools.
SHARES = {"power_of_two": 0.0, "double_shift": 0.0, "float": 1e-5, "fixed_point": 1e-3}


@pytest.mark.parametrize("kind", SHARES)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_layer_is_more_than_one_code_off(name, kind):
    file, section = NETWORKS[name]
    model = qtool.load(DATA / f"models/{file}.onnx")
    made = qtool.quantize(model, section, bits={"scale": kind})
    graph, plan = made._graph, made.quantization
    emitted = emit_qdq(graph, plan, made.target)
    names = capturable_values(emitted, plan)
    proto = ir.to_proto(with_outputs(emitted, names)).SerializeToString()
    session = ort.InferenceSession(proto, session_options(1))
    outputs = [o.name for o in session.get_outputs()]
    whole = IntegerNetwork(graph, plan)
    off = total = largest = same = rows = 0
    data = open_dataset(Calibrate.model_validate(section), model.inputs)
    for batch in data.batches(ROWS):
        feeds = {n: batch[n] for n in model.inputs}
        seen = dict(zip(outputs, session.run(None, feeds), strict=True))
        codes = {n.removesuffix("_quantized"): a for n, a in seen.items() if "_quantized" in n}
        with torch.inference_mode():
            for site in plan.sites.values():
                output = whole.kernels.site(site, codes)
                if site.output not in codes:
                    np.testing.assert_array_equal(output.numpy(), seen[site.output])
                    continue
                apart = np.abs(output.numpy() - codes[site.output].astype(np.int64))
                off, total = off + int(np.count_nonzero(apart)), total + apart.size
                largest = max(largest, int(apart.max()))
        out = graph.graph.outputs[0].name
        same += int((whole(feeds)[out].argmax(1) == seen[out].argmax(1)).sum())
        rows += len(seen[out])
    print(f"{name} {kind}: {off} of {total} codes differ, at most {largest}; top-1 {same}/{rows}")
    assert rows == 64 and largest <= 1
    assert off <= SHARES[kind] * total
    assert same >= rows - (0 if SHARES[kind] == 0 else 3)
