"""New names and initializers for a graph that is being edited."""

import numpy as np
import onnx_ir as ir


class Names:
    """The names a graph and its bodies use; ``unique`` hands out new ones.

    Names are looked up once, when this is made: of edits made elsewhere it knows nothing.
    """

    def __init__(self, graph: ir.Graph) -> None:
        """Collect the names.

        Args:
            graph: with the bodies of its control flow, which see its values and so must not hide
                them behind equal names.
        """
        graphs = [graph, *graph.subgraphs()]
        self._taken: set[str | None] = {
            v.name for g in graphs for v in (*g.inputs, *g.initializers.values())
        }
        for node in graph.all_nodes():
            self._taken.update((node.name, *(v.name for v in node.outputs)))

    def unique(self, base: str) -> str:
        """``base``, or ``base_1``, ``base_2`` ... when that name is in use; then it is too."""
        name, k = base, 0
        while name in self._taken:
            k += 1
            name = f"{base}_{k}"
        self._taken.add(name)
        return name


def add_initializer(graph: ir.Graph, name: str, data: np.ndarray | ir.Tensor) -> ir.Value:
    """Register a new initializer and return it.

    Args:
        graph: has no value of that name yet.
        name: becomes the tensor's too.
        data: of any shape; an ``ir.Tensor`` where numpy lacks the type (int4, int2).
    """
    tensor = data if isinstance(data, ir.Tensor) else ir.Tensor(np.asarray(data, order="C"))
    tensor.name = name
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
