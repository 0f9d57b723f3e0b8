"""Mutated ONNX files through the whole ``qtool ptq``, each in a process of its own.

    PYTHONPATH=tests python -m fuzz.fuzz_models --count 500 --state build/fuzz/models.json

A mutant passes where the command ends with 0 to 3 within the limits, prints no traceback and no
control character, and leaves either a whole run folder or none. State is saved after each mutant:
the same command continues. Mutants that fail are kept next to the state.
"""

import argparse
import gc
import io
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
from fuzz.limited import Ended, Limits, qtool_main, run_limited
from fuzz.mutation import mutate
from fuzz.state import load_state, save_state
from models import BUILDERS, Net, feeds_for, residual

LIMITS = Limits(seconds=60, memory_mb=1500)
# Of a whole run. A mutant may need more than that (pads of 10^7), and then has to be refused.
MEMORY = "1500M"
WRITTEN = {
    "model.onnx", "plan.json", "plan.npz", "recipe.yaml", "log.jsonl",
    "report.json", "report.html", "report.md",
}  # fmt: skip
ROWS = 24


def branching() -> Net:
    """A network with bodies: an If whose branches have weights."""
    net = Net()
    x = net.conv(net.input("x", "N", 3, 8, 8), 3, 4)
    condition = net.add("Greater", net.add("ReduceMax", x, keepdims=0), net.const(100.0))
    body = Net(seed=1)
    body.output(body.conv(x, 4, 4, out="b"))
    graphs = [
        onnx.helper.make_graph(body.nodes, name, [], body.outputs, body.constants)
        for name in ("then", "else")
    ]
    y = net.add("If", condition, then_branch=graphs[0], else_branch=graphs[1])
    return net.output(net.conv(net.add("Relu", y), 4, 2, out="y"))


SEEDS = BUILDERS | {"branching": branching}


def write_seeds(folder: Path) -> dict[str, bytes]:
    """Write samples for every network into a folder; return the networks, serialized."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, make in SEEDS.items():
        net = make()
        np.savez(folder / f"{name}.npz", **feeds_for(net.model(), ROWS, spatial=8))
        files[name] = net.proto().SerializeToString()
    return files


# The verifying process, but that it times files for 10 ms instead of 300: else most of a mutant's
# time were these.
VERIFIER = (
    sys.executable,
    "-c",
    "import sys\n"
    "from qtool.verification import ort_worker\n"
    "from qtool.verification.latency import timing_script\n"
    "timing_script.MIN_SECONDS = 0.01\n"
    "ort_worker.main(sys.argv[1])",
)


def command(folder: Path) -> int:
    """Run ``qtool ptq`` in this process, in a folder that has m.onnx and d.npz."""
    (folder / "tmp").mkdir()
    os.environ["TMPDIR"] = str(folder / "tmp")
    tempfile.tempdir = None
    words = ("ptq", "--model", "m.onnx", "--data", "d.npz", "--out", "o", "--threads", "1")
    words += ("--memory", MEMORY)
    return qtool_main(folder, *words, "--quiet")


def broken_promises(folder: Path, ended: Ended) -> list[str]:
    """Return what a run did that it must not."""
    found = [ended.broken_limit] if ended.broken_limit else []
    if not ended.broken_limit and ended.code not in (0, 1, 2, 3):
        found.append(f"exit {ended.code}")
    if "Traceback" in ended.text or re.search(r"\w+Warning:", ended.text):
        found.append("a traceback or warning on the terminal")
    if any(ord(c) < 32 and c not in "\n\t" for c in ended.text):
        found.append("control characters on the terminal")
    if ended.broken_limit or ended.code < 0:
        return found
    out = folder / "o"
    names = {p.name for p in out.iterdir() if p.is_file()} if out.is_dir() else set()
    if names != (WRITTEN if ended.code in (0, 1) else set()):
        found.append(f"exit {ended.code} and the files {sorted(names)}")
    if ended.code in (2, 3) and out.exists():
        found.append("a run folder was left")
    left = [p.name for p in (folder / "tmp").rglob("*") if p.name != ".ses"]
    if left and ended.code != 70:
        found.append(f"temporary files {left}")
    return found


def one(folder: Path, model: bytes, samples: Path) -> tuple[Ended, list[str]]:
    """Run one model in an empty folder; return its end and its broken promises."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "m.onnx").write_bytes(model)
    shutil.copy(samples, folder / "d.npz")
    ended = run_limited(lambda: command(folder), folder / "log.txt", LIMITS)
    return ended, broken_promises(folder, ended)


def mutants(seed: int, files: dict[str, bytes]) -> Iterator[tuple[str, bytes, str]]:
    """Yield endlessly a network's name, a changed copy and what was changed."""
    index = 0
    while True:
        rng = random.Random(f"{seed}/{index}")
        name = rng.choice(sorted(files))
        data, what = mutate(files[name], rng)
        if rng.random() < 0.15:
            data, more = mutate_again(data, rng)
            what = f"{what}; {more}"
        yield name, data, what
        index += 1


def mutate_again(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return a file with a second change, where the first left a readable one."""
    try:
        onnx.load_from_string(data)
    except Exception:  # bytes that are no protobuf any more
        return data, "unreadable"
    return mutate(data, rng)


def warm_up() -> None:
    """Run a whole network in this process, so that forked ones have all that a run imports."""
    import torch

    from qtool.verification import ort_process

    ort_process.COMMAND = VERIFIER
    torch.set_num_threads(1)
    here, words, folder_of_temporaries = Path.cwd(), sys.argv, os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="qtool-warm-") as place:
        write_seeds(Path(place))
        (Path(place) / "m.onnx").write_bytes(residual().proto().SerializeToString())
        (Path(place) / "residual.npz").rename(Path(place) / "d.npz")
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as errors:
            code = command(Path(place))
        os.chdir(here)
        sys.argv = words
    assert code in (0, 1), errors.getvalue()
    os.environ.pop("TMPDIR")
    if folder_of_temporaries is not None:
        os.environ["TMPDIR"] = folder_of_temporaries
    tempfile.tempdir = None
    assert threading.active_count() == 1, "a thread that a fork would lose"
    gc.collect()
    gc.freeze()  # the collector of a forked process would copy every page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--state", type=Path, default=Path("build/fuzz/models.json"))
    parser.add_argument("--again", action="store_true", help="run the mutants that failed again")
    args = parser.parse_args()
    warm_up()
    fresh = {"done": 0, "codes": {}, "failures": [], "peak_mb": 0, "seconds": 0.0}
    state = load_state(args.state, fresh)
    with tempfile.TemporaryDirectory(prefix="qtool-fuzz-") as place:
        files = write_seeds(Path(place) / "seeds")
        only = {f["index"] for f in state["failures"]} if args.again else None
        if args.again:
            state["failures"] = []
        start = time.monotonic()
        for index, (name, data, what) in enumerate(mutants(args.seed, files)):
            if only is not None and index > max(only, default=-1):
                break
            if only is None and (index >= args.count or time.monotonic() - start > args.seconds):
                break
            if (index not in only) if only is not None else (index < state["done"]):
                continue
            ended, broken = one(Path(place) / "case", data, Path(place) / "seeds" / f"{name}.npz")
            record(state, args.state, index, (name, data, what), ended, broken)
    codes = Counter(state["codes"])
    print(f"{state['done']} mutants: exit codes {dict(codes)}, {len(state['failures'])} failures, "
          f"peak {state['peak_mb']} MB, slowest {state['seconds']:.1f} s")  # fmt: skip
    return 1 if state["failures"] else 0


def record(state, file, index, mutant, ended, broken) -> None:
    """Add the end of one mutant to the state and save it."""
    name, data, what = mutant
    if index >= state["done"]:
        state["done"] = index + 1
        code = str(ended.code)
        state["codes"][code] = state["codes"].get(code, 0) + 1
    state["peak_mb"] = max(state["peak_mb"], ended.peak_mb)
    state["seconds"] = max(state["seconds"], ended.seconds)
    if broken:
        (file.parent / f"{file.stem}-{index}.onnx").write_bytes(data)
        entry = {"index": index, "network": name, "change": what, "broken": broken}
        state["failures"].append({**entry, "text": ended.text[-600:]})
        print(f"{index} {name}: {what}: {broken}\n    {ended.text[-300:]}", flush=True)
    save_state(file, state)


if __name__ == "__main__":
    sys.exit(main())
