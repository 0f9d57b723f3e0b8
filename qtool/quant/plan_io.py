"""Write and read a plan: readable ``plan.json``, arrays in ``plan.npz``; equal plans, equal bytes.

Two files hold one plan. The keys are part of the file format and older than the names of the fields
in QuantPlan: "passes" is ``data_movement_ops``, "stored" is ``weight_only``, "floats" is
``float_nodes``, and "values/" in plan.npz is ``weight_overrides``.
"""

import io
import json
import zipfile
import zlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from qtool.errors import RecipeError
from qtool.files import atomic_path, write_text_atomic
from qtool.quant.plan import DynamicSite, QuantPlan, Site
from qtool.quant.primitives import Codebook, PerBlock, PerChannel, PerTensor, QuantParams, QuantSpec

VERSION = 1

# Exceptions that reading damaged or foreign files raises.
DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)


def write_plan(plan: QuantPlan, folder: Path) -> None:
    """Write ``plan.json`` and ``plan.npz`` into a folder.

    Args:
        plan: any plan, frozen or not.
        folder: an existing folder; files of an earlier plan are replaced.
    """
    text, arrays = encode_plan(plan)
    with atomic_path(folder / "plan.npz") as temporary, zipfile.ZipFile(temporary, "w") as archive:
        write_arrays(archive, arrays)
    write_text_atomic(folder / "plan.json", text)


def encode_plan(plan: QuantPlan) -> tuple[str, dict[str, np.ndarray]]:
    """Return the text of ``plan.json`` and the arrays of ``plan.npz``.

    Args:
        plan: any plan, frozen or not.
    """
    arrays: dict[str, np.ndarray] = {}
    grids: dict[str, Any] = {}
    for name, grid in plan.grids.items():
        spec = grid.spec if isinstance(grid, QuantParams) else grid
        grids[name] = {**asdict(spec), "granularity": _granularity_fields(spec.granularity)}
        if isinstance(grid, QuantParams):
            arrays[f"scale/{name}"] = grid.scale
            arrays[f"zero_point/{name}"] = grid.zero_point
            if isinstance(grid, Codebook):
                arrays[f"levels/{name}"] = grid.levels
            if grid.scale.ndim == 0:
                grids[name] |= {"scale": float(grid.scale), "zero_point": int(grid.zero_point)}
    arrays.update({f"codes/{name}": a for name, a in plan.codes.items()})
    arrays.update({f"values/{name}": a for name, a in plan.weight_overrides.items()})
    arrays.update({f"masks/{name}": a for name, a in plan.masks.items()})
    document = {
        "version": VERSION,
        "sites": [asdict(site) for site in plan.sites.values()],
        "passes": sorted(plan.data_movement_ops),
        "grid_of": dict(plan.grid_of),
        "grids": grids,
        "stored": sorted(plan.weight_only),
        "dynamic": [asdict(site) for site in plan.dynamic.values()],
        "floats": dict(plan.float_nodes),
        "log": list(plan.log),
    }
    return json.dumps(document, indent=1) + "\n", arrays


def read_plan(path: Path) -> QuantPlan:
    """Read the plan written by :func:`write_plan`.

    Args:
        path: the ``plan.json``; ``plan.npz`` is read from the same folder.

    Raises:
        RecipeError: a file is missing, damaged or of another version.
    """
    try:
        text = path.read_text()
        data = io.BytesIO(path.with_suffix(".npz").read_bytes())
        with np.load(data, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return decode_plan(text, arrays, path)
    except DAMAGE as error:
        raise RecipeError(
            f"plan {path}: not a readable plan ({type(error).__name__}: {error}); "
            "give the plan.json of a finished run, with its plan.npz beside it"
        ) from error


def decode_plan(text: str, arrays: dict[str, np.ndarray], path: Path) -> QuantPlan:
    """Return the plan that :func:`encode_plan` returned as a text and arrays.

    Args:
        text: of ``plan.json``.
        arrays: of ``plan.npz``.
        path: the file, for messages.

    Raises:
        RecipeError: another version of the format.
    """
    document = json.loads(text)
    if document["version"] != VERSION:
        raise RecipeError(
            f"plan {path}: version {document['version']}, expected {VERSION}; make it again"
        )
    sites = [Site(**_tuples(raw)) for raw in document["sites"]]
    dynamic = [DynamicSite(**_tuples(raw)) for raw in document["dynamic"]]
    return QuantPlan(
        sites={site.name: site for site in sites},
        data_movement_ops=frozenset(document["passes"]),
        grid_of=dict(document["grid_of"]),
        grids={name: _grid(name, raw, arrays) for name, raw in document["grids"].items()},
        codes=_part(arrays, "codes/"),
        weight_overrides=_part(arrays, "values/"),
        masks=_part(arrays, "masks/"),
        weight_only=frozenset(document["stored"]),
        dynamic={site.name: site for site in dynamic},
        float_nodes=dict(document["floats"]),
        log=tuple(document["log"]),
    )


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}


def _tuples(raw: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}


def _granularity_fields(granularity: PerTensor | PerChannel | PerBlock) -> dict[str, Any]:
    return {"kind": granularity.name, **asdict(granularity)}


def _grid(name: str, raw: dict[str, Any], arrays: dict[str, np.ndarray]) -> QuantSpec | QuantParams:
    options = dict(raw["granularity"])
    kinds = {"tensor": PerTensor, "channel": PerChannel, "block": PerBlock}
    granularity = kinds[options.pop("kind")](**options)
    raw = {**raw, "granularity": granularity}
    spec = QuantSpec(**{f.name: raw[f.name] for f in fields(QuantSpec)})
    if f"scale/{name}" not in arrays:
        return spec
    params = QuantParams(spec, arrays[f"scale/{name}"], arrays[f"zero_point/{name}"])
    if f"levels/{name}" in arrays:
        return Codebook(spec, params.scale, params.zero_point, arrays[f"levels/{name}"])
    return params


def write_arrays(archive: zipfile.ZipFile, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as an .npz whose bytes depend only on them (numpy's holds the time of writing).

    Args:
        archive: open for writing.
        arrays: by name.
    """
    for name in sorted(arrays):
        info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
        array = np.asarray(arrays[name])
        with archive.open(info, "w", force_zip64=array.nbytes > 1 << 30) as part:
            np.lib.format.write_array(part, array, allow_pickle=False)
