"""Damaged recipes, data files, plans and reports through the functions that read them.

    PYTHONPATH=tests python -m fuzz.fuzz_inputs --count 200000 --state build/fuzz/inputs.json

An input passes where it is read, or refused by an error that is the user's to fix, within SECONDS
of the processor and MEMORY. State is saved every 1000 inputs; inputs that fail are kept next to it.
"""

import argparse
import io
import json
import random
import resource
import signal
import sys
import tempfile
import time
import wave
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
from fuzz.state import load_state, save_state
from PIL import Image

from qtool.data import DataSection, InputSpec, open_dataset
from qtool.errors import QtoolError
from qtool.quant.plan_io import read_plan
from qtool.recipe.loader import load_recipe
from qtool.report.report import Report

SECONDS, MEMORY = 20, 4 << 30
RNG = np.random.default_rng(0)
WORDS = (
    "null", "true", "[]", "{}", "-1", "1e999", "nan", "''", "&a", "*a", "<<", "!!python/name:x",
    "9" * 400, "\t", "\0", "\r", "\ufeff", "é", "\ud800", "%", "..", "/dev/zero", "[[", "- -",
    ": :", "weights", "bits", "layers", "name:*", "gates", "ptq", "auto", "4", "0x10", "1_0",
    "2001-01-01",
)  # fmt: skip
RECIPES = (
    "model: m.onnx\ntarget: onnxruntime-cpu\ncalibrate:\n  images: train\n  count: 512\n"
    "  take: {every: 2, offset: 0}\n  preprocess: {resize: 8, mean: [0.5, 0.4, 0.3], std: 0.5}\n"
    "  method: {percentile: {q: 0.9999}}\nevaluate: {images: train, metric: top1, simulate: all}\n"
    "bits:\n  weights: 4\n  activations: 8\n  granularity: {block: 32}\n"
    "  layers: {first: 8, 'op:Gemm': {weights: 8, activations: 8}, 'name:*/x': float}\n"
    "rewrite: [fold_batchnorm, equalize]\nptq: [gptq, {adaround: {iterations: 10}}]\n"
    "gates: {max_drop: 1.0, min_compression: 3.5}\noutput: {format: qdq, opset: 21, io: float}\n",
    "model: {onnx: m.onnx, input: {x: {shape: [N, 3, 8, 8], batch_axis: 0}, s: {constant: 3}}}\n"
    "calibrate: {arrays: {path: d.npz, inputs: {x: x}, label: y}, method: auto}\n"
    "bits: {budget: {weights: 18%, among: [4, 8]}}\nplacement: auto\n"
    "qat: {arrays: d.npz, quantizer: lsq, epochs: 3, distill: {weight: 0.5, temperature: 2.0}}\n",
)


@dataclass(frozen=True)
class Door:
    """A kind of file: the name it is written under, whole examples, and what reads it."""

    name: str
    examples: tuple[bytes, ...]
    read: Callable[[Path], object]


def _samples(section: dict[str, object], *shape: int | str) -> object:
    spec = {"x": InputSpec("x", ("N", *shape), "float32")}
    data = open_dataset(DataSection(**section), spec)
    return [data.digests(), *data.batches(2)]


def _tokens(path: Path) -> object:
    spec = {"input_ids": InputSpec("input_ids", ("N", 4), "int64")}
    section = DataSection(text={"path": str(path), "tokenizer": str(path.parent / "vocab.txt")})
    return list(open_dataset(section, spec).batches(2))


def _labels(path: Path) -> object:
    section = {"images": str(path.parent / "train"), "labels": str(path)}
    return _samples(section | {"preprocess": "cifar10"}, 3, 8, 8)


def doors(folder: Path) -> list[Door]:
    """Return all doors; writes what they need besides the file itself."""

    def saved(write: Callable[[io.BytesIO], None]) -> bytes:
        stream = io.BytesIO()
        write(stream)
        return stream.getvalue()

    def image(form: str) -> bytes:
        picture = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8))
        return saved(lambda stream: picture.save(stream, form))

    def sound(stream: io.BytesIO) -> None:
        with wave.open(stream, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(RNG.bytes(400))

    x, y = RNG.normal(size=(6, 4)).astype(np.float32), np.arange(6)
    images, sounds = folder / "train" / "a", folder / "sound"
    for each in (images, sounds):
        each.mkdir(parents=True)
    (images / "a.png").write_bytes(image("PNG"))
    (folder / "m.onnx").write_bytes(b"")
    np.savez(folder / "d.npz", x=x, y=y)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\na\nb\n")
    pixels = {"images": str(folder / "one"), "preprocess": "cifar10"}
    table = b"text\tlabel\na b\t0\nb\t1\n"
    arrays = lambda path: _samples({"arrays": str(path)}, 4)  # noqa: E731
    return [
        Door("r.yaml", tuple(map(str.encode, RECIPES)), load_recipe),
        Door("a.npz", (saved(lambda s: np.savez(s, x=x, y=y)),
                       saved(lambda s: np.savez_compressed(s, x=x))), arrays),
        Door("a.npy", (saved(lambda s: np.save(s, x)),), arrays),
        Door("one/a.png", (image("PNG"), image("JPEG"), image("GIF"), image("BMP")),
             lambda path: _samples(pixels, 3, 8, 8)),
        Door("sound/a.wav", (saved(sound),),
             lambda path: _samples({"wav": str(path.parent)}, 64)),
        Door("f.tsv", (table,), _tokens),
        Door("f.csv", (table.replace(b"\t", b","),), _tokens),
        Door("f.jsonl", (b'{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n',), _tokens),
        Door("l.csv", (b"a/a.png,1\n",), _labels),
        Door("l.json", (b'{"a/a.png": 1}',), _labels),
        Door("plan.json", (b'{"format": 1, "grids": {}, "sites": [], "grid_of": {}}',), read_plan),
        Door("report.json", (b'{"schema": 1, "qtool": "0.1.0", "command": "ptq", "seed": 0}',),
             Report.read),
    ]  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return the file with one to three changes of bytes, lines or words."""
    content = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(content) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            content[place : place + 1] = rng.randbytes(1)
        elif kind == 1:
            del content[place : place + rng.randrange(1, 30)]
        elif kind == 2:
            word = rng.choice(WORDS).encode("utf-8", "surrogatepass")
            content[place : place + rng.randrange(8)] = word
        elif kind == 3:
            other = rng.randrange(len(content) + 1)
            content[place:place] = content[other : other + rng.randrange(1, 60)]
        elif kind == 4:
            lines = bytes(content).split(b"\n")
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
            content = bytearray(b"\n".join(lines))
        else:
            content[place : place + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
    return bytes(content)


class TooSlow(BaseException):
    """Raised by the alarm; no handler of ordinary errors catches it."""


def _alarm(signum: int, frame: FrameType | None) -> None:
    raise TooSlow


def failure(door: Door, path: Path) -> str:
    """Read a file; return what went wrong, "" where it was read or refused."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with redirect_stderr(io.StringIO()):
            door.read(path)
    except QtoolError as error:
        return "" if str(error).strip() else "an empty message"
    except TooSlow:
        return f"took over {SECONDS} s"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--recipes", action="store_true", help="recipes alone")
    parser.add_argument("--state", type=Path, default=Path("build/fuzz/inputs.json"))
    args = parser.parse_args()
    signal.signal(signal.SIGPROF, _alarm)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    state = load_state(args.state, {"done": 0, "by_door": {}, "failures": []})
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="qtool-fuzz-") as place:
        folder = Path(place)
        every = doors(folder)
        every = every[:1] if args.recipes else every
        while state["done"] < args.count and time.monotonic() - start < args.seconds:
            rng = random.Random(f"{args.seed}/{state['done']}")
            door = every[state["done"] % len(every)]
            path = folder / door.name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(damaged(rng.choice(door.examples), rng))
            if wrong := failure(door, path):
                kept = args.state.parent / f"{args.state.stem}-{state['done']}{path.suffix}"
                kept.write_bytes(path.read_bytes())
                state["failures"].append({"file": kept.name, "door": door.name, "wrong": wrong})
                print(f"{kept.name} ({door.name}): {wrong}", flush=True)
            path.unlink()
            state["done"] += 1
            state["by_door"][door.name] = state["by_door"].get(door.name, 0) + 1
            if state["done"] % 1000 == 0:
                save_state(args.state, state)
    save_state(args.state, state)
    print(f"{state['done']} inputs, {len(state['failures'])} failures: "
          f"{json.dumps(state['by_door'])}")  # fmt: skip
    return 1 if state["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
