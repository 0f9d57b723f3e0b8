"""Run the end of a float network in ONNX Runtime, from a cut of its graph on."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.convenience import extract

from qtool.runtime.ort_session import OrtSession


class Suffix:
    """The nodes behind a cut, in a session of ONNX Runtime: 2 to 3 times faster than torch.

    A call uses one thread; several threads may call at once.
    """

    def __init__(
        self,
        model: ir.Model,
        alive: Mapping[str, torch.Tensor],
        output: str,
    ) -> None:
        """Load the nodes between a cut and an output.

        Args:
            model: the float graph.
            alive: the values at the cut, for their types.
            output: name of the value to return.
        """
        self._output = output
        self._session: OrtSession | None = None
        if output in alive:
            return
        graph = extract(model.graph, list(alive), [output])
        for value in graph.inputs:
            if value.dtype is None:
                array = alive[str(value.name)].cpu().numpy()
                value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        part = ir.Model(
            graph, ir_version=model.ir_version, functions=list(model.functions.values())
        )
        self._session = OrtSession(part, threads=1)

    def __call__(self, values: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Return the output, float32.

        Args:
            values: alive at the cut.
        """
        if self._session is None:
            return np.asarray(values[self._output].float().cpu().numpy())
        feeds = {name: tensor.cpu().numpy() for name, tensor in values.items()}
        return np.asarray(self._session(feeds)[self._output], np.float32)

    def close(self) -> None:
        """Free the session."""
        self._session = None
