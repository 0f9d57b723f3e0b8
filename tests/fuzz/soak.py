"""All long tests in turn, each going on where it ended, and the table of docs/reliability.md.

PYTHONPATH=tests python -m fuzz.soak [--folder build/soak]
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
NAMES = ("recipes", "inputs", "models")
RECIPES, INPUTS, MODELS, KILLS = 200_000, 100_000, 20_000, 100


def stages(folder: Path) -> list[list[str]]:
    """Return the words of each test's command, behind ``python -m``."""
    return [
        ["fuzz.fuzz_inputs", "--recipes", f"--count={RECIPES}", f"--state={folder}/recipes.json"],
        ["fuzz.fuzz_inputs", f"--count={INPUTS}", f"--state={folder}/inputs.json"],
        ["fuzz.kills", f"--kills={KILLS}", f"--state={folder}/kills.json"],
        ["fuzz.fuzz_models", f"--count={MODELS}", f"--state={folder}/models.json"],
    ]


def table(folder: Path) -> str:
    """Return the figures of what ran, as Markdown."""

    def state(name: str) -> dict[str, Any]:
        file = folder / f"{name}.json"
        return json.loads(file.read_text()) if file.exists() else {"done": 0, "failures": []}

    models, kills = state("models"), state("kills")
    codes = ", ".join(
        f"{count} x {code}" for code, count in sorted(models.get("codes", {}).items())
    )
    done = {name: (state(name)["done"], len(state(name)["failures"])) for name in NAMES}
    rows = [
        ("damaged recipes", *done["recipes"], ""),
        ("damaged recipes, data files, plans, reports", *done["inputs"], ""),
        ("mutated models through `qtool ptq`", *done["models"],
         f"exit codes {codes}; peak {models.get('peak_mb', 0)} MB"),
        ("kills, resumed", kills.get("kills", 0), len(kills["failures"]),
         f"{kills.get('bytes', 0)} bytes compared"),
    ]  # fmt: skip
    lines = ["| what | tried | failed | figures |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/soak"))
    folder = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS)))}
    failed = 0
    for words in stages(folder):
        failed |= subprocess.run([sys.executable, "-m", *words], env=environment).returncode
    print(table(folder))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
