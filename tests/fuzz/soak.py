"""All long tests, a few at a time, each going on where it ended, and the table of their figures.

PYTHONPATH=tests python -m fuzz.soak [--folder build/soak] [--jobs 2]
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
RECIPES, INPUTS, MODELS, KILLS = 200_000, 100_000, 20_000, 100
SHARDS = 8  # of the models, each with a seed and a state of its own
MOST = ("peak_mb", "seconds")


def tests_of(folder: Path) -> list[list[str]]:
    """Return the words of each test's command, behind ``python -m``."""
    each = MODELS // SHARDS
    return [
        *(
            [
                "fuzz.fuzz_models",
                f"--seed={k}",
                f"--count={each}",
                f"--state={folder}/models-{k}.json",
            ]
            for k in range(SHARDS)
        ),
        ["fuzz.kills", f"--kills={KILLS}", f"--state={folder}/kills.json"],
        ["fuzz.fuzz_inputs", "--recipes", f"--count={RECIPES}", f"--state={folder}/recipes.json"],
        ["fuzz.fuzz_inputs", f"--count={INPUTS}", f"--state={folder}/inputs.json"],
    ]


def summed(folder: Path, pattern: str) -> dict[str, Any]:
    """Return the states that fit a pattern as one: numbers added, the largest of those in MOST."""
    total: dict[str, Any] = {"done": 0, "kills": 0, "bytes": 0, "codes": Counter(), "failures": []}
    total |= dict.fromkeys(MOST, 0)
    for file in sorted(folder.glob(pattern)):
        state = json.loads(file.read_text())
        total["failures"] += state["failures"]
        total["codes"].update(state.get("codes", {}))
        for key in ("done", "kills", "bytes"):
            total[key] += state.get(key, 0)
        for key in MOST:
            total[key] = max(total[key], state.get(key, 0))
    return total


def table(folder: Path) -> str:
    """Return the figures of what ran, as Markdown."""
    recipes, inputs, models, kills = (
        summed(folder, f"{name}.json") for name in ("recipes", "inputs", "models-*", "kills")
    )
    codes = ", ".join(f"{count} x {code}" for code, count in sorted(models["codes"].items()))
    rows = [
        ("damaged recipes", recipes["done"], recipes, ""),
        ("damaged recipes, data files, plans, reports", inputs["done"], inputs, ""),
        ("mutated models through `qtool ptq`", models["done"], models,
         f"exit codes {codes}; at most {models['peak_mb']} MB more than an idle process"),
        ("kills, resumed", kills["kills"], kills, f"{kills['bytes']} bytes compared"),
    ]  # fmt: skip
    lines = ["| what | tried | failed | figures |", "|---|---|---|---|"]
    return "\n".join(
        lines + [f"| {what} | {n} | {len(s['failures'])} | {text} |" for what, n, s, text in rows]
    )


def run(words: list[str]) -> int:
    """Run one test in a process of its own; return its exit code."""
    paths = {"PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS)))}
    return subprocess.run([sys.executable, "-m", *words], env=os.environ | paths).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/soak"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="tests at a time")
    words = parser.parse_args()
    folder = words.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(words.jobs) as pool:
        codes = list(pool.map(run, tests_of(folder)))
    print(table(folder))
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main())
