"""A calibrated plan of a small network with the context that steps read."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
from models import Net, bind, cpu, rewritten

from qtool.annotation.annotator import annotate
from qtool.calibration import MinMax
from qtool.calibration.collect import choose_grids, collect, observed_values
from qtool.data.dataset import Dataset
from qtool.data.inputs import InputSpec
from qtool.data.spool import ArraySource
from qtool.quant.bit_widths import Bits
from qtool.quant.plan import QuantPlan
from qtool.rewrites.folding.add_bias import add_bias
from qtool.steps import layer_guard
from qtool.steps.context import Context
from qtool.steps.stage_cache import StageCache
from qtool.weights.grids import weight_grids

_CACHES = tempfile.TemporaryDirectory(prefix="qtool-test-")


def samples(model: ir.Model, rows: int, seed: int = 3) -> dict[str, np.ndarray]:
    """Return correlated inputs with a mean, [rows, ...]; images are smooth."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        shape = [rows, *[int(str(d)) for d in list(value.shape or ())[1:]]]
        x = rng.normal(0.5, 1, shape)
        if x.ndim > 2:
            x = x + rng.normal(0, 1, shape[:2] + [1] * (x.ndim - 2))
        feeds[value.name or ""] = x.astype(np.float32)
    return feeds


def keep_every_layer(monkeypatch) -> None:
    """Let every layer-wise step keep each layer's change, whatever ``holdout`` says."""
    monkeypatch.setattr(layer_guard, "relative_errors", lambda run, site, plans: [1.0, 0.0])


def calibrated(
    net: Net,
    bits: Bits | None = None,
    rows: int = 64,
    folder: Path | None = None,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[QuantPlan, Context]:
    """Return a plan with grids, min-max, and a context over random samples, changed or not.

    Its cache is in ``folder``, or in one of its own.
    """
    model = net.model()
    feeds = samples(model, rows)
    if change is not None:
        feeds = {name: change(array) for name, array in feeds.items()}
    bind(model, {name: array[:4] for name, array in feeds.items()})
    rewritten(model)
    add_bias(model, lambda node: True)
    plan = annotate(model, cpu(), bits or Bits())
    stats = collect(model, observed_values(model, plan), [feeds], histograms=False, threads=1)
    plan = weight_grids(model, choose_grids(plan, stats, MinMax()))
    names = tuple(f"sample {k}" for k in range(rows))
    specs = {n: InputSpec(n, ("N", *a.shape[1:]), "float32") for n, a in feeds.items()}
    data = Dataset(names, ArraySource(feeds), tuple(range(rows)))
    context = Context(
        model=model,
        name="net",
        sha256="0",
        target=cpu(),
        bits=bits or Bits(),
        inputs=specs,
        calibration=data,
        cache=StageCache(folder or Path(tempfile.mkdtemp(dir=_CACHES.name))),
    )
    return plan, context
