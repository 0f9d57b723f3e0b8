"""Write digests of what qtool makes of the digits network, for comparing two versions of the code.

Each case is one run of the command line. Compared are the bytes of ``model.onnx`` and
``plan.npz``, and ``plan.json`` and ``report.json`` without times, environment and notes, whose
wording may change. Two checkouts behave alike when they print the same:

    python tests/architecture/snapshot.py OUT > before.txt     # in the old checkout
    python tests/architecture/snapshot.py OUT > after.txt      # in the new one
    diff before.txt after.txt
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes" / "digits"
INT8, QAT = RECIPES / "int8.yaml", RECIPES / "qat_w2a4.yaml"
ENDS = "bits.layers={first: 8, last: 8}"

CASES: dict[str, list[str]] = {
    "int8": [],
    **{f"{bits} bits": [f"bits.weights={bits}", ENDS] for bits in (7, 6, 5, 4, 3, 2, 1)},
    "4/4 bits": ["bits.weights=4", "bits.activations=4"],
    "minmax": ["calibrate.method=minmax"],
    "percentile": ["calibrate.method={percentile: {q: 0.999}}"],
    "per tensor": ["bits.granularity=tensor"],
    "binary": ["bits.weights=1", "bits.scheme=binary", ENDS],
    "ternary": ["bits.weights=2", "bits.scheme=ternary", ENDS],
    "kmeans": ["bits.weights=4", "bits.scheme=kmeans", ENDS],
    "weights only": ["bits.weights=4", "bits.activations=float"],
    "blocks": ["bits.weights=4", "bits.activations=float", "bits.granularity={block: 32}"],
    "dynamic": ["bits.activations=dynamic"],
    "float layers": ["bits.layers={first: float, last: float}"],
    "power of two": ["bits.scale=power_of_two"],
    "double shift": ["bits.scale=double_shift"],
    "fixed point": ["bits.scale={fixed_point: {width: 16}}"],
    "quantized io": ["output.io=quantized"],
    "qoperator": ["output.format=qoperator"],
    "qonnx": ["output.format=qonnx", "bits.weights=4"],
    "opset 23": ["output.opset=23"],
    "no evaluation": ["evaluate=null", "gates=null"],
    **{
        f"target {path.stem}": [f"target={path.stem}"]
        for path in sorted((RECIPES.parents[1] / "configs" / "targets").glob("*.yaml"))
    },
}
LATER = (("accuracy", "simulated_samples"),)  # keys of report.json that are new since d09851a
IGNORED = ("latency", "stages", "environment", "gates", "passed", "verdict")


def digest(path: Path) -> str:
    """Return the digest of a file, or of the part of a JSON document that must not change."""
    data = path.read_bytes()
    if path.suffix == ".json":
        document = json.loads(data)
        for key in (*IGNORED, "log"):
            document.pop(key, None)
        for part, key in LATER:
            document.get(part, {}).pop(key, None)
        if path.stem == "report":
            document["model"]["path"] = Path(document["model"]["path"]).name
        data = json.dumps(document, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def run(out: Path, words: list[str]) -> str:
    """Run one command and return its exit code and the digests of what it wrote."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "qtool", *words, "--out", str(out), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    files = ("model.onnx", "plan.npz", "plan.json", "report.json")
    found = [f"{name} {digest(out / name)}" for name in files if (out / name).is_file()]
    error = [] if found else [done.stderr.strip()[-200:].replace("\n", " ")]
    return "  ".join([f"exit {done.returncode}", *found, *error])


def main() -> None:
    """Run every case and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    base = ["--recipe", str(INT8), "--set", "calibrate.count=64", "--set", "ptq=[]"]
    for name, settings in CASES.items():
        if options.only in name:
            words = [word for setting in settings for word in ("--set", setting)]
            print(f"{name}: {run(options.out / 'run', ['ptq', *base, *words])}", flush=True)
    for name, words in {
        "recipe int8": ["ptq", "--recipe", str(INT8)],
        "recipe qat_w2a4": ["qat", "--recipe", str(QAT), "--epochs", "1"],
        "recipe qat_w2a4, ptq": ["ptq", "--recipe", str(QAT), "--set", "ptq=[]"],
        "sat": ["qat", "--recipe", str(QAT), "--epochs", "1", "--set", "qat.quantizer=sat"],
        "pact": ["qat", "--recipe", str(QAT), "--epochs", "1", "--set", "qat.quantizer=pact"],
        "dorefa": ["qat", "--recipe", str(QAT), "--epochs", "1", "--set", "qat.quantizer=dorefa"],
        "ewgs": ["qat", "--recipe", str(QAT), "--epochs", "1", "--set", "qat.quantizer=ewgs"],
        "ste": ["qat", "--recipe", str(QAT), "--epochs", "1", "--set", "qat.quantizer=ste"],
        "lsq_plus": [
            "qat",
            "--recipe",
            str(QAT),
            "--epochs",
            "1",
            "--set",
            "qat.quantizer=lsq_plus",
        ],
    }.items():
        if options.only in name:
            print(f"{name}: {run(options.out / 'run', words)}", flush=True)


if __name__ == "__main__":
    main()
