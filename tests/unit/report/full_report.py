"""A report with every key, and changes of it."""

import copy

from qtool.report.report import Report

FULL = {
    "schema": 1,
    "qtool": "0.1.0",
    "command": "ptq",
    "seed": 0,
    "passed": True,
    "verdict": {"status": "passed", "reason": "The gate passes; drop 0.12 points."},
    "model": {"path": "net.onnx", "sha256": "ab", "parameters": 272474, "macs": 40800000},
    "output": {"path": "model.onnx", "sha256": "cd", "opset": 21},
    "data": {
        "calibration": {"count": 512, "sha256": "ef"},
        "evaluation": {"count": 10000, "sha256": "01"},
    },
    "accuracy": {
        "metric": "top1",
        "unit": "%",
        "samples": 10000,
        "float": 91.73,
        "simulated": 91.61,
        "quantized": 91.61,
        "drop": 0.12,
        "drop_ci95": [-0.05, 0.29],
        "agreement": 98.4,
    },
    "size": {
        "float_bytes": 1092222,
        "quantized_bytes": 290112,
        "compression": 3.76,
        "weight_bits_mean": 8.0,
        "weight_payload_bytes": 272474,
    },
    "latency": {
        "threads": 1,
        "batch": 1,
        "float_ms": 2.1,
        "quantized_ms": 1.0,
        "speedup": 2.1,
        "runs": 50,
    },
    "parity": {"samples": 64, "max_lsb": 0, "share_off": 0.0, "end_to_end_agreement": 100.0},
    "kernels": {
        "integer": {"QLinearConv": 20},
        "float": {},
        "stray_quantize": [],
        "saturation_risk": False,
    },
    "layers": [
        {
            "name": "/conv1/Conv",
            "op": "Conv",
            "weight_bits": 8,
            "activation_bits": 8,
            "granularity": "channel",
            "sqnr_db": 38.2,
            "bytes": 448,
        }
    ],
    "outputs": [
        {
            "name": "y",
            "sqnr_db": 31.5,
            "compared": True,
            "groups": [{"axis": 1, "start": 0, "stop": 4, "source": "boxes", "sqnr_db": 29.1}],
        }
    ],
    "stages": [
        {
            "name": "calibrate",
            "seconds": 3.2,
            "peak_rss_mb": 611,
            "cached": False,
            "notes": ["512 samples"],
        }
    ],
    "gates": [{"name": "max_drop", "limit": 1.0, "value": 0.12, "passed": True}],
    "environment": {
        "python": "3.11",
        "torch": "2.7",
        "onnxruntime": "1.22",
        "cpu": "a cpu",
        "isa": ["avx512_vnni"],
    },
}


def changed(**parts):
    """Return the full report with other parts; None leaves one out. Its verdict is computed."""
    data = {key: value for key, value in copy.deepcopy(FULL).items() if key != "verdict"}
    for key, value in parts.items():
        data.pop(key) if value is None else data.update({key: value})
    return Report.model_validate(data)


def accuracy(drop=0.12, interval=(-0.05, 0.29), **more):
    """Return the accuracy of the full report with another drop."""
    return {**FULL["accuracy"], "drop": drop, "drop_ci95": list(interval), **more}


def gate(limit, value, name="max_drop"):
    """Return an upper limit and its value."""
    return {"name": name, "limit": limit, "value": value, "passed": value <= limit}
