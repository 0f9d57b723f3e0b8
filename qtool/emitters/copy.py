"""Copy the float model that an emitter edits."""

import numpy as np
import onnx_ir as ir

from qtool.quant.plan import QuantPlan
from qtool.version import __version__


def copy_model(model: ir.Model, plan: QuantPlan, least_ir_version: int) -> ir.Model:
    """Copy a model, with the weights that steps replaced.

    Float ops read the replaced arrays from here; codes of replaced weights are in the plan.

    Args:
        model: the rewritten float graph; unchanged.
        plan: its ``weight_overrides`` become initializers of the copy.
        least_ir_version: lowest version of the file format that holds the emitted types.
    """
    graph = model.graph.clone()
    for name, array in plan.weight_overrides.items():
        value = graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            dtype = value.const_value.dtype.numpy()
            value.const_value = ir.Tensor(np.asarray(array, dtype, order="C"), name=name)
    return ir.Model(
        graph,
        ir_version=max(model.ir_version or 0, least_ir_version),
        producer_name="qtool",
        producer_version=__version__,
        metadata_props=dict(model.metadata_props),
    )
