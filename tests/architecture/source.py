"""What qtool's source says of itself, read with ast: imports, docstrings, sizes.

Every check takes a module name and its text and returns complaints, so that it can be tried on a
bad snippet. Run as a script it prints the sizes (`make size`).
"""

import ast
import builtins
import io
import re
import tokenize
from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_FILE, MAX_FUNCTION = 400, 60

FLOORS = {  # imports go downwards only; a room is a package, or a module at the top of qtool/
    13: "__main__ qtool",
    12: "cli api",
    11: "pipeline",
    10: "recipe",
    9: "search diagnosis pruning",
    8: "ptq",
    7: "qat verification steps",
    6: "simulation",
    5: "annotation emitters",
    4: "targets calibration weights rewrites loading",
    3: "quant runtime",
    2: "graph data metrics report",
    1: "files native_output user_code",
    0: "errors version progress",
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}
ALLOWED: dict[tuple[str, str], str] = {}  # (importer, imported) on one floor -> the reason
FENCES = {  # third-party package -> the only modules that may import it
    "onnx": ("loading", "emitters"),
    "onnxscript": ("loading", "emitters"),
    # ort_node: operators that the table lacks; ort_session: statistics, where torch is 2-5 x slower
    "onnxruntime": (
        "verification.ort_worker",
        "verification.latency.timing_script",
        "runtime.ort_node",
        "runtime.ort_session",
        "runtime.ort_options",
    ),
    "openvino": ("verification.latency.timing_script",),
    "typer": ("cli",),
    "rich": ("cli", "report.render"),
}
WITHOUT_TORCH = ("errors", "files", "progress", "version", "user_code", "data", "metrics", "report")
WITHOUT_TORCH += ("quant", "targets", "graph", "recipe", "annotation", "emitters")
LIGHT = ("errors", "files", "progress", "version", "user_code", "data", "metrics", "report")
MAX_ROOM, MAX_TOP, MAX_PARAMETERS = 15, 10, 7


def paths() -> list[Path]:
    """Return the files of the package, sorted."""
    return sorted((ROOT / "qtool").rglob("*.py"))


def modules() -> dict[str, str]:
    """Name ("load.onnx", "" for the package itself) -> text, of every module of qtool."""
    found = {}
    for path in paths():
        name = ".".join(path.relative_to(ROOT / "qtool").with_suffix("").parts)
        found[name.removesuffix("__init__").removesuffix(".")] = path.read_text()
    return found


def part_of(module: str) -> str:
    """Return the room of a module: "loading.onnx_loader" -> "loading", "" -> "qtool"."""
    return module.split(".")[0] or "qtool"


def is_inside(module: str, place: str) -> bool:
    """Return whether ``module`` is ``place`` or lies below it."""
    return module == place or module.startswith(f"{place}.")


def imports(node: ast.AST, top_level: bool = True) -> Iterator[tuple[str, bool]]:
    """Yield (dotted name, at the top level?) of every import; TYPE_CHECKING blocks are lazy."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from imports(ast.Module([*child.body, *child.orelse], []), False)
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
    """Return imports that do not go downwards."""
    here, complaints = part_of(module), []
    if here not in FLOOR_OF:
        return [f"qtool.{module} stands on no floor: add it to FLOORS"]
    for name, _ in imports(ast.parse(text)):
        there = part_of(name.removeprefix("qtool."))
        if name.startswith("."):
            complaints.append(f"qtool.{module} imports {name}: absolute imports only")
        if not name.startswith("qtool.") or there == here or (here, there) in ALLOWED:
            continue
        floor, other = FLOOR_OF[here], FLOOR_OF.get(there, 99)
        if other > floor or (other == floor and floor > 0):
            complaints.append(f"qtool.{module} (floor {floor}) imports {name} (floor {other})")
    return list(dict.fromkeys(complaints))


def bad_fences(module: str, text: str) -> list[str]:
    """Third-party packages imported outside their fence."""
    complaints = []
    for name, top_level in imports(ast.parse(text)):
        package = name.split(".")[0]
        if package in FENCES and not any(is_inside(module, place) for place in FENCES[package]):
            complaints.append(f"qtool.{module} imports {name}, allowed in {FENCES[package]}")
        banned = part_of(module) in WITHOUT_TORCH or is_inside(module, "cli")
        if package == "torch" and banned and (top_level or part_of(module) in LIGHT):
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


def bad_parameters(module: str, text: str) -> list[str]:
    """Return functions with more than 7 parameters, ``self`` not counted.

    Commands of ``cli`` are left out: Typer reads their options from the parameters; so are the
    operator tables, whose parameters are the attributes that ONNX defines.
    """
    if is_inside(module, "cli") or is_inside(module, "runtime.ops"):
        return []
    complaints = []
    for node in functions(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            continue
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        if count > MAX_PARAMETERS:
            complaints.append(
                f"qtool.{module}:{node.name}: {count} parameters, at most {MAX_PARAMETERS}"
            )
    return complaints


# Words that the field does not use; docs/architecture.md names the ones it uses instead.
PRIVATE = {
    *("judge", "judges", "judged", "judging", "judgement", "settle", "settles", "settled"),
    *("found", "given", "asked", "wanted", "told", "known", "moved", "snap", "snapped", "snaps"),
    *("ends", "foresight", "accounts", "standing", "unfit", "kept", "lessons", "beside"),
}
PROSE = re.compile(  # "not judged" is a verdict of report.json
    r"\b((?<!not )judge[sd]?|judging|judgement|settle[sd]?|told|tells?|foresight|snap(s|ped)?"
    r"|unfit|lessons?|in vain|hands? out|theirs|by heart|its own business|without a word)\b",
    re.IGNORECASE,
)
QUESTIONS = ("what", "how", "whether", "which", "why", "where", "who", "when", "does", "is", "are")
ARTICLES = ("the", "a", "an", "one", "all", "every", "each", "this", "that", "these", "no", "as")


NOT_OURS = {  # (module or room, name): the reason why a private word stands there
    ("runtime.ops.shape", "ends"): "ONNX's attribute of Slice before opset 10",
    ("report", "kept"): "a key of report.json",
    ("steps.guard", "kept"): "a key of report.json",
    ("steps.layer_guard", "kept"): "a key of report.json",
    ("ptq.reconstruction.loop", "kept"): "a key of report.json",
}


def words_of(name: str) -> set[str]:
    """Return the words of an identifier: "held_out" -> {"held", "out"}, "QatNet" -> {"qat", ..}."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")
    return {part for part in parts if part}


def bad_words(module: str, text: str) -> list[str]:
    """Return identifiers made of private words, and prose that uses them."""
    complaints = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        where = f"qtool.{module}:{token.start[0]}"
        own = token.string not in vars(builtins) and not any(
            token.string == name and is_inside(module, place) for place, name in NOT_OURS
        )
        if token.type == tokenize.NAME and own and (bad := words_of(token.string) & PRIVATE):
            complaints.append(f"{where}: {token.string}: {', '.join(sorted(bad))}")
        if token.type in PROSE_TOKENS and (match := PROSE.search(token.string)):
            complaints.append(f"{where}: prose says {match[0]}")
    return list(dict.fromkeys(complaints))


PROSE_TOKENS = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}


def bad_first_lines(module: str, text: str) -> list[str]:
    """Return docstrings whose first line is a question, or of a function and no verb phrase."""
    tree, complaints = ast.parse(text), []
    for node in [tree, *functions(tree)]:
        doc = ast.get_docstring(node)
        if not doc:
            continue
        first = doc.split()[0].strip("`*.,:").lower()
        decorators = [ast.unparse(d) for d in getattr(node, "decorator_list", [])]
        noun_allowed = not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or any(
            "property" in name for name in decorators
        )
        name = getattr(node, "name", "the module")
        if first in QUESTIONS:
            complaints.append(f'qtool.{module}:{name}: its docstring begins with "{first}"')
        elif not noun_allowed and (first in ARTICLES or not first[:1].isalpha() or first == "true"):
            complaints.append(f'qtool.{module}:{name}: "{first}" is no verb; say what it does')
    return complaints


def bad_rooms(paths: Collection[str]) -> list[str]:
    """Return rooms with more than 15 files, and a top with more than 10.

    Args:
        paths: of modules below ``qtool/``, such as "data/dataset.py".
    """
    files: dict[str, int] = {}
    for path in paths:
        folder = path.rpartition("/")[0]
        files[folder] = files.get(folder, 0) + 1
    return [
        f"qtool/{folder}: {count} files, at most {MAX_ROOM if folder else MAX_TOP}"
        for folder, count in files.items()
        if count > (MAX_ROOM if folder else MAX_TOP)
    ]


def cycles(texts: Mapping[str, str]) -> list[str]:
    """Return modules that import each other in a circle, lazily or for types too.

    Args:
        texts: module name -> source.
    """
    edges = {
        module: {
            name.removeprefix("qtool.")
            for name, _ in imports(ast.parse(text))
            if name.startswith("qtool.")
        }
        for module, text in texts.items()
    }
    rooms: dict[str, set[str]] = {}
    for module, names in edges.items():
        here = part_of(module)
        rooms.setdefault(here, set()).update(part_of(name) for name in names)
        rooms[here].discard(here)
    found = []
    for graph in (edges, rooms):
        try:
            tuple(TopologicalSorter(graph).static_order())
        except CycleError as error:
            found.append(" -> ".join(error.args[1]))
    return found


def size_table(longest: int | None = None) -> str:
    """Lines per file and the longest functions, longest first; ``longest`` of each, or all."""
    found = sorted((size for item in modules().items() for size in sizes(*item)), reverse=True)
    files = [f"{lines:6} {name}" for lines, name in found if ":" not in name]
    long = [f"{lines:6} {name}" for lines, name in found if ":" in name]
    total = sum(lines for lines, name in found if ":" not in name)
    return "\n".join([*files[:longest], f"{total:6} lines in all", "", *long[: longest or 15]])


if __name__ == "__main__":
    import sys

    if sys.argv[1:2] == ["words"]:  # python tests/architecture/source.py words [ROOM ...]
        for module, text in modules().items():
            if not sys.argv[2:] or part_of(module) in sys.argv[2:]:
                print(*bad_words(module, text), *bad_first_lines(module, text), sep="\n", end="")
    else:
        print(size_table())
