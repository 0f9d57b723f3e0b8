"""The page of benchmarks.peers: every tool's file beside qtool's on the same samples."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.machine import heading, load_rows, results_folder, table
from benchmarks.peers_settings import PEERS
from benchmarks.repair import NAMES, SETTINGS

Own = Mapping[str, Any]

# qtool's own rows of benchmarks.repair at each width.
OWN = {"W8A8": ("w8a8_default", "w8a8_equalize"), "W4A8": ("w4a8_gptq", "w4a8_fast")}

NOTE = """
All tools: the same calibration samples without labels (at most 512 of fold 0), the same evaluation
samples, accuracy of the written file in ONNX Runtime by `qtool verify`. W4A8: first and last layer
8 bits. Layers: those whose weight is stored as integers, of all with a constant weight; a file
without any is called not quantized, whatever its accuracy. Minutes are of the tool alone, on a
machine with other work: not a measurement of speed. A network without a row of a setting was not
run with it.

The last column compares qtool's file with the tool's. The share of samples on which two files
differ is at most d = (1 - a) + (1 - b), with a and b their agreement with the float network, so the
standard error of the difference of their accuracies is at most sqrt(d / samples). `leads` and
`behind` are differences above 1.96 of it; the rest is `level`.

"""
HEADER = [
    *("network", "tool", "setting", "calibrated on", "evaluated on", "float %", "file %", "drop"),
    *("layers, or what failed", "bytes", "min", "versions", "qtool % (bytes)", "qtool"),
]


def page(kept: Mapping[str, Any]) -> str:
    """Return the page."""
    own = load_rows(results_folder() / "repair.json")
    text = heading("Tools that install for ONNX", "python -m benchmarks.peers") + NOTE
    for width, settings in OWN.items():
        titles = "; ".join(SETTINGS[key].title for key in settings)
        text += f"## {width}\n\nqtool: {titles}.\n\n"
        text += "".join(
            f"{key.partition('/')[0]} has no row: {setting.cannot}.\n\n"
            for key, setting in PEERS.items()
            if setting.width == width and setting.cannot
        )
        rows = [
            _line(key, name, kept[f"{key}/{name}"], _own_rows(own, name, settings))
            for name in NAMES
            for key, setting in PEERS.items()
            if setting.width == width and f"{key}/{name}" in kept
        ]
        text += table(HEADER, rows) + "\n" + _summary(width, kept, own)
    return text


def _own_rows(own: Own, name: str, settings: Sequence[str]) -> Own:
    """Return qtool's rows of a network, by setting."""
    rows = {key: own.get(f"{name}/{key}/0") for key in settings}
    return {key: row for key, row in rows.items() if row is not None}


def _line(key: str, name: str, row: Mapping[str, Any], own: Own) -> list[object]:
    tool = key.partition("/")[0]
    start: list[object] = [name, tool, PEERS[key].title, row["samples"]]
    versions = ", ".join(f"{k} {v}" for k, v in row.get("versions", {}).items()) or "-"
    minutes = f"{row['seconds'] / 60:.1f}" if "seconds" in row else "-"
    if "failed" in row:
        middle = ["-", "-", "-", row["failed"].replace("|", "/"), "-", "-", minutes, versions]
    else:
        accuracy = row["accuracy"]
        middle = [
            accuracy["samples"],
            *(f"{accuracy[k]:.2f}" for k in ("float", "quantized")),
            f"{accuracy['float'] - accuracy['quantized']:.2f}",
            _layers(row),
            row["bytes"],
            minutes,
            versions,
        ]
    return [*start, *middle, _own_cell(own, row), _verdicts(own, row)]


def _layers(row: Mapping[str, Any]) -> str:
    layers, types = row["layers"], row["layers"]["types"]
    if not is_quantized(row):
        return "not quantized"
    stored = ", ".join(f"{count} {kind}" for kind, count in sorted(types.items()))
    return f"{stored} (of {layers['layers']})"


def is_quantized(row: Mapping[str, Any]) -> bool:
    """Return whether any layer's weight passes through integers."""
    return any(not kind.startswith("float") or "Q" in kind for kind in row["layers"]["types"])


def _own_cell(own: Own, row: Mapping[str, Any]) -> str:
    """Return accuracy and bytes of each of qtool's files."""
    cells = []
    for key, each in own.items():
        size = row.get("float_bytes")
        of_bytes = f" ({size / each['compression']:.0f})" if size else ""
        cells.append(f"{_step(key)} {each['accuracy']['quantized']:.2f}{of_bytes}")
    return "; ".join(cells) or "-"


def _verdicts(own: Own, row: Mapping[str, Any]) -> str:
    cells = (f"{_step(key)} {verdict(each['accuracy'], row)}" for key, each in own.items())
    return "; ".join(cells) or "-"


def _step(key: str) -> str:
    """Return a setting's name without its width."""
    return key.partition("_")[2]


def verdict(own: Mapping[str, float], row: Mapping[str, Any]) -> str:
    """Return whether qtool's file is better than a tool's, by more than the sampling error.

    Args:
        own: accuracy of qtool's file, in %.
        row: of the tool.
    """
    if row.get("failed", "").startswith("stopped"):
        return "-"
    if "failed" in row or not is_quantized(row):
        return "leads (no quantized file)"
    theirs = row["accuracy"]
    if own["samples"] != theirs["samples"]:
        return "other samples"
    difference = own["quantized"] - theirs["quantized"]
    if abs(difference) <= 1.96 * _standard_error(own, theirs):
        return f"level ({difference:+.2f})"
    return f"{'leads' if difference > 0 else 'behind'} ({difference:+.2f})"


def _standard_error(own: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """Return the largest standard error of the difference of two accuracies, in points."""
    samples = own["samples"]
    if "agreement" in own and "agreement" in theirs:
        differing = 2 - (own["agreement"] + theirs["agreement"]) / 100
        return 100 * math.sqrt(differing / samples)
    shares = [each["quantized"] / 100 for each in (own, theirs)]
    return 100 * math.sqrt(sum(p * (1 - p) for p in shares) / samples)


def _summary(width: str, kept: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Return for each setting of qtool how often it leads, is level and is behind."""
    text = ""
    for key in OWN[width]:
        counts = dict.fromkeys(("leads", "level", "behind"), 0)
        for peer, setting in PEERS.items():
            for name in NAMES:
                row, mine = kept.get(f"{peer}/{name}"), own.get(f"{name}/{key}/0")
                if setting.width == width and row and mine:
                    word = verdict(mine["accuracy"], row).split()[0]
                    counts[word] = counts.get(word, 0) + 1
        counted = ", ".join(f"{word} {count}" for word, count in counts.items())
        text += f"{SETTINGS[key].title}, over all rows with a row of qtool: {counted}.\n\n"
    return text
