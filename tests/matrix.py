"""Install the wheel in many environments, without the repository, and run the digits demo in each.

python tests/matrix.py [--only ROW] [-- INDEX OPTIONS OF UV]

Environments lie in build/matrix; rows that passed before with the same wheel are not run again.
torch has the version of constraints.txt in all of them.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build/matrix"
# The index of torch's CPU builds has some other packages too, in few versions.
BEST_MATCH = ("--index-strategy", "unsafe-best-match")
SHOWN = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "pydantic", "scipy", "typer")


@dataclass(frozen=True)
class Row:
    """One environment.

    Attributes:
        name: of the row.
        python: version of the interpreter, which uv fetches where the system has none.
        resolution: how uv chooses versions; "tested" is constraints.txt.
        bare: run with a home that cannot be written, another TMPDIR, no git and no display.
    """

    name: str
    python: str
    resolution: str = "tested"
    bare: bool = False


ROWS = (
    Row("3.11, tested versions", "3.11"),
    Row("3.12, tested versions", "3.12"),
    Row("3.13, tested versions", "3.13"),
    Row("3.14, tested versions", "3.14"),
    Row("3.11, lowest versions", "3.11", "lowest-direct"),
    Row("3.11, highest versions", "3.11", "highest"),
    Row("3.11, bare surroundings", "3.11", bare=True),
)


@dataclass
class Result:
    """How a row ended: the first step that failed, or empty; and what the demo measured."""

    failed: str = ""
    text: str = ""
    seconds: float = 0.0
    quantized: float | None = None
    share_off: float | None = None
    versions: dict[str, str] = field(default_factory=dict)


class Failed(Exception):
    """A step of a row ended with another code than 0."""


def run(step: str, command: list[str | Path], folder: Path, env: dict[str, str]) -> str:
    """Return what a command printed; raise Failed with the end of it where it failed."""
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    text = (ended.stdout + ended.stderr)[-2000:]
    if ended.returncode:
        raise Failed(f"{step}: exit {ended.returncode}", text)
    if step == "demo" and (ended.stderr or not ended.stdout.startswith("{")):
        raise Failed("demo: warnings, or no report", text)
    return ended.stdout


def bare_surroundings(folder: Path, env: dict[str, str]) -> dict[str, str]:
    """Return an environment without git and display, with another TMPDIR and a read-only home."""
    home, temporary = folder / "home", folder / "temporary"
    for each in (home, temporary):
        each.mkdir(exist_ok=True)
    home.chmod(0o555)
    kept = {key: env[key] for key in ("LANG", "LC_ALL") if key in env}
    return {**kept, "HOME": str(home), "TMPDIR": str(temporary), "PATH": str(folder / "bin")}


def measure(row: Row, wheel: Path, options: list[str]) -> Result:
    """Make the environment of a row, run the demo in it, and return how that ended."""
    result, start = Result(), time.monotonic()
    folder = BUILD / hashlib.sha256(row.name.encode()).hexdigest()[:12]
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    python = folder / "bin/python"
    try:
        uv = [sys.executable, "-m", "uv"]
        run("venv", [*uv, "venv", "-q", "--clear", "--python", row.python, folder], BUILD, env)
        tested = (ROOT / "constraints.txt").read_text().splitlines()
        torch = BUILD / "torch.txt"
        torch.write_text("".join(f"{pin}\n" for pin in tested if pin.startswith("torch==")))
        versions = ROOT / "constraints.txt"
        if row.resolution != "tested":
            versions = folder / "versions.txt"
            resolve = [*uv, "pip", "compile", "-q", ROOT / "pyproject.toml", "--extra", "digits"]
            resolve += [*options, "-c", torch, "--resolution", row.resolution]
            run("resolve", [*resolve, "--python", python, "-o", versions], BUILD, env)
        install = [*uv, "pip", "install", "-q", "--python", python, *options, "-c", versions]
        run("install", [*install, f"{wheel}[digits]"], BUILD, env)
        listed = json.loads(
            run(
                "versions", [*uv, "pip", "list", "--format", "json", "--python", python], BUILD, env
            )
        )
        result.versions = {each["name"]: each["version"] for each in listed}
        data = shutil.ignore_patterns("data")
        shutil.copytree(ROOT / "recipes/digits", folder / "digits", ignore=data, dirs_exist_ok=True)
        if row.bare:
            env = bare_surroundings(folder, env)
        run("prepare", [python, "digits/prepare.py"], folder, env)
        command = [folder / "bin/qtool", "ptq", "--recipe", "digits/int8.yaml", "--out", "run"]
        report = json.loads(run("demo", [*command, "--json", "--quiet", "--fresh"], folder, env))
        result.quantized = report["accuracy"]["quantized"]
        result.share_off = report["parity"]["share_off"]
        if row.bare:
            left = [*(folder / "home").iterdir(), *(folder / "temporary").iterdir()]
            result.failed = f"left behind: {left}" if left else ""
    except Failed as error:
        result.failed, result.text = error.args
    result.seconds = round(time.monotonic() - start, 1)
    return result


def table(results: dict[str, Result]) -> str:
    """Return the rows as Markdown."""
    lines = [
        f"| environment | {' | '.join(SHOWN)} | ended | top-1 | codes off |",
        "|---" * (len(SHOWN) + 4) + "|",
    ]
    for name, result in results.items():
        versions = " | ".join(result.versions.get(each, "") for each in SHOWN)
        numbers = ("" if x is None else f"{x:g}" for x in (result.quantized, result.share_off))
        lines.append(
            f"| {name} | {versions} | {result.failed or 'passed'} | {' | '.join(numbers)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the rows that did not pass yet, print the table, and return 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="rows whose name contains this")
    parser.add_argument("options", nargs="*", help="further options of uv pip install")
    words = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    (wheel,) = (ROOT / "dist").glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    state = BUILD / "results.json"
    saved = json.loads(state.read_text()) if state.exists() else {}
    saved = saved if saved.get("wheel") == digest else {"wheel": digest, "rows": {}}
    for row in ROWS:
        before = saved["rows"].get(row.name)
        chosen = words.only is None or words.only in row.name
        if not chosen or (before is not None and not before["failed"]):
            continue
        result = measure(row, wheel, [*words.options, *BEST_MATCH])
        print(f"{row.name}: {result.failed or 'passed'}, {result.seconds} s", file=sys.stderr)
        if result.text:
            print(result.text, file=sys.stderr)
        saved["rows"][row.name] = asdict(result)
        state.write_text(json.dumps(saved, indent=1))
    results = {
        row.name: Result(**saved["rows"][row.name]) for row in ROWS if row.name in saved["rows"]
    }
    print(table(results))
    return int(any(result.failed for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
