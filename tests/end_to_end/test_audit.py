"""Every number of report.json that the files determine is recomputed from them, without qtool."""

import json
import subprocess
import sys
from pathlib import Path

import audit
import pytest

from qtool.pipeline.context import RunOptions
from qtool.pipeline.run import run_ptq, run_qat
from qtool.recipe.loader import load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*/*.yaml"))


def audited(run: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-I", audit.__file__, str(run)]  # -I: no qtool on the path of imports
    return subprocess.run(words, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_report_says_what_the_files_say(recipe, tmp_path, digits):
    settings = ["qat.epochs=1"] if "qat" in recipe.stem else []
    run = run_qat if settings else run_ptq
    run(load_recipe(recipe, settings), tmp_path / "run", RunOptions(threads=1))
    ended = audited(tmp_path / "run")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("\n") >= 14

    report = json.loads((tmp_path / "run" / "report.json").read_text())
    report["accuracy"]["quantized"] += 100 / report["accuracy"]["samples"]  # one sample more
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    ended = audited(tmp_path / "run")
    assert ended.returncode == 1 and ended.stdout.count("DIFFERS") == 1
