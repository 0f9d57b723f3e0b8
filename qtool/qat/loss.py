"""The training loss: by labels, by the distance to the float network, or both."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from qtool.errors import RecipeError
from qtool.qat.augmentation.mixup import LabelPairs
from qtool.qat.block_outputs import block_error
from qtool.qat.fake_quant_model import QatNetwork, to_float32
from qtool.qat.settings import Settings
from qtool.runtime.executor import Executor

T = torch.Tensor
# Returns values of the float network by name, for inputs by name and the names of the values.
Teacher = Callable[[Mapping[str, T], Sequence[str]], Mapping[str, T]]


def float_teacher(model: ir.Model, device: str) -> Teacher:
    """Return the float network as teacher: it computes those of its values that are named.

    Args:
        model: the rewritten graph.
        device: where to compute.
    """
    executor = Executor(model, device)

    def teacher(feeds: Mapping[str, T], names: Sequence[str]) -> dict[str, T]:
        return executor(feeds, to_float32, list(names))

    return teacher


class Loss:
    """The loss of one batch: (1 - a) * by labels + a * by teacher + b * error of blocks."""

    def __init__(self, network: QatNetwork, teacher: Teacher, settings: Settings) -> None:
        """Make the loss.

        Args:
            network: that is trained.
            teacher: values of the float network for a batch of inputs.
            settings: with the weights a (``teacher``) and b (``blocks``).

        Raises:
            RecipeError: blocks are to be compared, and the network has none.
        """
        self.network, self.teacher, self.settings = network, teacher, settings
        self.blocks = network.blocks if settings.blocks else ()
        # Of both networks: the compared output first, once where it ends a block too.
        self.values = tuple(dict.fromkeys((network.compared, *self.blocks)))
        if settings.blocks and not self.blocks:
            raise RecipeError(
                "qat.distill.blocks: the network has neither a residual sum nor two quantized "
                "layers with weights; leave it out"
            )

    def __call__(self, feeds: Mapping[str, T], labels: T | LabelPairs | None) -> T:
        """Compute the loss of a batch, differentiable, rank 0.

        Args:
            feeds: inputs by name.
            labels: as for :meth:`of_outputs`.
        """
        with self._precision(feeds):
            outputs = self.network(feeds, self.values)
            teacher = self.teacher_outputs(feeds)
        loss = self.of_outputs(outputs, labels, teacher)
        if teacher is not None and self.blocks:
            loss = loss + self.settings.blocks * block_error(outputs, teacher, self.blocks)
        return loss

    def _precision(self, feeds: Mapping[str, T]) -> AbstractContextManager[Any]:
        """Return a context in which both networks compute products as the settings say.

        Losses are always computed in float32.
        """
        if self.settings.precision == "float32":
            return nullcontext()
        return torch.autocast(next(iter(feeds.values())).device.type, torch.bfloat16)

    @torch.no_grad()
    def teacher_outputs(self, feeds: Mapping[str, T]) -> Mapping[str, T] | None:
        """Compute the float network's compared output and blocks; None where neither is used."""
        custom = self.settings.loss
        uses_output = self.settings.teacher > 0 or (custom is not None and custom.uses_teacher)
        return self.teacher(feeds, self.values) if uses_output or self.blocks else None

    def of_outputs(
        self,
        outputs: Mapping[str, T],
        labels: T | LabelPairs | None,
        teacher: Mapping[str, T] | None,
    ) -> T:
        """Compute the loss of outputs without the error of blocks, rank 0.

        Args:
            outputs: the network's outputs and its compared value by name.
            labels: class numbers [N], two of each of mixed images; for a loss of the user any
                tensor.
            teacher: the float network's compared output by name, see :meth:`teacher_outputs`.
        """
        settings, parts, compared = self.settings, [], self.network.compared
        target = None if teacher is None else teacher[compared]
        by_label = self._by_label(outputs, labels, target) if settings.teacher < 1 else None
        if by_label is not None:
            parts.append((1 - settings.teacher) * by_label)
        if settings.teacher > 0 and target is not None:
            scores, target_scores = self.scores(outputs[compared]), self.scores(target)
            distance = distillation(scores, target_scores, settings.temperature)
            parts.append(settings.teacher * distance)
        total: T = torch.stack(parts).sum()
        return total

    def _by_label(
        self, outputs: Mapping[str, T], labels: T | LabelPairs | None, target: T | None
    ) -> T | None:
        """Compute the loss by labels; None without labels, but for a loss of the user."""
        settings, compared = self.settings, self.network.compared
        if isinstance(labels, LabelPairs):
            return labels.cross_entropy(self.scores(outputs[compared]), settings.label_smoothing)
        if settings.loss is not None:
            names = dict.fromkeys((compared, *self.network.outputs))
            return settings.loss({k: outputs[k] for k in names}, labels, target)
        if labels is None:
            return None
        scores = self.scores(outputs[compared])
        return F.cross_entropy(scores, labels, label_smoothing=settings.label_smoothing)

    @torch.no_grad()
    def distance(
        self, feeds: Mapping[str, T], outputs: Mapping[str, T], labels: T | None, rows: int
    ) -> float:
        """Compute the mean over the first ``rows`` samples: the user's loss, or the teacher's.

        Args:
            feeds: inputs of the batch.
            outputs: the network's outputs and its compared value for them.
            labels: of the first rows.
            rows: samples that count; the others only fill up a fixed batch.
        """
        if self.settings.loss is None:
            scores = self.scores(outputs[self.network.compared])[:rows]
            return float(distillation(scores, self.teacher_scores(feeds)[:rows], 1.0))
        teacher = self.teacher_outputs(feeds) or {}
        ours, theirs = ({k: v[:rows] for k, v in part.items()} for part in (outputs, teacher))
        return float(self.of_outputs(ours, labels, theirs or None))

    @torch.no_grad()
    def teacher_scores(self, feeds: Mapping[str, T]) -> T:
        """Compute the float network's scores of a batch."""
        return self.scores(self.teacher(feeds, (self.network.compared,))[self.network.compared])

    def scores(self, out: T) -> T:
        """Return the scores before a Softmax, up to a constant that no loss depends on."""
        return out.clamp(min=1e-12).log() if self.settings.probabilities else out


def valid_labels(labels: np.ndarray | None, any_kind: bool) -> T | None:
    """Convert labels to the tensor that the loss takes.

    Args:
        labels: of a batch.
        any_kind: accept any numbers, for a loss of the user; else class numbers [N] alone.

    Returns:
        int64 or float32; None for labels of other kinds: then the float network alone is the
        teacher and the measure.
    """
    if labels is None or (not any_kind and (labels.ndim != 1 or labels.dtype.kind not in "iu")):
        return None
    whole = labels.dtype.kind in "iu"
    return torch.from_numpy(np.asarray(labels, np.int64 if whole else np.float32))


def are_classes(labels: T | None, out: T) -> bool:
    """Return whether the labels are class numbers [N] of scores ``out`` [N, C], C > 1."""
    scores = out.dim() == 2 and out.shape[1] > 1
    return scores and labels is not None and labels.dim() == 1 and labels.dtype == torch.int64


def distillation(out: T, target: T, temperature: float) -> T:
    """Compute KL(softmax(target / T) || softmax(out / T)) T^2 of scores; else squared error.

    Args:
        out: scores [N, C] of the network, or an output of another shape.
        target: those of the float network.
        temperature: T.
    Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    if out.dim() != 2 or out.shape[1] < 2:
        return F.mse_loss(out, target)
    a = F.log_softmax(out / temperature, 1)
    b = F.log_softmax(target / temperature, 1)
    return F.kl_div(a, b, reduction="batchmean", log_target=True) * temperature**2
