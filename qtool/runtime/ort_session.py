"""A whole graph in ONNX Runtime: for constants, and for statistics, where torch is 2-5 x slower."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool import files
from qtool.errors import UnsupportedError, is_out_of_memory, out_of_memory
from qtool.runtime.ort_options import default_threads, session_options

# Tensors of more bytes start at a page of their own in a file, so that a mapped tensor is aligned.
ALIGN_THRESHOLD = 256


def loads_ir_version(version: int) -> bool:
    """Return whether the installed ONNX Runtime loads files of a version of the ONNX format."""
    import onnxruntime as ort

    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    node = ir.Node("", "Identity", [value], outputs=[ir.Value(name="y", type=value.type)])
    graph = ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": 17}, name="probe")
    proto = ir.to_proto(ir.Model(graph, ir_version=version))
    try:
        ort.InferenceSession(proto.SerializeToString(), session_options(1))
    except Exception:  # the runtime raises one class per status
        return False
    return True


class OrtSession:
    """A graph in ONNX Runtime on the CPU that returns any of its values; use it in a ``with``.

    Args:
        model: the graph; unchanged afterwards.
        outputs: names of values to return; default the graph's outputs.
        threads: intra-op threads; default the physical cores.
        level: graph optimization, one of LEVELS.
        in_order: run nodes in the order in which the runtime's optimizations number them. Its usual
            order may run a node whose output nothing else reads long after its input was made,
            which stays in memory until then.

    Raises:
        UnsupportedError: ONNX Runtime cannot load the model.
    """

    def __init__(
        self,
        model: ir.Model,
        outputs: Sequence[str] | None = None,
        threads: int | None = None,
        level: str = "all",
        in_order: bool = False,
    ) -> None:
        import onnxruntime as ort

        options = session_options(threads or default_threads(), level)
        if in_order:
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        try:
            with _returning(model, outputs), _source(model, options) as source:
                self._session: Any = ort.InferenceSession(
                    source, options, providers=["CPUExecutionProvider"]
                )
        except Exception as error:  # the runtime raises one class per status, without a common base
            if not type(error).__module__.startswith("onnxruntime."):
                raise
            text = f"ONNX Runtime cannot load the model: {error}"
            raise (out_of_memory if is_out_of_memory(error) else UnsupportedError)(text) from error
        self.names = [o.name for o in self._session.get_outputs()]
        self._buffers: list[tuple[dict[str, np.ndarray], Any]] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._turn = 0

    def stream(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run like a call, but into arrays that the call after the next one overwrites.

        Fresh outputs of tens of megabytes cost more in page faults than a mobile network costs to
        run; two sets of buffers in turn let one batch be read while the next is computed.
        """
        shapes = {name: array.shape for name, array in feeds.items()}
        if shapes != self._shapes:
            first = self(feeds)
            self._shapes, self._turn = shapes, 1
            self._buffers = [self._bound(first), self._bound(self._empty_like(first))]
            return first
        buffers, binding = self._buffers[self._turn]
        self._turn = 1 - self._turn
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.asarray(array, order="C"))
        self._session.run_with_iobinding(binding)
        return buffers

    @staticmethod
    def _empty_like(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.empty_like(array) for name, array in arrays.items()}

    def _bound(self, buffers: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Any]:
        binding = self._session.io_binding()
        for name, array in buffers.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return buffers, binding

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return name -> array of every output."""
        return dict(zip(self.names, self._session.run(None, dict(feeds)), strict=True))

    def __enter__(self) -> "OrtSession":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session = None
        self._buffers.clear()


@contextmanager
def _returning(model: ir.Model, outputs: Sequence[str] | None) -> Iterator[None]:
    """Replace the graph's outputs by the named values inside the ``with``."""
    graph = model.graph
    original = list(graph.outputs)
    if outputs is not None:
        values = {v.name: v for node in graph for v in node.outputs}
        selected = [values[name] for name in outputs]
        graph.outputs.clear()
        graph.outputs.extend(selected)
    try:
        yield
    finally:
        if outputs is not None:
            graph.outputs.clear()
            graph.outputs.extend(original)


@contextmanager
def _source(model: ir.Model, options: Any) -> Iterator[bytes | str]:
    """Yield the source that the runtime loads: the model's bytes, or the path of a temporary file.

    Weights in external files are referenced, not copied: the runtime maps them. If those in memory
    exceed MAPPED_BYTES, all go to a temporary file, which the runtime maps as well: as bytes they
    would be in memory three times.
    """
    tensors = [v.const_value for v in model.graph.initializers.values()]
    folders = {str(t.base_dir) for t in tensors if isinstance(t, ir.ExternalTensor)}
    inside = sum(t.nbytes for t in tensors if t and not isinstance(t, ir.ExternalTensor))
    if inside <= files.MAPPED_BYTES and len(folders) <= 1:
        for folder in folders:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", folder
            )
        yield ir.to_proto(model).SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix="qtool-") as scratch:
        path = Path(scratch) / "model.onnx"
        ir.save(
            model, path, external_data="weights", alignment=4096, align_threshold=ALIGN_THRESHOLD
        )
        yield str(path)
