"""Reports to render: a full one, a failed one, a hostile one, the least one."""

import base64
import json

import numpy as np

from qtool.report.report import Finding, Report, Stage
from qtool.report.schema import ClassChange

HOSTILE = "<script>alert(1)</script>|`@you`[red]\x1b[31m\u202e</td>"


CHANGE = ClassChange(name="cat", samples=50, lost=7, gained=2, mistaken_for="dog")


def sample(**changes):
    data = {
        "schema": 1,
        "qtool": "0.1.0",
        "command": "ptq",
        "seed": 0,
        "passed": True,
        "model": {"path": "nets/net.onnx", "sha256": "ab", "parameters": 272474, "macs": 40800000},
        "output": {"path": "model.onnx", "sha256": "cd", "opset": 21},
        "data": {"evaluation": {"count": 10000, "sha256": "01"}},
        "accuracy": {
            "metric": "top1",
            "unit": "%",
            "samples": 10000,
            "float": 91.73,
            "simulated": 91.62,
            "quantized": 91.61,
            "drop": 0.12,
            "drop_ci95": [-0.05, 0.29],
            "agreement": 98.4,
        },
        "size": {"float_bytes": 1092222, "quantized_bytes": 290112, "compression": 3.76}
        | {"payload_bytes": 270000, "scale_bytes": 9100, "code_book_bytes": 0}
        | {"graph_bytes": 11012},
        "latency": {
            "threads": 1,
            "batch": 1,
            "float_ms": 2.1,
            "quantized_ms": 1.0,
            "speedup": 2.1,
            "runs": 50,
        },
        "parity": {"samples": 64, "max_lsb": 0, "share_off": 0.0},
        "kernels": {"integer": {"QLinearConv": 20}, "float": {}},
        "layers": [
            {"name": f"/conv{index}/Conv", "op": "Conv", "weight_bits": 8, "activation_bits": 8}
            | {"granularity": "channel", "sqnr_db": 38.0 - index, "bytes": 448}
            for index in range(12)
        ],
        "stages": [{"name": "calibrate", "seconds": 3.2, "notes": ["512 samples"]}],
        "gates": [{"name": "max_drop", "limit": 1.0, "value": 0.12, "passed": True}],
        "environment": {"python": "3.11", "cpu": "a cpu", "isa": ["avx512_vnni"]},
    }
    data.update(changes)
    return Report.model_validate({key: value for key, value in data.items() if value is not None})


def failing():
    return sample(
        passed=False,
        accuracy={**json.loads(sample().to_json())["accuracy"], "drop": 1.7, "quantized": 90.03},
        gates=[{"name": "max_drop", "limit": 1.0, "value": 1.7, "passed": False}],
        parity={"samples": 64, "max_lsb": 3, "share_off": 0.0},
    )


def diagnosed():
    """Return a failing report with four findings and a warning."""
    findings = [
        {"finding": f"cause {number}", "evidence": f"evidence {number}"}
        | {"recipe_lines": ["bits:", f'  layers: {{"name:/conv{number}": 8}}']}
        | {"predicted_gain_points": 9.0 - number, "predicted_cost_bytes": 1000 * number}
        for number in range(4)
    ]
    stages = [{"name": "emit", "seconds": 1, "notes": ["WARNING: look out", "plain note"]}]
    return failing().model_copy(
        update={
            "accuracy": failing().accuracy.model_copy(update={"class_changes": [CHANGE]}),
            "diagnosis": [Finding.model_validate(each) for each in findings],
            "stages": [Stage.model_validate(each) for each in stages],
        }
    )


def hostile():
    layer = {"name": HOSTILE, "op": HOSTILE, "granularity": HOSTILE, "sqnr_db": 3.0, "bytes": 4}
    group = {"axis": 1, "start": 0, "stop": 4, "source": HOSTILE, "sqnr_db": 9.0}
    return sample(
        command=HOSTILE,
        model={"path": HOSTILE, "sha256": HOSTILE, "parameters": 1},
        output={"path": HOSTILE, "sha256": HOSTILE, "opset": 21},
        layers=[layer] * 5,
        outputs=[{"name": HOSTILE, "sqnr_db": 3.0, "groups": [group] * 2}],
        stages=[{"name": HOSTILE, "seconds": 1, "notes": [HOSTILE]}],
        kernels={"integer": {HOSTILE: 1}, "float": {HOSTILE: 1}, "stray_quantize": [HOSTILE]},
        gates=[{"name": HOSTILE, "limit": 1.0, "value": 0.5, "passed": True}],
        environment={"cpu": HOSTILE, HOSTILE: [HOSTILE]},
        diagnosis=[{"finding": HOSTILE, "evidence": HOSTILE, "recipe_lines": [HOSTILE]}],
        accuracy={"metric": HOSTILE, "unit": HOSTILE, "samples": 1, "float": 1.0}
        | {"quantized": 1.0, "drop": 0.0, "drop_ci95": [0.0, 0.0], "agreement": 1.0},
    )


def bare():
    """The least a report can hold."""
    return sample(
        **dict.fromkeys(("accuracy", "size", "latency", "parity", "kernels", "data")),
        **dict.fromkeys(("layers", "stages", "gates", "environment")),
    )


def large(layers=54):
    """Return a report like that of ResNet-50: every layer with histograms, images, training."""
    rng = np.random.default_rng(0)

    def histogram(outside):
        counts = rng.integers(0, 100_000, 48).tolist()
        channels = np.round(rng.random(64), 4).tolist()
        made = {"low": -0.71234, "high": 0.65432, "counts": counts, "channels": channels}
        return made | {"grid": [-0.5, 0.5], **({"outside": 0.0123} if outside else {})}

    rows = [
        {"name": f"/layer{k // 14}/layer{k // 14}.{k % 14}/conv/Conv", "op": "Conv"}
        | {"weight_bits": 4, "activation_bits": 8, "granularity": "channel", "bytes": 40_000 + k}
        | {"sqnr_db": round(40 * rng.random(), 3), "cumulative_sqnr_db": round(20 - k / 4, 3)}
        | {"weights": histogram(False), "inputs": histogram(True)}
        for k in range(layers)
    ]
    image = "data:image/webp;base64," + base64.b64encode(rng.bytes(2000)).decode()
    changed = [
        {"name": f"class{k}/{k}.jpg", "label": "cat", "float": "cat", "quantized": "dog"}
        | {"margin": 1.5, "margin_after": -0.5, "thumbnail": image}
        for k in range(24)
    ]
    accuracy = json.loads(sample().to_json())["accuracy"]
    epochs = [{"epoch": k, "score": 70 + k / 10, "loss": 2 - k / 30} for k in range(1, 31)]
    training = {"count": 5, "sha256": "0", "validation": 2, "quantizer": "lsq", "best": 30}
    training |= {"float_score": 75.0, "epochs": [{"epoch": 0, "score": 65.0}, *epochs]}
    steps = [{"step": "gptq", "before": 8.84e-06, "after": 1.68e-05, "kept": False, "seconds": 9.8}]
    return sample(
        layers=rows,
        ptq=steps,
        accuracy=accuracy | {"changed": 160, "changed_samples": changed},
        data={"training": training},
    )
