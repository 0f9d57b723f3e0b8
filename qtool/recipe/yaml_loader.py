"""YAML reading and writing for recipes: every value has its line, and no tag runs code.

Scalars follow the YAML 1.2 core schema: only ``true`` and ``false`` are booleans, ``1e-3`` is a
number, dates and ``yes`` are text. Anchors, aliases and merge keys work; tags beyond the core ones,
duplicate keys and alias bombs are errors.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml

from qtool.errors import KeyPath, RecipeError

MAX_CHARACTERS = 256 * 1024
MAX_NODES = 10_000  # values after aliases are expanded; a long recipe has about 100
MAX_DEPTH = 40

_CORE = "tag:yaml.org,2002:"
_PLAIN = {
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    "int": (re.compile(r"^[-+]?[0-9]+$|^0x[0-9a-fA-F]+$"), "-+0123456789"),
    "float": (
        re.compile(
            r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
            r"|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
        ),
        "-+.0123456789",
    ),
    "null": (re.compile(r"^(?:null|Null|NULL|~|)$"), ["n", "N", "~", ""]),
    "merge": (re.compile(r"^<<$"), "<"),
}


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2 scalars."""


class _Dumper(yaml.SafeDumper):
    """The safe dumper; it quotes exactly what :class:`_Loader` would misread."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write repeated values out, so that the file reads without anchors."""
        return True

    def text(self, data: str) -> yaml.Node:
        """Write text; the line breaks only YAML 1.1 knows must be escaped to survive reading."""
        style = '"' if _ODD_BREAKS.search(data) else None
        return self.represent_scalar(f"{_CORE}str", data, style=style)


_ODD_BREAKS = re.compile("[\x85\u2028\u2029]")
_Dumper.add_representer(str, _Dumper.text)

_Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1's
_Dumper.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(f"{_CORE}{_name}", _pattern, list(_first))
    _Dumper.add_implicit_resolver(f"{_CORE}{_name}", _pattern, list(_first))


@dataclass
class Document:
    """Plain data and where each part of it was written.

    Attributes:
        data: dictionaries, lists, strings, numbers, booleans and None.
        places: path of keys -> ``file:line`` (or the command-line option that set it).
        name: what to call the whole, for parts that have no line.
        notes: key -> what was derived for it from an option, for the report.
    """

    data: Any
    places: dict[KeyPath, str]
    name: str
    notes: dict[str, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Return the place of ``path``, or of its nearest parent that has one."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return self.name

    def error(self, path: KeyPath, text: str) -> RecipeError:
        """Return an error that starts with the place and the key path."""
        return RecipeError(text, path, self.place(path))

    def forget(self, path: KeyPath) -> None:
        """Drop the places of ``path`` and below: another source has replaced the value."""
        for old in [p for p in self.places if p[: len(path)] == path]:
            del self.places[old]


def parse(text: str, name: str) -> Document:
    """Read one YAML document.

    Args:
        text: the YAML.
        name: the file's name as the user wrote it, or the option, for messages.

    Returns:
        The data with a place for every key and list item.

    Raises:
        RecipeError: not YAML, duplicate keys, foreign tags, or expansion without end.
    """
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(f"{name}: found {len(text)} characters, expected a recipe (<= 256 KB)")
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError(f"{name}{_line(mark)}: {_explain(error)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(
            f"{name}:{line}: found the control character #x{error.character:04x}; remove it"
        ) from error
    except (RecursionError, ValueError) as error:
        raise RecipeError(f"{name}: not readable as YAML ({error}); nest less deeply") from error
    if node is None:
        return Document(None, {(): f"{name}:1"}, name)
    reader = _Reader(name)
    data = reader.value(node, ())
    return Document(data, reader.places, name)


def emit(data: Any) -> str:
    """Write plain data as YAML that :func:`parse` reads back to the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def emit_key(key: str, value: Any) -> str:
    """Write one key and its value as one line of YAML, without the line break."""
    flow = isinstance(value, dict | list)
    text: str = yaml.dump(
        value if flow else {key: value},
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=sys.maxsize,
        default_flow_style=flow,
    )
    return f"{key}: {text.strip()}" if flow else text.strip()


def _line(mark: yaml.Mark | None) -> str:
    return f":{mark.line + 1}" if mark else ""


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "unknown problem"
    if "\\t" in problem:
        return "found a tab in the indentation; use spaces"
    if "but found another document" in problem:
        return 'found a second document ("---"), expected one; keep one recipe per file'
    context = f"{error.context}: " if error.context else ""
    return f"not valid YAML: {context}{problem}"


@dataclass
class _Reader:
    """Walks composed nodes and counts them, so that aliases cannot expand without end."""

    name: str
    places: dict[KeyPath, str] = field(default_factory=dict)
    nodes: int = 0
    open: list[yaml.Node] = field(default_factory=list)

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return the plain value of ``node`` and record its line under ``path``."""
        self.places.setdefault(path, self.line(node))
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_CORE}map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_CORE}seq":
            with self.inside(node, path):
                return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        return self.scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        """Read a mapping and resolve its merge keys; its own keys win over merged ones."""
        own: list[tuple[str, yaml.Node, yaml.Node]] = []
        result: dict[str, Any] = {}
        seen: dict[str, int] = {}
        with self.inside(node, path):
            for key, value in node.value:
                word = self.key(key, path)
                if word in seen:
                    first = f"first on line {seen[word]}"
                    raise self.error(key, (*path, word), f"duplicate key, {first}; keep one")
                seen[word] = key.start_mark.line + 1
                if key.tag == f"{_CORE}merge":
                    for other in self.merged(value, path):
                        result = self.mapping(other, path) | result
                else:
                    own.append((word, key, value))
            for word, key, value in own:
                self.places[(*path, word)] = self.line(key)
                result[word] = self.value(value, (*path, word))
        return result

    @contextmanager
    def inside(self, node: yaml.Node, path: KeyPath) -> Iterator[None]:
        """Count a collection on the way in; refuse one that holds itself."""
        self.nodes += 1 + len(node.value)
        if node in self.open:
            raise self.error(node, path[:3], "an alias refers to itself; write the values out")
        if self.nodes > MAX_NODES or len(self.open) >= MAX_DEPTH:
            raise self.error(
                node,
                path[:3],
                f"aliases or nesting expand beyond {MAX_NODES} values or {MAX_DEPTH} levels; "
                "write the values out",
            )
        self.open.append(node)
        yield
        self.open.pop()

    def merged(self, node: yaml.Node, path: KeyPath) -> Iterator[yaml.MappingNode]:
        """Yield the mappings behind one ``<<``."""
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for item in items:
            if not isinstance(item, yaml.MappingNode):
                raise self.error(
                    node, (*path, "<<"), "found no mapping to merge; expected an alias to one"
                )
            yield item

    def key(self, node: yaml.Node, path: KeyPath) -> str:
        """Read a key, which must be a word."""
        tag = node.tag.rpartition(":")[2]
        if not isinstance(node, yaml.ScalarNode) or tag not in ("str", "merge"):
            scalar = isinstance(node, yaml.ScalarNode)
            shown = f'"{node.value}"' if scalar else "a list or mapping"
            raise self.error(node, path, f"found {shown} as a key, expected a word")
        return str(node.value)

    def scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        """Read a string, number, boolean or None."""
        make = _SCALARS.get(node.tag) if isinstance(node, yaml.ScalarNode) else None
        if make is None:
            raise self.error(
                node, path, f'found the tag "{node.tag}", which recipes do not allow; remove it'
            )
        try:
            return make(node.value)
        except ValueError as error:
            raise self.error(node, path, f'found "{node.value[:40]}" ({error})') from error

    def error(self, node: yaml.Node, path: KeyPath, text: str) -> RecipeError:
        """Return an error at ``node``'s own line."""
        return RecipeError(text, path, self.line(node))

    def line(self, node: yaml.Node) -> str:
        """Return ``file:line`` of ``node``."""
        return f"{self.name}{_line(node.start_mark)}"


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return text.lower() == "true"


def _integer(text: str) -> int:
    return int(text, 16) if text.lower().startswith("0x") else int(text)


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: dict[str, Any] = {
    f"{_CORE}str": str,
    f"{_CORE}bool": _boolean,
    f"{_CORE}int": _integer,
    f"{_CORE}float": _number,
    f"{_CORE}null": lambda text: None,
}
