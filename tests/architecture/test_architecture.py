"""Check rooms, fences, docstrings, sizes and words of the source; each check has failing twins."""

import subprocess
import sys

import pytest
import source

CHECKS = [
    source.bad_floors,
    source.bad_fences,
    source.bad_docstrings,
    source.bad_sizes,
    source.bad_parameters,
    source.bad_words,
    source.bad_first_lines,
]


@pytest.mark.parametrize("check", CHECKS)
def test_the_source_obeys(check):
    complaints = [line for item in source.modules().items() for line in check(*item)]
    assert not complaints, "\n".join(complaints)


def test_the_longest_are_shown(capsys):
    with capsys.disabled():
        print("\n" + source.size_table(longest=3))


FLOORS, FENCES, DOCSTRINGS, SIZES, PARAMETERS, WORDS, FIRST_LINES = CHECKS
LAZY_EMIT = "def f():\n    from qtool.emitters.qdq import g"
TYPES_ONLY = "if TYPE_CHECKING:\n    from qtool.pipeline.run import run_ptq"
BY_NAME = "import importlib\nimportlib.import_module('onnx')"
EIGHT = "def f(a, b, c, d, *, e, g, h, i): pass"


@pytest.mark.parametrize(
    ("check", "module", "text", "complaint"),
    [
        (FLOORS, "quant.primitives", "import qtool.runtime.executor", "(floor 3) imports"),
        (FLOORS, "quant.plan", LAZY_EMIT, "imports qtool.emitters.qdq"),
        (FLOORS, "quant.freeze", "from qtool import annotation", "imports qtool.annotation"),
        (FLOORS, "data.readers.images", "import qtool.verification.parity", "imports qtool.verif"),
        (FLOORS, "verification.parity", "from qtool.qat.trainer import f", "imports qtool.qat"),
        (FLOORS, "recipe.yaml_loader", "import qtool.pipeline.run", "(floor 10)"),
        (FLOORS, "steps.context", TYPES_ONLY, "imports qtool.pipeline.run"),
        (FLOORS, "graph.queries", "from . import edit", "absolute imports only"),
        (FLOORS, "quant.plan", "import qtool.helpers", "imports qtool.helpers"),
        (FLOORS, "helpers", "", "stands on no floor"),
        (FENCES, "quant.freeze", "from onnx import numpy_helper", "allowed in ('loading', 'emit"),
        (FENCES, "loading.onnx_loader", "import onnxruntime", "imports onnxruntime"),
        (FENCES, "runtime.ops.nn", "import onnxruntime as ort", "imports onnxruntime"),
        (FENCES, "verification.ort_worker", BY_NAME, "imports onnx"),
        (FENCES, "pipeline.run", "def f():\n    from rich import print", "imports rich"),
        (FENCES, "report.render.html", "import typer", "imports typer"),
        (FENCES, "data.readers.images", "def f():\n    import torch", "must load without torch"),
        (FENCES, "cli.ptq", "from torch import nn", "must load without torch"),
        (FENCES, "recipe.model", "import torch", "must load without torch"),
        (DOCSTRINGS, "quant.plan", '"""Doc."""\ndef f(): pass', "f has no docstring"),
        (DOCSTRINGS, "quant.plan", '"""D."""\nclass C:\n """D."""\n def m(self): 1', "m has no"),
        (DOCSTRINGS, "quant.plan", "x = 1", "the module has no docstring"),
        (SIZES, "quant.plan", "x = 1\n" * 401, "401 lines, at most 400"),
        (SIZES, "quant.plan", "def f():\n" + " x = 1\n" * 60, "f: 61 lines, at most 60"),
        (SIZES, "cli.ptq", "def f(\n):\n" + " x = 1\n" * 61, "f: 61 lines, at most 60"),
        (PARAMETERS, "quant.plan", EIGHT, "f: 8 parameters, at most 7"),
        (WORDS, "quant.plan", "found = 1", "found: found"),
        (WORDS, "quant.plan", "def settle_sizes(): pass", "settle_sizes: settle"),
        (WORDS, "quant.plan", "class OrtJudge: pass", "OrtJudge: judge"),
        (WORDS, "quant.plan", "# What the child is told.", "prose says told"),
        (WORDS, "quant.plan", 'x = f"judged {y}"', "prose says judged"),
        (FIRST_LINES, "quant.plan", '"""What a plan is."""', 'the module: its docstring begins'),
        (FIRST_LINES, "quant.plan", 'def f():\n    """The plan."""', '"the" is no verb'),
        (FIRST_LINES, "graph.edit", 'def f():\n    """Whether."""', 'begins with "whether"'),
    ],
)  # fmt: skip
def test_a_check_can_fail(check, module, text, complaint):
    assert complaint in "\n".join(check(module, text))


@pytest.mark.parametrize(
    ("check", "module", "text"),
    [
        (
            FLOORS,
            "verification.ort_worker",
            "from qtool.data import images\nimport qtool.quant.plan",
        ),
        (FLOORS, "quant.plan", "from qtool.graph.queries import f\nimport onnx_ir, torch"),
        (FLOORS, "ptq.gptq", "import qtool.ptq.reconstruction"),
        (FLOORS, "cli.main", "from qtool.version import __version__"),
        (FENCES, "loading.onnx_loader", "from onnx import version_converter"),
        (FENCES, "runtime.ort_node", "import onnxruntime"),
        (FENCES, "cli.qat", "def f():\n    import torch"),
        (DOCSTRINGS, "quant.plan", '"""Doc."""\ndef _f(): pass'),
        (SIZES, "quant.plan", "x = 1\n" * 400),
        (SIZES, "cli.ptq", "def f(\n" + "\n" * 60 + "):\n x = 1"),
        (PARAMETERS, "quant.plan", "class C:\n def f(self, a, b, c, d, e, g, h): pass"),
        (PARAMETERS, "runtime.ops.nn", EIGHT),
        (WORDS, "quant.plan", "x = FileNotFoundError('found 3, expected 4')"),
        (WORDS, "runtime.ops.shape", "def slice_(ends): pass"),
        (FIRST_LINES, "quant.plan", 'class C:\n    """A plan."""'),
        (FIRST_LINES, "quant.plan", 'class C:\n @property\n def f(self):\n  """The plan."""'),
    ],
)
def test_a_check_passes_what_is_allowed(check, module, text):
    assert check(module, text) == []


def test_rooms_are_small_and_no_module_imports_itself_in_a_circle():
    paths = [path.relative_to(source.ROOT / "qtool") for path in source.paths()]
    assert source.bad_rooms([str(path) for path in paths]) == []
    assert source.cycles(source.modules()) == []
    assert len(source.FLOORS) <= 14


def test_a_full_room_and_a_circle_would_be_seen():
    files = [f"data/m{k}.py" for k in range(16)] + [f"m{k}.py" for k in range(11)]
    assert source.bad_rooms(files) == [
        "qtool/data: 16 files, at most 15",
        "qtool/: 11 files, at most 10",
    ]
    assert source.bad_rooms([*files[:14], "data/__init__.py"]) == []
    lazily = "def f():\n    from qtool.b.y import g"
    assert source.cycles({"a.x": "import qtool.b.y", "b.y": "import qtool.a.x"})
    assert source.cycles(
        {"a.x": lazily, "b.y": "import qtool.c", "c": "import qtool.a.z", "a.z": ""}
    )
    assert source.cycles({"a.x": lazily, "b.y": "import qtool.c", "c": ""}) == []


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
