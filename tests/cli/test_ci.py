"""Files for continuous integration: their shell lines run, and fail where a gate fails."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/ci.md").read_text()
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step.get("name"): step for step in ACTION["runs"]["steps"]}


@pytest.fixture(scope="module")
def place(digits, tmp_path_factory) -> Path:
    """A folder with a recipe called recipe.yaml, and `qtool` on the path."""
    folder = tmp_path_factory.mktemp("ci")
    recipe = yaml.safe_load((digits / "int8.yaml").read_text())
    recipe["model"] = str(digits / recipe["model"])
    recipe["calibrate"] |= {"images": str(digits / "data/train"), "count": 32}
    recipe["evaluate"] |= {"images": str(digits / "data/test"), "count": 64}
    recipe["gates"] = {"max_drop": 10.0}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "bin").mkdir()
    command = folder / "bin/qtool"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qtool "$@"\n')
    command.chmod(0o755)
    done = bash(folder, "qtool ptq --recipe recipe.yaml --out runs/main --quiet")
    assert done.returncode == 0, done.stderr
    return folder


def bash(folder: Path, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a CI job does: it ends at the first command that fails."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def step_env(name: str, **inputs: str) -> dict[str, str]:
    """The environment of a step of the action, with its inputs filled in."""
    defaults = {key: str(value.get("default", "")) for key, value in ACTION["inputs"].items()}
    values = defaults | inputs
    return {
        key: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda match: values[match[1]], text)
        for key, text in STEPS[name]["env"].items()
    }


PIP = """#!/bin/sh
# Checks what an install names instead of asking a registry for it.
echo "pip $*" >> "$LOG"
while [ $# -gt 0 ]; do
  case "$1" in
    -c) shift; test -f "$1" || { echo "no constraints: $1" >&2; exit 1; } ;;
    /*) test -f "$1/pyproject.toml" || { echo "no project: $1" >&2; exit 1; } ;;
  esac
  shift
done
"""


@pytest.fixture
def registry(tmp_path) -> Path:
    """A folder with stand-ins for pip, `python -m pip` and useradd; they write to `log`."""
    (tmp_path / "bin").mkdir()
    python = '#!/bin/sh\ntest "$1 $2" = "-m pip" || exit 1\nshift 2\nexec pip "$@"\n'
    for name, text in (("pip", PIP), ("python", python), ("useradd", "#!/bin/sh\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def installed(registry: Path, script: str, **env: str) -> str:
    """Run a script that installs, and return what it asks pip for."""
    log = registry / "log"
    done = bash(registry, script, LOG=str(log), **env)
    assert done.returncode == 0, done.stderr
    return log.read_text()


def test_the_lines_of_the_dockerfile_run_on_what_it_copies(registry):
    source = registry / "image/src"
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    for words in (line.split() for line in lines if line.startswith("COPY ")):
        *names, target = (Path(word) for word in words[1:])
        for name in names:
            place = registry / "image" / target.relative_to("/")
            place = place / name if words[-1].endswith("/") else place
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(ROOT / name)
            assert place.exists(), name
    project = tomllib.loads((source / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [project["project"]["readme"], *project["project"]["license-files"]]
    for name in (*needed, *wheel["packages"], *wheel["force-include"]):
        assert (source / name).exists(), f"the wheel needs {name}, which is not copied"
    runs = [line.removeprefix("RUN ") for line in lines if line.startswith("RUN ")]
    script = "\n".join(runs).replace("/src", str(source))
    assert f"{source}\n" in installed(registry, script)
    assert not source.exists() and (ROOT / "pyproject.toml").exists()


def test_the_lines_that_install_in_a_job_run(registry):
    asked = installed(registry, STEPS["Install"]["run"], ACTION=str(ROOT))
    assert asked.splitlines()[1].endswith(str(ROOT))
    (gitlab,) = blocks("yaml gitlab")
    before = yaml.safe_load(gitlab)["quantize"]["before_script"]
    assert "torch qtool" in installed(registry, "\n".join(before))


def test_the_action_caches_what_its_own_files_name(registry):
    """The workspace of a job is another repository: nothing of qtool lies in it."""
    output = registry / "output"
    script = STEPS["Find cache"]["run"]
    env = {"ACTION": str(ROOT), "GITHUB_OUTPUT": str(output), "LOG": str(registry / "log")}
    done = bash(registry, script, **env)
    assert done.returncode == 0, done.stderr
    outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
    assert set(outputs) == {"folder", "key"} and re.fullmatch("[0-9a-f]{40}", outputs["key"])
    assert "pip cache dir" in (registry / "log").read_text()
    text = json.dumps(ACTION["runs"]["steps"])
    read = set(re.findall(r"steps\.pip\.outputs\.(\w+)", text))
    assert read == set(outputs) and "cache-dependency-path" not in text


@pytest.mark.slow
def test_the_shell_lines_of_the_page_run(place):
    for script in blocks("sh"):
        done = bash(place, script)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    assert "<testsuite" in (place / "junit.xml").read_text()
    assert "top-1" in (place / "summary.md").read_text()


def test_the_action_runs_a_recipe_and_writes_the_summary(place, tmp_path):
    inputs = {"recipe": "recipe.yaml", "arguments": "--quiet --seed 1", "out": "runs/action"}
    done = bash(place, STEPS["Quantize"]["run"], **step_env("Quantize", **inputs))
    assert done.returncode == 0, done.stderr
    assert json.loads((place / "runs/action/report.json").read_text())["seed"] == 1
    summary = tmp_path / "summary.md"
    env = step_env("Summary", **inputs, baseline="runs/main")
    done = bash(place, STEPS["Summary"]["run"], GITHUB_STEP_SUMMARY=str(summary), **env)
    assert done.returncode == 0, done.stderr
    assert "runs/action" in summary.read_text()
    assert (place / "runs/action/junit.xml").is_file()


@pytest.mark.slow
def test_a_failed_gate_fails_the_step_and_still_has_a_summary(place, tmp_path):
    inputs = {
        "recipe": "recipe.yaml",
        "arguments": "--quiet --set gates.min_compression=99",
        "out": "runs/action",
    }
    assert bash(place, STEPS["Quantize"]["run"], **step_env("Quantize", **inputs)).returncode == 1
    env = step_env("Summary", **inputs) | {"GITHUB_STEP_SUMMARY": str(tmp_path / "s.md")}
    assert bash(place, STEPS["Summary"]["run"], **env).returncode == 0
    assert "min_compression" in (tmp_path / "s.md").read_text()


def test_without_a_report_the_summary_is_left_out(place, tmp_path):
    env = step_env("Summary", recipe="recipe.yaml", out="runs/none")
    env |= {"GITHUB_STEP_SUMMARY": str(tmp_path / "s.md")}
    assert bash(place, STEPS["Summary"]["run"], **env).returncode == 0
    assert not (tmp_path / "s.md").exists()


def test_inputs_reach_scripts_through_the_environment_only():
    """A recipe called `$(rm -rf .)` must stay a name: nothing is pasted into a script."""
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


@pytest.mark.slow
def test_gitlab_and_pre_commit_call_commands_that_exist(place):
    (gitlab,) = blocks("yaml gitlab")
    job = yaml.safe_load(gitlab)["quantize"]
    for line in (*job["script"], *job["after_script"]):
        done = bash(place, line)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    (page,) = blocks("yaml pre-commit")
    assert yaml.safe_load(page)["repos"][0]["hooks"][0]["id"] == hook["id"]
    assert bash(place, f"{hook['entry']} recipe.yaml").returncode == 0
    (place / "broken.yaml").write_text("model: gone.onnx\n")
    assert bash(place, f"{hook['entry']} recipe.yaml broken.yaml").returncode == 2


def test_the_page_uses_the_action_with_inputs_that_it_has():
    (github,) = blocks("yaml github")
    step = yaml.safe_load(github)["jobs"]["int8"]["steps"][1]
    assert set(step["with"]) <= set(ACTION["inputs"])
    required = {key for key, value in ACTION["inputs"].items() if value.get("required")}
    assert required <= set(step["with"])
