"""What training makes small: a loss of labels, the distance to the float network, or both."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from qtool.errors import RecipeError
from qtool.qat.augmentation.mixup import Pairs
from qtool.qat.block_outputs import block_error
from qtool.qat.fake_quant_model import QatNetwork
from qtool.qat.settings import Settings

T = torch.Tensor
# The float network's first output for inputs by name, and more of its values, by name.
Teacher = Callable[[Mapping[str, T], Sequence[str]], Mapping[str, T]]


class Loss:
    """The loss of one batch."""

    def __init__(self, network: QatNetwork, teacher: Teacher, settings: Settings) -> None:
        """Make the loss.

        Args:
            network: what learns.
            teacher: values of the float network for a batch of inputs.
            settings: how much of what.

        Raises:
            RecipeError: blocks are to be compared, and the network has none.
        """
        self.network, self.teacher, self.settings = network, teacher, settings
        self.blocks = network.blocks if settings.blocks else ()
        if settings.blocks and not self.blocks:
            raise RecipeError(
                "qat.distill.blocks: the network has neither a residual sum nor two quantized "
                "layers with weights; leave it out"
            )

    def __call__(self, feeds: Mapping[str, T], labels: T | Pairs | None) -> T:
        """Differentiable, rank 0."""
        with self._precision(feeds):
            found, taught = self.network(feeds, self.blocks), self.taught(feeds)
        loss = self.of(found, labels, taught)
        if taught is not None and self.blocks:
            loss = loss + self.settings.blocks * block_error(found, taught, self.blocks)
        return loss

    def _precision(self, feeds: Mapping[str, T]) -> AbstractContextManager[Any]:
        """Within, products of both networks are computed as the settings say; losses never are."""
        if self.settings.precision == "float32":
            return nullcontext()
        return torch.autocast(next(iter(feeds.values())).device.type, torch.bfloat16)

    @torch.no_grad()
    def taught(self, feeds: Mapping[str, T]) -> Mapping[str, T] | None:
        """The float network's first output and blocks, where the loss looks at them."""
        own = self.settings.loss
        wanted = self.settings.teacher > 0 or (own is not None and own.wants_teacher)
        return self.teacher(feeds, self.blocks) if wanted or self.blocks else None

    def of(
        self, found: Mapping[str, T], labels: T | Pairs | None, taught: Mapping[str, T] | None
    ) -> T:
        """The loss of what the network found, blocks left out; rank 0.

        Args:
            found: the network's outputs by name.
            labels: class numbers [N], two of each of mixed images; for a loss of the user's own
                any tensor.
            taught: the float network's first output by name, see :meth:`taught`.
        """
        settings, parts, first = self.settings, [], self.network.outputs[0]
        out, want = self.scores(found[first]), None if taught is None else taught[first]
        by_label = self._by_label(found, out, labels, want) if settings.teacher < 1 else None
        if by_label is not None:
            parts.append((1 - settings.teacher) * by_label)
        if settings.teacher > 0 and want is not None:
            by_teacher = distilled(out, self.scores(want), settings.temperature)
            parts.append(settings.teacher * by_teacher)
        total: T = torch.stack(parts).sum()
        return total

    def _by_label(
        self, found: Mapping[str, T], out: T, labels: T | Pairs | None, want: T | None
    ) -> T | None:
        settings = self.settings
        if isinstance(labels, Pairs):
            return labels.cross_entropy(out, settings.label_smoothing)
        if settings.loss is not None:
            return settings.loss({k: found[k] for k in self.network.outputs}, labels, want)
        if labels is None:
            return None
        return F.cross_entropy(out, labels, label_smoothing=settings.label_smoothing)

    @torch.no_grad()
    def distance(
        self, feeds: Mapping[str, T], found: Mapping[str, T], labels: T | None, rows: int
    ) -> float:
        """Mean over the first ``rows`` samples: the user's own loss, or that against the teacher.

        Args:
            feeds: inputs of the batch.
            found: the network's outputs for them.
            labels: of the first rows.
            rows: the others only fill up a fixed batch.
        """
        if self.settings.loss is None:
            out = self.scores(found[self.network.outputs[0]])[:rows]
            return float(distilled(out, self.wanted(feeds)[:rows], 1.0))
        taught = self.taught(feeds) or {}
        ours, theirs = ({k: v[:rows] for k, v in part.items()} for part in (found, taught))
        return float(self.of(ours, labels, theirs or None))

    @torch.no_grad()
    def wanted(self, feeds: Mapping[str, T]) -> T:
        """The float network's scores."""
        return self.scores(self.teacher(feeds, ())[self.network.outputs[0]])

    def scores(self, out: T) -> T:
        """Scores before a Softmax, up to a constant that no loss sees."""
        return out.clamp(min=1e-12).log() if self.settings.probabilities else out


def valid_labels(labels: np.ndarray | None, any_kind: bool) -> T | None:
    """Labels as the loss takes them: class numbers [N], or with ``any_kind`` any numbers.

    None for labels of other kinds: then the float network alone teaches and judges.
    """
    if labels is None or (not any_kind and (labels.ndim != 1 or labels.dtype.kind not in "iu")):
        return None
    whole = labels.dtype.kind in "iu"
    return torch.from_numpy(np.asarray(labels, np.int64 if whole else np.float32))


def are_classes(labels: T | None, out: T) -> bool:
    """Whether an output [N, C] can be judged by labels as class numbers."""
    scores = out.dim() == 2 and out.shape[1] > 1
    return scores and labels is not None and labels.dim() == 1 and labels.dtype == torch.int64


def distilled(out: T, want: T, temperature: float) -> T:
    """How far from the teacher: KL divergence of scores [N, C], times T^2; else squared error.

    Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    if out.dim() != 2 or out.shape[1] < 2:
        return F.mse_loss(out, want)
    a = F.log_softmax(out / temperature, 1)
    b = F.log_softmax(want / temperature, 1)
    return F.kl_div(a, b, reduction="batchmean", log_target=True) * temperature**2
