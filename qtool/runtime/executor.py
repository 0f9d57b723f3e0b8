"""Run an ONNX graph on torch, differentiably; one hook reads and may replace every value.

>>> run = Executor(model)                                   # doctest: +SKIP
>>> run({"image": batch})["logits"]                         # doctest: +SKIP
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.errors import ModelError, QtoolError, is_out_of_memory, out_of_memory
from qtool.runtime import ort_node
from qtool.runtime.ops.table import ELEMENTWISE, OPS, SHAPE_INPUTS, options_of, select
from qtool.runtime.schedule import GraphIndex, Place, Schedule, Step, build
from qtool.runtime.tensors import Unhandled, from_ir, from_numpy

__all__ = ["OPS", "Executor", "Observe"]

# Threads share executors: a schedule is built once. One lock for all, since executors are copied.
_BUILDING = threading.Lock()

Observe = Callable[[ir.Value, Any], Any]
"""The executor's hook: ``observe(value, tensor) -> tensor``; readers receive its result."""


class Executor:
    """Interpreter of one model, whose nodes must not change while the executor is in use.

    Runs under the caller's grad mode: use ``torch.no_grad()`` where no gradient is needed.
    """

    def __init__(
        self,
        model: ir.Model,
        device: str = "cpu",
        node_functions: Mapping[str, Callable[..., Any]] | None = None,
        index: GraphIndex | None = None,
    ) -> None:
        """Prepare a model.

        Args:
            model: sorted, with named nodes; opset 7 or later, functions inlined.
            device: where floats are computed; shape arithmetic stays on the CPU.
            node_functions: node name -> function that replaces that of its operator.
            index: of the graph, from another executor of it; None: made at the first call.
        """
        self._node_functions, self._index = node_functions or {}, index
        self._model = model
        self._device = torch.device(device)
        self._tensors: dict[str, tuple[Any, torch.Tensor]] = {}
        self._schedules: dict[Any, Schedule] = {}
        self._sessions: dict[Any, Any] = {}
        self._fallback_nodes: dict[int, str] = {}

    @property
    def index(self) -> GraphIndex:
        """The values and nodes of the graph by name and position."""
        if self._index is None:
            self._index = GraphIndex(self._model.graph)
        return self._index

    @property
    def fallbacks(self) -> dict[str, int]:
        """Op types that ran in ONNX Runtime instead of torch, with their number of nodes."""
        counts: dict[str, int] = {}
        for op_type in self._fallback_nodes.values():
            counts[op_type] = counts.get(op_type, 0) + 1
        return counts

    def __call__(
        self,
        feeds: Mapping[str, "np.ndarray | torch.Tensor"],
        observe: Observe | None = None,
        outputs: Sequence[str] | None = None,
        raw: Collection[tuple[str, str]] = (),
    ) -> dict[str, torch.Tensor]:
        """Compute ``outputs`` from ``feeds``; only the nodes in between run.

        Args:
            feeds: tensors by value name; any value may be fed, the graph is cut there.
            observe: called once for each value that is fed, read or returned; readers receive
                its result.
            outputs: names of the values to return; the graph's outputs by default.
            raw: (node name, value name) edges that read the value as it was before ``observe``.

        Returns:
            The outputs by name, as ``observe`` returned them.

        Raises:
            DataError: a name that is not in the graph, or a needed graph input that is not fed.
            ModelError: a node failed; names it, its op and the shapes of its inputs.
        """
        plan = self._schedule(feeds, outputs, raw)
        env: list[Any] = [None] * plan.slots
        for place in plan.fed:
            _store(env, place, self._feed(feeds[str(place.value.name)]), observe)
        for slot in plan.frees:
            env[slot] = None
        for step in plan.steps:
            for place in step.loads:
                _store(env, place, self._initializer(place.value), observe)
            results = self._run(step, [env[slot] for slot in step.reads])
            for position, place in step.writes:
                _store(env, place, results[position], observe)
            del results
            for slot in step.frees:
                env[slot] = None
        for place in plan.loads:
            _store(env, place, self._initializer(place.value), observe)
        return {name: env[slot] for name, slot in plan.outputs}

    def _schedule(
        self,
        feeds: Mapping[str, Any],
        outputs: Sequence[str] | None,
        raw: Collection[tuple[str, str]],
    ) -> Schedule:
        key = (tuple(feeds), None if outputs is None else tuple(outputs), frozenset(raw))
        with _BUILDING:
            plan = self._schedules.get(key)
            if plan is None:
                graph = self._model.graph
                names = [str(v.name) for v in graph.outputs] if outputs is None else list(outputs)
                plan = build(self.index, list(feeds), names, frozenset(raw), self._bind)
                self._schedules[key] = plan
        return plan

    def _run(self, step: Step, inputs: list[Any]) -> tuple[Any, ...]:
        """Compute one node by the table or, where it has no function, in ONNX Runtime."""
        if self._device.type != "cpu":
            inputs = self._to_common_device(step.node.op_type, inputs)
        try:
            try:
                results = step.run(*inputs, **step.options)
                if not isinstance(results, tuple):
                    results = (results,)
                if len(results) <= step.writes[-1][0]:
                    raise Unhandled(f"output {step.writes[-1][0]}")
                return results
            except (Unhandled, NotImplementedError):
                return self._fallback(step, inputs)
        except (QtoolError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            node, shapes = step.node, ", ".join(_describe(value) for value in inputs)
            text = f"node {node.name!r} ({node.op_type}) failed on inputs ({shapes})"
            if is_out_of_memory(error):
                raise out_of_memory(text) from error
            raise ModelError(f"{text}: {error}") from error

    def _fallback(self, step: Step, inputs: list[Any]) -> tuple[Any, ...]:
        results = ort_node.run_node(step.node, inputs, step.values, self._model, self._sessions)
        self._fallback_nodes[id(step.node)] = step.node.op_type
        return tuple(self._to_device(r) if isinstance(r, torch.Tensor) else r for r in results)

    def _bind(self, node: ir.Node) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return a node's function and keyword arguments; ``_missing`` where the table has none."""
        function = select(node, self._model.opset_imports.get(node.domain, 1))
        options = None if function is None else options_of(node, function)
        if function is None or options is None:
            return _missing, {}
        for name, option in options.items():
            if isinstance(option, torch.Tensor):
                options[name] = self._to_device(option)
        return self._node_functions.get(node.name or "", function), options

    def _feed(self, data: "np.ndarray | torch.Tensor") -> torch.Tensor:
        return self._to_device(data if isinstance(data, torch.Tensor) else from_numpy(data))

    def _initializer(self, value: ir.Value) -> torch.Tensor:
        source = value.const_value
        if source is None:
            raise ModelError(f"the initializer {value.name!r} has no data")
        if isinstance(source, ir.LazyTensor):  # mapped from a file: too large to cache
            return self._to_device(from_ir(source))
        name = str(value.name)
        cached = self._tensors.get(name)
        # A caller may have assigned new data to the initializer since.
        if cached is None or cached[0] is not source:
            cached = self._tensors[name] = (source, self._to_device(from_ir(source)))
        return cached[1]

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Move a tensor to the device, but for scalars and integer vectors (shapes)."""
        if self._device.type == "cpu" or tensor.dim() == 0:
            return tensor
        if tensor.dim() == 1 and tensor.dtype in (torch.int64, torch.int32, torch.bool):
            return tensor
        return tensor.to(self._device)

    def _to_common_device(self, op_type: str, inputs: list[Any]) -> list[Any]:
        """Move all inputs to the device if one is there; those read as Python numbers stay."""
        stay = SHAPE_INPUTS.get(op_type, frozenset())
        data = [t for i, t in enumerate(inputs) if isinstance(t, torch.Tensor) and i not in stay]
        if not any(t.device.type != "cpu" for t in data):
            return inputs
        # Torch mixes scalars of the CPU with tensors of a device in elementwise operators only.
        scalars_mix = op_type in ELEMENTWISE
        return [
            t
            if i in stay or not isinstance(t, torch.Tensor) or (scalars_mix and t.dim() == 0)
            else t.to(self._device)
            for i, t in enumerate(inputs)
        ]


def _missing(*inputs: Any) -> Any:
    raise Unhandled("not in the table")


def _store(env: list[Any], place: Place, tensor: Any, observe: Observe | None) -> None:
    """Store a value in its slot, as observed, and in its raw slot if one is read."""
    if place.raw:
        env[place.raw] = tensor
    observed = observe is not None and isinstance(tensor, torch.Tensor)  # sequences are not
    env[place.slot] = observe(place.value, tensor) if observed and observe else tensor


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return "-" if value is None else type(value).__name__
