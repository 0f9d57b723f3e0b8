"""Keep a plan in one file, and compute a digest of its content, for caching stages."""

import hashlib
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from qtool.quant.plan import QuantPlan
from qtool.quant.plan_io import read_plan, write_plan
from qtool.quant.primitives import Codebook, QuantParams

EXTRA = "extra.json"


def save_plan_archive(plan: QuantPlan, path: Path, extra: str = "{}") -> None:
    """Write a plan into one zip file.

    Args:
        plan: any plan.
        path: the file; replaced when it exists.
        extra: a JSON text to keep beside the plan.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, zipfile.ZipFile(path, "w") as file:
        write_plan(plan, Path(folder))
        for name in ("plan.json", "plan.npz"):
            file.write(Path(folder) / name, name)
        file.writestr(EXTRA, extra)


def load_plan_archive(path: Path) -> tuple[QuantPlan, str]:
    """Read a plan and the extra text written by :func:`save_plan_archive`."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as file:
        file.extractall(folder)
        return read_plan(Path(folder) / "plan.json"), (Path(folder) / EXTRA).read_text()


def plan_digest(plan: QuantPlan) -> str:
    """Return the sha256 of a plan's sites, grids, codes, replaced weights and masks.

    The log is left out.
    Equal plans have equal digests whether they were just made or read from a file.
    """
    total = hashlib.sha256()
    for part in (
        plan.sites,
        plan.dynamic,
        sorted(plan.data_movement_ops),
        sorted(plan.weight_only),
    ):
        total.update(repr(part).encode())
    for name, grid_id in sorted(plan.grid_of.items()):
        total.update(f"{name} {grid_id}".encode())
    for name, grid in sorted(plan.grids.items()):
        if not isinstance(grid, QuantParams):
            total.update(f"{name} {grid}".encode())
            continue
        total.update(f"{name} {grid.spec}".encode())
        total.update(np.asarray(grid.scale, np.float32).tobytes())
        total.update(np.asarray(grid.zero_point, np.int32).tobytes())
        if isinstance(grid, Codebook):
            total.update(np.ascontiguousarray(grid.levels).tobytes())
    for arrays in (plan.codes, plan.weight_overrides, plan.masks):
        for name, array in sorted(arrays.items()):
            total.update(f"{name} {array.dtype} {array.shape}".encode())
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
