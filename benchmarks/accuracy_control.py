"""Quantize with NNCF's accuracy control, and verify its ONNX file with qtool."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.networks import Network, absolute, data_folder
from benchmarks.peer_process import PeerError, run_peer, write_samples
from benchmarks.timing import inputs_of, session
from qtool.data import DataSection, open_dataset

# Samples that calibrate and that decide, at most; of a smaller section each is a half.
CALIBRATE, VALIDATE = 512, 1024


def with_accuracy_control(
    python: str, network: Network, fold: int, target: Path, settings: Mapping[str, str]
) -> dict[str, Any]:
    """Write NNCF's file; return its seconds, CPU seconds and versions.

    Args:
        python: interpreter of an environment with nncf and onnxruntime.
        network: with its data; evaluation samples are not read.
        fold: of the data.
        target: the file to write.
        settings: max_drop in points, model_type of NNCF and threads, as text.
    """
    source = data_folder() / network.model
    samples = target.with_suffix(".npz")
    _save_samples(network, fold, source, samples)
    words = [*map(str, (source, samples, target)), settings["model_type"]]
    try:
        return run_peer(
            python,
            "nncf_accuracy_control",
            [*words, settings["max_drop"], settings["threads"]],
        )
    except PeerError as error:
        sys.exit(f"{target.name}: NNCF {error}")


def _save_samples(network: Network, fold: int, source: Path, path: Path) -> None:
    """Write two disjoint parts of the calibration section: to calibrate on, and to decide by."""
    specs = inputs_of(session(source))
    section = {**absolute(network.folds[fold][0]), "count": None}
    whole = open_dataset(DataSection.model_validate(section), specs)
    count = min(CALIBRATE, whole.count // 2)
    first = [k * whole.count // count for k in range(count)]
    rest = sorted(set(range(whole.count)) - set(first))
    more = min(VALIDATE, len(rest))
    second = [rest[k * len(rest) // more] for k in range(more)]
    parts = {"calibrate/": whole.take(first), "validate/": whole.take(second)}
    write_samples(path, parts, [*specs, "label"])
