"""Runs an ONNX graph on torch, differentiably; one hook sees and may replace every value.

>>> run = Executor(model)                                   # doctest: +SKIP
>>> run({"image": batch})["logits"]                         # doctest: +SKIP
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.errors import ModelError, QtoolError
from qtool.runtime import ort_node
from qtool.runtime.ops.table import ELEMENTWISE, OPS, SHAPE_INPUTS, options_of, select
from qtool.runtime.schedule import Place, Schedule, Step, build
from qtool.runtime.tensors import Unhandled, from_ir, from_numpy

__all__ = ["OPS", "Executor", "Observe"]

Observe = Callable[[ir.Value, Any], Any]
"""The executor's one hook: ``observe(value, tensor) -> tensor``; readers see what it returns."""


class Executor:
    """Computes values of one model; ``model`` must keep its nodes while the executor is in use.

    Runs under the caller's grad mode: use ``torch.no_grad()`` where none is wanted.
    """

    def __init__(
        self,
        model: ir.Model,
        device: str = "cpu",
        instead: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        """Prepare a model.

        Args:
            model: sorted, with named nodes; opset 7 or later, functions inlined.
            device: where floats are computed; shape arithmetic stays on the CPU.
            instead: node name -> function that computes it in place of its operator's own.
        """
        self._instead = instead or {}
        self._model = model
        self._device = torch.device(device)
        self._tensors: dict[str, tuple[Any, torch.Tensor]] = {}
        self._schedules: dict[Any, Schedule] = {}
        self._sessions: dict[Any, Any] = {}
        self._fallen: dict[int, str] = {}

    @property
    def fallbacks(self) -> dict[str, int]:
        """Op types that ran in ONNX Runtime instead of torch, with the number of such nodes."""
        counts: dict[str, int] = {}
        for op_type in self._fallen.values():
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
            observe: called once for each value that is fed, read or asked for; readers see what
                it returns.
            outputs: names of the values to return; the graph's outputs by default.
            raw: (node name, value name) edges that read the value as it was before ``observe``.

        Returns:
            The outputs by name, as ``observe`` returned them.

        Raises:
            DataError: a name that is not in the graph, or a needed graph input that is not fed.
            ModelError: a node failed; names it, its op and the shapes it was given.
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
        plan = self._schedules.get(key)
        if plan is None:
            graph = self._model.graph
            names = [str(v.name) for v in graph.outputs] if outputs is None else list(outputs)
            plan = build(graph, list(feeds), names, frozenset(raw), self._bind)
            self._schedules[key] = plan
        return plan

    def _run(self, step: Step, inputs: list[Any]) -> tuple[Any, ...]:
        """Results of one node, from the table or, failing that, from ONNX Runtime."""
        if self._device.type != "cpu":
            inputs = self._together(step.node.op_type, inputs)
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
            node, shapes = step.node, ", ".join(_describe(given) for given in inputs)
            raise ModelError(
                f"node {node.name!r} ({node.op_type}) failed on inputs ({shapes}): {error}"
            ) from error

    def _fallback(self, step: Step, inputs: list[Any]) -> tuple[Any, ...]:
        results = ort_node.run_node(step.node, inputs, step.values, self._model, self._sessions)
        self._fallen[id(step.node)] = step.node.op_type
        return tuple(self._settle(r) if isinstance(r, torch.Tensor) else r for r in results)

    def _bind(self, node: ir.Node) -> tuple[Callable[..., Any], dict[str, Any]]:
        """A node's function and keyword arguments; ``_missing`` where the table has none."""
        function = select(node, self._model.opset_imports.get(node.domain, 1))
        options = None if function is None else options_of(node, function)
        if function is None or options is None:
            return _missing, {}
        for name, option in options.items():
            if isinstance(option, torch.Tensor):
                options[name] = self._settle(option)
        return self._instead.get(node.name or "", function), options

    def _feed(self, given: "np.ndarray | torch.Tensor") -> torch.Tensor:
        return self._settle(given if isinstance(given, torch.Tensor) else from_numpy(given))

    def _initializer(self, value: ir.Value) -> torch.Tensor:
        source = value.const_value
        if source is None:
            raise ModelError(f"the initializer {value.name!r} has no data")
        if isinstance(source, ir.LazyTensor):  # too large to be kept
            return self._settle(from_ir(source))
        name = str(value.name)
        known = self._tensors.get(name)
        if known is None or known[0] is not source:
            known = self._tensors[name] = (source, self._settle(from_ir(source)))
        return known[1]

    def _settle(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor where it belongs: scalars and short integer vectors on the CPU."""
        if self._device.type == "cpu" or tensor.dim() == 0:
            return tensor
        if tensor.dim() == 1 and tensor.dtype in (torch.int64, torch.int32, torch.bool):
            return tensor
        return tensor.to(self._device)

    def _together(self, op_type: str, inputs: list[Any]) -> list[Any]:
        """Inputs moved to the device if one of them is there; those read as numbers stay."""
        stay = SHAPE_INPUTS.get(op_type, frozenset())
        data = [t for i, t in enumerate(inputs) if isinstance(t, torch.Tensor) and i not in stay]
        if not any(t.device.type != "cpu" for t in data):
            return inputs
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
    """Put a value in its slot, observed; the raw one too where somebody reads it."""
    if place.raw:
        env[place.raw] = tensor
    watched = observe is not None and isinstance(tensor, torch.Tensor)
    env[place.slot] = observe(place.value, tensor) if watched and observe else tensor


def _describe(given: Any) -> str:
    if isinstance(given, torch.Tensor):
        return f"{str(given.dtype).removeprefix('torch.')}{list(given.shape)}"
    return "-" if given is None else type(given).__name__
