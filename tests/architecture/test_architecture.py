"""Floors, fences, docstrings and sizes of qtool's source; each check has twins it must fail."""

import subprocess
import sys

import pytest
import source

CHECKS = [source.bad_floors, source.bad_fences, source.bad_docstrings, source.bad_sizes]


@pytest.mark.parametrize("check", CHECKS)
def test_the_source_obeys(check):
    complaints = [line for item in source.modules().items() for line in check(*item)]
    assert not complaints, "\n".join(complaints)


def test_the_longest_are_shown(capsys):
    with capsys.disabled():
        print("\n" + source.size_table(longest=3))


FLOORS, FENCES, DOCSTRINGS, SIZES = CHECKS
LAZY_EMIT = "def f():\n    from qtool.emitters.qdq import g"
BY_NAME = "import importlib\nimportlib.import_module('onnx')"


@pytest.mark.parametrize(
    ("check", "module", "text", "complaint"),
    [
        (FLOORS, "numerics", "import qtool.quant.plan", "(floor 0) imports qtool.plan"),
        (FLOORS, "plan", LAZY_EMIT, "imports qtool.emit.qdq"),
        (FLOORS, "freeze", "from qtool import annotate", "imports qtool.annotate"),
        (FLOORS, "data.images", "import qtool.verification.ort_worker", "imports qtool.verify"),
        (FLOORS, "verify", "from qtool.emitters.qdq import f", "imports qtool.emit.qdq"),
        (FLOORS, "recipe_yaml", "import qtool.pipeline.run", "imports qtool.pipeline (floor 4)"),
        (FLOORS, "graph", "from . import plan", "absolute imports only"),
        (FLOORS, "plan", "import qtool.helpers", "imports qtool.helpers"),
        (FLOORS, "helpers", "", "stands on no floor"),
        (FLOORS, "", "from qtool.quant.plan import QuantPlan", "imports qtool.plan"),
        (FENCES, "freeze", "from onnx import numpy_helper", "allowed in ('load', 'emit')"),
        (FENCES, "load.onnx", "import onnxruntime", "imports onnxruntime"),
        (FENCES, "execute.ops", "import onnxruntime as ort", "imports onnxruntime"),
        (FENCES, "verify", BY_NAME, "imports onnx"),
        (FENCES, "pipeline", "def f():\n    from rich import print", "imports rich"),
        (FENCES, "reporting.html", "import typer", "imports typer"),
        (FENCES, "data.images", "def f():\n    import torch", "must load without torch"),
        (FENCES, "cli.ptq", "from torch import nn", "must load without torch"),
        (DOCSTRINGS, "plan", '"""Doc."""\ndef f(): pass', "f has no docstring"),
        (DOCSTRINGS, "plan", '"""D."""\nclass C:\n """D."""\n def m(self): 1', "m has no"),
        (DOCSTRINGS, "plan", "x = 1", "the module has no docstring"),
        (SIZES, "plan", "x = 1\n" * 401, "401 lines, at most 400"),
        (SIZES, "plan", "def f():\n" + " x = 1\n" * 60, "f: 61 lines, at most 60"),
        (SIZES, "cli.ptq", "def f(\n):\n" + " x = 1\n" * 61, "f: 61 lines, at most 60"),
    ],
)  # fmt: skip
def test_a_check_can_fail(check, module, text, complaint):
    assert complaint in "\n".join(check(module, text))


@pytest.mark.parametrize(
    ("check", "module", "text"),
    [
        (FLOORS, "verify", "from qtool.data import images\nimport qtool.report.report"),
        (FLOORS, "plan", "from qtool.graph.queries import f\nimport onnx_ir, torch"),
        (FLOORS, "ptq.gptq", "import qtool.ptq.reconstruct"),
        (FLOORS, "protocols", "if TYPE_CHECKING:\n    from qtool.quant.plan import QuantPlan"),
        (FENCES, "load.onnx", "from onnx import version_converter"),
        (FENCES, "execute.ort", "import onnxruntime"),
        (FENCES, "cli.qat", "def f():\n    import torch"),
        (DOCSTRINGS, "plan", '"""Doc."""\ndef _f(): pass'),
        (SIZES, "plan", "x = 1\n" * 400),
        (SIZES, "cli.ptq", "def f(\n" + "\n" * 60 + "):\n x = 1"),
        (FLOORS, "cli.main", "from qtool.version import __version__"),
    ],
)
def test_a_check_passes_what_is_allowed(check, module, text):
    assert check(module, text) == []


HEAVY = "torch onnx onnx_ir onnxscript onnxruntime numpy PIL sklearn"
IMPORT = "import qtool.cli.main"
HELP = """
from qtool.cli.main import main
sys.argv = ["qtool", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code
"""


def loaded_by(code: str) -> set[str]:
    """Which of HEAVY a fresh interpreter has loaded after running ``code``."""
    tail = f"\nprint('LOADED', *(set(sys.modules) & set({HEAVY.split()})))"
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code + tail],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


@pytest.mark.parametrize("code", [IMPORT, HELP], ids=["import", "help"])
def test_the_command_line_starts_light(code):
    assert loaded_by(code) == set()


def test_a_heavy_start_would_be_seen():
    assert loaded_by("import numpy") == {"numpy"}
