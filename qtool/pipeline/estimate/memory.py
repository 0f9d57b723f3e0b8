"""Estimate the memory of a run before it starts, and refuse what its limit cannot hold.

Estimated and measured on a network of 1.2 MB of activations a sample: 560 and 440 MB (brecq on
batches of 8), 1,020 and 900 MB (96), 600 and 460 MB (training on batches of 16), 1,640 and 1,350 MB
(128); 1,790 and 1,630 MB (gptq on a layer of 3,456 inputs). Gradients of 16 samples of 7.3 MB each:
560 and 480 MB. Stored values of samples are not in it: they go to temporary files where memory
ends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.calibration.batch_size import batch_size, pass_elements
from qtool.calibration.collect import observed_values
from qtool.graph.queries import by_name, computed_elements, nodes_by_name, sample_elements
from qtool.pipeline.context import Prepared
from qtool.pipeline.stages import ptq_steps
from qtool.quant.plan import QuantPlan
from qtool.runtime.memory import usable_memory

# Bytes of any run: the program, its libraries and the verifying process.
START_BYTES = 450_000_000
# Copies of the float weights, where they are mapped from a file and where they are not.
MAPPED_COPIES, COPIES = 2, 4
# Bytes for each observed element of a batch, and for each computed element of a batch that a block
# or the whole network learns on: values in both networks, rounded ones, gradients.
BATCH_BYTES, BLOCK_BYTES, NETWORK_BYTES = 16, 16, 10
# The same for gradients of the values of sites: changes, leaves and squares of each, in float32.
GRADIENT_BYTES = 20
# Bytes for each element of the second moments of a layer's inputs: those of all samples and of two
# halves in float64, of both networks, and their factors.
MOMENT_BYTES = 112


@dataclass(frozen=True)
class MemoryPart:
    """One need of memory.

    Attributes:
        purpose: what the memory is for.
        size: in bytes.
        remedy: what makes it smaller; empty: nothing does.
    """

    purpose: str
    size: int
    remedy: str = ""


@dataclass(frozen=True)
class MemoryNeed:
    """Memory of a run: a part that lasts, and parts of which one is there at a time."""

    lasting: MemoryPart
    passing: tuple[MemoryPart, ...]

    @property
    def largest(self) -> MemoryPart:
        """The largest of the passing parts."""
        return max(self.passing, key=lambda part: part.size)

    @property
    def size(self) -> int:
        """Bytes of all processes together."""
        return self.lasting.size + self.largest.size

    def describe(self, limit: int) -> str:
        """Return what needs more than the limit, and what to do."""
        parts = [self.lasting, self.largest]
        listed = " and ".join(f"{megabytes(part.size)} for {part.purpose}" for part in parts)
        remedies = [part.remedy for part in reversed(parts) if part.remedy]
        enough = -(-self.size // (100 << 20)) * 100
        return (
            f"{megabytes(limit)} are too few: about {listed}; {', or '.join(remedies)}, or write "
            f"memory: {enough}M"
        )


def training_part(prepared: Prepared, rows: int) -> MemoryPart:
    """Return the memory of training on batches of so many samples."""
    size = NETWORK_BYTES * rows * computed_elements(prepared.context.model.graph)
    return MemoryPart(f"training on {rows} samples at a time", size, f"set qat.batch below {rows}")


def gradient_part(prepared: Prepared, samples: int) -> MemoryPart:
    """Return the memory of the gradients of all values on so many samples, for sensitivities."""
    rows = min(prepared.context.usual_rows, samples)
    size = GRADIENT_BYTES * rows * computed_elements(prepared.context.model.graph)
    return MemoryPart(f"gradients on {rows} samples at a time", size, "take smaller samples")


def memory_need(prepared: Prepared, plan: QuantPlan, more: Sequence[MemoryPart] = ()) -> MemoryNeed:
    """Estimate the memory of a run whose graph is rewritten.

    Args:
        prepared: recipe, model and data.
        plan: annotated; grids are not read.
        more: needs of what the run does besides quantizing.
    """
    context, graph = prepared.context, prepared.context.model.graph
    weights = sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value)
    copies = MAPPED_COPIES if prepared.loaded.big else COPIES
    lasting = MemoryPart("the program and the weights", START_BYTES + copies * weights)
    observed = observed_values(context.model, plan)
    fixed = context.fixed_batch
    elements = pass_elements(context.model, observed)
    rows = fixed or batch_size(elements, context.calibration.count)
    size = BATCH_BYTES * rows * elements
    smaller = "export the model with an open batch" if fixed else "take smaller samples"
    parts = [MemoryPart(f"calibrating on {rows} samples at a time", size, smaller)]
    return MemoryNeed(lasting, (*parts, *_step_parts(prepared, plan), *more))


def check_memory(prepared: Prepared, plan: QuantPlan, more: Sequence[MemoryPart] = ()) -> None:
    """Refuse a run that its recipe's ``memory`` cannot hold; warn of one that the machine cannot.

    Args:
        prepared: recipe, model and data.
        plan: annotated.
        more: needs of what the run does besides quantizing.

    Raises:
        RecipeError: says what needs the memory and what to do.
    """
    need, limit = memory_need(prepared, plan, more), prepared.recipe.memory
    if limit is not None and need.size > limit:
        raise prepared.recipe.error(("memory",), need.describe(limit))
    usable = usable_memory()
    if need.size > usable:
        text = f"WARNING: memory may run out: {need.describe(usable)}"
        prepared.context.progress("estimate", 1, 1, text)
        with prepared.context.cache.stage("estimate") as record:
            record.notes.append(text)


def _step_parts(prepared: Prepared, plan: QuantPlan) -> Iterator[MemoryPart]:
    """Yield the needs of the post-training steps."""
    context, graph = prepared.context, prepared.context.model.graph
    for step in ptq_steps(prepared.recipe):
        if getattr(step.step, "second_order", False):
            size = MOMENT_BYTES * _largest_moments(graph, plan)
            yield MemoryPart(f"{step.name} in its widest layer", size, f"leave {step.name} out")
        batch = getattr(step.step, "batch", None)
        if batch is None:
            continue
        if hasattr(step.step, "rows"):
            batch = step.step.rows(context.model)
        rows = context.fixed_batch or min(batch, context.calibration.count)
        blockwise = getattr(step.step, "blockwise", False)
        elements = _largest_block(graph, plan) if blockwise else computed_elements(graph)
        size = (BLOCK_BYTES if blockwise else NETWORK_BYTES) * rows * elements
        remedy = f"set batch of {step.name} below {rows}"
        yield MemoryPart(f"{step.name} on {rows} samples at a time", size, remedy)


def _largest_moments(graph: ir.Graph, plan: QuantPlan) -> int:
    """Return the elements of the second moments of the layer that has most of them."""
    from qtool.ptq.second_order.im2col import matrix_layer

    nodes, values, sizes = nodes_by_name(graph), by_name(graph), [0]
    for site in plan.sites.values():
        weight = None if site.weight is None else values[site.weight].const_value
        if weight is not None:
            empty = np.broadcast_to(np.float32(0), weight.shape.numpy())
            layer = matrix_layer(nodes[site.name], empty)
            sizes.append(0 if layer is None else layer.groups * layer.unknowns**2)
    return max(sizes)


def _largest_block(graph: ir.Graph, plan: QuantPlan) -> int:
    """Return the elements that the largest block of a reconstruction computes for one sample."""
    from qtool.ptq.reconstruction.blocks import find_regions

    nodes, sizes = list(graph), [0]
    position = {node.name or "": k for k, node in enumerate(nodes)}
    for region in find_regions(graph, plan):
        for block in region.blocks:
            places = [position[name] for site in block.sites for name in site.nodes]
            inside = nodes[min(places) : max(places) + 1]
            sizes.append(sum(sample_elements(v) for node in inside for v in node.outputs))
    return max(sizes)


def megabytes(size: int) -> str:
    """Format bytes in whole MB of 2^20 bytes."""
    return f"{size / 2**20:,.0f} MB"
