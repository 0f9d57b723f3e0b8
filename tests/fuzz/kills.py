"""Runs killed at random moments and byte offsets, resumed, and compared with an undisturbed run.

    PYTHONPATH=tests python -m fuzz.kills --kills 100 --state build/fuzz/kills.json

Every file of the resumed run folder that a run promises to repeat is compared byte for byte.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from fuzz.fuzz_models import warm_up
from fuzz.limited import become, qtool_main
from fuzz.state import load_state, save_state
from models import Net

# Keys of report.json that hold times, or what else differs between two runs.
CHANGING = ("latency", "stages", "environment", "gates", "passed", "verdict", "diagnosis")
SAMPLES = 96
COMMON = """
model: m.onnx
calibrate: {arrays: train.npz, count: 64}
evaluate: {arrays: test.npz, metric: top1}
"""
RECIPES = {
    "ptq": "bits: {weights: 4}\nptq: [gptq, {adaround: {iterations: 300}}, bias_correction]\n",
    "reconstruction": "bits: {weights: 3, activations: 6}\nptq: [{brecq: {iterations: 400}}]\n",
    "search": "bits: {budget: {weights: 17%, among: [4, 8]}}\n",
    "qat": "bits: {weights: 2, activations: 4}\n"
    "qat: {arrays: train.npz, epochs: 40, batch: 16, lr: 0.01}\n",
}


def write_inputs(folder: Path) -> None:
    """Write a small classifier, its samples and the recipes."""
    net = Net(opset=21)
    x = net.input("x", "N", 3, 8, 8)
    x = net.add("Relu", net.norm(net.conv(x, 3, 8), 8))
    x = net.add("Relu", net.norm(net.conv(x, 8, 8), 8))
    x = net.add("Flatten", net.add("GlobalAveragePool", net.add("Relu", net.conv(x, 8, 8))))
    net.output(net.add("Gemm", x, net.weight(3, 8), net.weight(3), transB=1, out="y"))
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(net.proto(), folder / "m.onnx")
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        x = rng.normal(0, 1, (SAMPLES, 3, 8, 8)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x, y=rng.integers(0, 3, SAMPLES))
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(COMMON + text)


def command(folder: Path, name: str, out: str) -> Callable[[], int]:
    """Return the function that runs a recipe in this process."""

    def call() -> int:
        verb = "qat" if name == "qat" else "ptq"
        words = (verb, "--recipe", f"{name}.yaml", "--out", out, "--threads", "1")
        return qtool_main(folder, *words, "--quiet", "--json")

    return call


def dies_at(offset: int, call: Callable[[], int]) -> Callable[[], int]:
    """Return a call that the system kills when a file grows beyond ``offset`` bytes."""

    def limited() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (offset, offset))
        return call()

    return limited


def run(call: Callable[[], int], log: Path, kill_after: float | None = None) -> int:
    """Run ``call`` in a forked process; return its exit code, negative where it was killed."""
    child = os.fork()
    if child == 0:
        become(call, log)
    deadline = None if kill_after is None else time.monotonic() + kill_after
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.005)


def written(folder: Path) -> dict[str, bytes]:
    """Return the files of a run folder as far as a run repeats them, by name."""
    report = json.loads((folder / "report.json").read_text())
    same = {key: value for key, value in report.items() if key not in CHANGING}
    names = ("model.onnx", "plan.json", "plan.npz", "recipe.yaml")
    files = {name: (folder / name).read_bytes() for name in names}
    return files | {"report.json": json.dumps(without_times(same), indent=1).encode()}


def without_times(part: object) -> object:
    """Return a part of the report without seconds and milliseconds."""
    if isinstance(part, dict):
        return {k: without_times(v) for k, v in part.items() if k not in ("seconds", "cached")}
    return [without_times(each) for each in part] if isinstance(part, list) else part


class Undisturbed:
    """A run of each recipe that nothing disturbs, made when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.sizes: dict[str, list[int]] = {}

    def make(self, name: str) -> None:
        """Run a recipe, and keep its time, its files and the sizes of all that it wrote."""
        if name in self.files:
            return
        start = time.monotonic()
        out = self.folder / f"{name}-whole"
        code = run(command(self.folder, name, out.name), self.folder / f"{name}.log")
        assert code in (0, 1), (self.folder / f"{name}.log").read_text()
        self.seconds[name] = time.monotonic() - start
        self.files[name] = written(out)
        self.sizes[name] = sorted(p.stat().st_size for p in out.rglob("*") if p.is_file())


def disturbed(whole: Undisturbed, name: str, rng: random.Random) -> tuple[int, list[str]]:
    """Run a recipe, kill it until it ends; return the number of kills and the files that differ."""
    whole.make(name)
    folder, kills = whole.folder, 0
    out, log = folder / f"{name}-killed", folder / f"{name}-killed.log"
    shutil.rmtree(out, ignore_errors=True)
    call = command(folder, name, out.name)
    while True:
        at_byte = rng.random() < 0.5  # in the middle of the writing of some file
        if at_byte:
            code = run(dies_at(rng.randrange(1, whole.sizes[name][-1]), call), log)
        else:
            code = run(call, log, rng.uniform(0, whole.seconds[name]))
        # The verifying process, whose Python ignores the signal, fails to write instead.
        if code >= 0 and not (at_byte and code not in (0, 1)):
            break
        kills += 1
    if code not in (0, 1):
        return kills, [f"exit {code}: {log.read_text()[-500:]}"]
    repeated = written(out)
    differing = [key for key, data in whole.files[name].items() if repeated[key] != data]
    left = [p.name for p in out.rglob(".*.tmp-*")]
    return kills, differing + [f"left: {each}" for each in left]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=Path("build/fuzz/kills.json"))
    args = parser.parse_args()
    warm_up()
    state = load_state(args.state, {"kills": 0, "runs": 0, "bytes": 0, "failures": []})
    with tempfile.TemporaryDirectory(prefix="qtool-kills-") as place:
        write_inputs(Path(place))
        whole = Undisturbed(Path(place))
        while state["kills"] < args.kills:
            rng = random.Random(f"{args.seed}/{state['runs']}")
            name = sorted(RECIPES)[state["runs"] % len(RECIPES)]
            kills, failures = disturbed(whole, name, rng)
            state["kills"] += kills
            state["runs"] += 1
            state["bytes"] += sum(map(len, whole.files[name].values()))
            state["failures"] += [f"{name}, run {state['runs']}: {each}" for each in failures]
            save_state(args.state, state)
            print(f"{name}: {kills} kills, {failures or 'the same bytes'}", flush=True)
    print(f"{state['kills']} kills in {state['runs']} runs, {state['bytes']} bytes compared, "
          f"{len(state['failures'])} differ")  # fmt: skip
    return 1 if state["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
