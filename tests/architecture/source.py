"""What qtool's source says of itself, read with ast: imports, docstrings, sizes.

Every check takes a module name and its text and returns complaints, so that it can be tried on a
bad snippet. Run as a script it prints the sizes (`make size`).
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_FILE, MAX_FUNCTION = 400, 60

FLOORS = {
    6: "__main__",
    5: "cli",
    4: "pipeline judgement prepare steps training foresight api",
    3: "recipe catalog",
    2: "load rewrites annotate calibrate calibrators schemes snap saturation ptq qat search freeze"
    " emit verify watch parity accounts metrics data reporting",
    1: "graph folded_norm bits ends patterns execute plan report files stages usercode",
    0: "numerics scales targets protocols errors",
}  # fmt: skip
FLOOR_OF = {part: floor for floor, parts in FLOORS.items() for part in parts.split()}
ALLOWED = {  # from floor 2 up parts of one floor never import each other, but: (importer, imported)
    ("calibrate", "calibrators"): "calibrate gathers the statistics that a calibrator judges",
    ("calibrate", "schemes"): "and hands weights to their scheme",
    ("pipeline", "prepare"): "the pipeline is told in three files: before, the stages, after",
    ("pipeline", "judgement"): "and after the file is written",
    ("pipeline", "steps"): "with the steps themselves apart,",
    ("pipeline", "training"): "and training, which only `qtool qat` does,",
    ("training", "prepare"): "on data held to the same rules",
    ("foresight", "pipeline"): "a forecast goes the first steps of a run",
    ("foresight", "prepare"): "on what is read in the same way",
    ("qat", "data"): "the loop reads its batches in an order of its own",
    ("prepare", "steps"): "which resolve what the recipe asks for,",
    ("api", "steps"): "because the Python API calls the same ones",
    ("api", "prepare"): "on what is read in the same way",
    ("judgement", "prepare"): "what is judged was prepared",
    ("verify", "data"): "both files are judged through the one data pipeline",
    ("verify", "metrics"): "and by the one metric",
    ("recipe", "catalog"): "the catalog knows every name that a recipe may use",
}
FENCES = {  # third-party package -> the only modules that may import it
    "onnx": ("load", "emit"),
    "onnxscript": ("load", "emit"),
    # ort: a node the table lacks; ort_session: statistics, where torch is 2-5 times slower
    "onnxruntime": ("verify", "execute.ort", "execute.ort_session", "execute.ort_options"),
    "typer": ("cli",),
    "rich": ("cli", "reporting"),
}
WITHOUT_TORCH = (*FLOORS[0].split(), "data", "metrics", "report", "files", "reporting", "recipe")


def modules() -> dict[str, str]:
    """Name ("load.onnx", "" for the package itself) -> text, of every module of qtool."""
    found = {}
    for path in sorted((ROOT / "qtool").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "qtool").with_suffix("").parts)
        found[name.removesuffix("__init__").removesuffix(".")] = path.read_text()
    return found


def part_of(module: str) -> str:
    """The part that stands on a floor: "load.onnx" -> "load", "recipe_yaml" -> "recipe"."""
    top = module.split(".")[0]
    return top if top in FLOOR_OF else top.split("_")[0]


def is_inside(module: str, place: str) -> bool:
    """Whether ``module`` is ``place``, below it, or a part of it by name (verify_parity)."""
    return module == place or module.startswith(f"{place}.") or part_of(module) == place


def imports(node: ast.AST, top_level: bool = True) -> Iterator[tuple[str, bool]]:
    """(dotted name, at the top level?) of everything imported, TYPE_CHECKING blocks left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from imports(ast.Module(child.orelse, []), top_level)
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, top_level) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            if child.module == "qtool":
                names = [alias.name for alias in child.names if alias.name != "__version__"]
                yield from ((f"qtool.{name}", top_level) for name in names)
            else:
                yield "." * child.level + (child.module or ""), top_level
        elif isinstance(child, ast.Call) and "import_module" in ast.unparse(child.func):
            yield ast.unparse(child.args[0]).strip("'\""), top_level
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(child, top_level and not inside)


def bad_floors(module: str, text: str) -> list[str]:
    """Imports that do not go downwards."""
    here, complaints = part_of(module), []
    if module and here not in FLOOR_OF:
        return [f"qtool.{module} stands on no floor: add it to FLOORS"]
    for name, _ in imports(ast.parse(text)):
        there = part_of(name.removeprefix("qtool."))
        if name.startswith("."):
            complaints.append(f"qtool.{module} imports {name}: absolute imports only")
        if not name.startswith("qtool.") or there == here or (here, there) in ALLOWED:
            continue
        floor, other = FLOOR_OF.get(here, 0), FLOOR_OF.get(there, 9)
        if other > floor or (other == floor and floor > 1):
            complaints.append(f"qtool.{module} (floor {floor}) imports {name} (floor {other})")
    return list(dict.fromkeys(complaints))


def bad_fences(module: str, text: str) -> list[str]:
    """Third-party packages imported outside their fence."""
    complaints = []
    for name, top_level in imports(ast.parse(text)):
        package = name.split(".")[0]
        if package in FENCES and not any(is_inside(module, place) for place in FENCES[package]):
            complaints.append(f"qtool.{module} imports {name}, allowed in {FENCES[package]}")
        banned = part_of(module) in WITHOUT_TORCH or (is_inside(module, "cli") and top_level)
        if package == "torch" and banned:
            complaints.append(f"qtool.{module} imports {name}: it must load without torch")
    return list(dict.fromkeys(complaints))


def functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Every function and class, nested ones too."""
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child


def bad_docstrings(module: str, text: str) -> list[str]:
    """Public modules, functions, classes and methods without a docstring."""
    tree, complaints = ast.parse(text), []
    public = [child for child in functions(ast.Module(tree.body, [])) if child in tree.body]
    for owner in [child for child in public if isinstance(child, ast.ClassDef)]:
        public += (
            [] if owner.name.startswith("_") else [f for f in functions(owner) if f in owner.body]
        )
    for node in [tree, *(node for node in public if not node.name.startswith("_"))]:
        if not ast.get_docstring(node):
            complaints.append(
                f"qtool.{module}: {getattr(node, 'name', 'the module')} has no docstring"
            )
    return complaints


def sizes(module: str, text: str) -> list[tuple[int, str]]:
    """(lines, name) of the module and of each of its functions.

    In cli/ a function is counted from its first statement: the signature above it, which Typer
    reads, is the table of the command's options and their help.
    """
    found = [(len(text.splitlines()), f"qtool.{module}")]
    for node in functions(ast.parse(text)):
        if not isinstance(node, ast.ClassDef):
            start = node.body[0].lineno if is_inside(module, "cli") else node.lineno
            found.append((node.end_lineno - start + 1, f"qtool.{module}:{node.name}"))
    return found


def bad_sizes(module: str, text: str) -> list[str]:
    """Files past 400 lines, functions past 60."""
    limits = [
        (lines, name, MAX_FUNCTION if ":" in name else MAX_FILE)
        for lines, name in sizes(module, text)
    ]
    return [
        f"{name}: {lines} lines, at most {limit}" for lines, name, limit in limits if lines > limit
    ]


def size_table(longest: int | None = None) -> str:
    """Lines per file and the longest functions, longest first; ``longest`` of each, or all."""
    found = sorted((size for item in modules().items() for size in sizes(*item)), reverse=True)
    files = [f"{lines:6} {name}" for lines, name in found if ":" not in name]
    long = [f"{lines:6} {name}" for lines, name in found if ":" in name]
    total = sum(lines for lines, name in found if ":" not in name)
    return "\n".join([*files[:longest], f"{total:6} lines in all", "", *long[: longest or 15]])


if __name__ == "__main__":
    print(size_table())
