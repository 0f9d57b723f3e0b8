"""``qtool sensitivity`` on the digits: report, page, terminal, errors."""

import json

from typer.testing import CliRunner

from qtool.cli.main import app
from qtool.report.render import render
from qtool.report.report import Report


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)


def test_costs_stand_in_the_report(digits, tmp_path):
    recipe, out = digits / "int8.yaml", tmp_path / "run"
    args = ("sensitivity", recipe, "--out", out, "--samples", 24, "--set", "bits.weights=4")
    result = run(*args, "--json", "--quiet", "--set", "calibrate.count=48")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report == json.loads((out / "report.json").read_text())
    rows = report["sensitivity"]
    kinds = {row["kind"] for row in rows}
    assert {"both", "weights", "activations", "cumulative"} <= kinds
    assert report["command"] == "sensitivity" and "accuracy" not in report
    assert report["passed"] is None and "nothing is evaluated" in report["verdict"]["reason"]
    assert all(row["kl"] >= 0 and "drop" in row for row in rows)
    whole = {row["kind"]: row["kl"] for row in rows if row["site"] == "all"}
    assert whole["both"] > 0
    page = (out / "report.html").read_text()
    assert "Cost of sites" in page and "Weights alone" in page
    assert "cost alone" in (out / "report.md").read_text()
    notes = [note for stage in report["stages"] for note in stage["notes"]]
    assert any("24 calibration samples" in note for note in notes)
    shown = render({"run": Report.read(out)}, "terminal")
    assert "Sites that cost most alone" in shown and "all Conv" in shown


def test_a_recipe_that_is_not_there(tmp_path):
    result = run("sensitivity", tmp_path / "none.yaml")
    assert result.exit_code == 2 and "none.yaml" in result.output
