"""Keep a plan in one file, and compute a digest of its content, for caching stages."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np

from qtool.quant.plan import QuantPlan
from qtool.quant.plan_io import decode_plan, encode_plan, write_arrays
from qtool.quant.primitives import Codebook, QuantParams

PLAN, EXTRA = "plan.json", "extra.json"


def save_plan_archive(plan: QuantPlan, path: Path, extra: str = "{}") -> None:
    """Write a plan to one zip file.

    Args:
        plan: any plan.
        path: the file; replaced when it exists.
        extra: a JSON text to keep beside the plan.
    """
    text, arrays = encode_plan(plan)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(PLAN, text)
        file.writestr(EXTRA, extra)
        write_arrays(file, arrays)


def load_plan_archive(path: Path) -> tuple[QuantPlan, str]:
    """Read a plan and the extra text written by :func:`save_plan_archive`."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name not in (PLAN, EXTRA)}
        text, extra = (file.zip.read(name).decode() for name in (PLAN, EXTRA))
    return decode_plan(text, arrays, path), extra


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
