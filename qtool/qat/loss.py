"""What training makes small: a loss of labels, the distance to the float network, or both."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F

from qtool.qat.network import QatNetwork
from qtool.qat.settings import Settings

T = torch.Tensor
Teacher = Callable[[Mapping[str, T]], T]


class Loss:
    """The loss of one batch."""

    def __init__(self, network: QatNetwork, teacher: Teacher, settings: Settings) -> None:
        """Make the loss.

        Args:
            network: what learns.
            teacher: first output of the float network for a batch of inputs.
            settings: how much of what.
        """
        self.network, self.teacher, self.settings = network, teacher, settings

    def __call__(self, feeds: Mapping[str, T], labels: T | None) -> T:
        """Differentiable, rank 0."""
        return self.of(self.network(feeds), labels, self.taught(feeds))

    @torch.no_grad()
    def taught(self, feeds: Mapping[str, T]) -> T | None:
        """The float network's first output, where the loss looks at it."""
        own = self.settings.loss
        wanted = self.settings.teacher > 0 or (own is not None and own.wants_teacher)
        return self.teacher(feeds) if wanted else None

    def of(self, found: Mapping[str, T], labels: T | None, taught: T | None) -> T:
        """The loss of what the network found; rank 0.

        Args:
            found: the network's outputs by name.
            labels: class numbers [N]; for a loss of the user's own any tensor.
            taught: the float network's first output, see :meth:`taught`.
        """
        settings, parts = self.settings, []
        out = self.scores(found[self.network.outputs[0]])
        if settings.loss is not None:
            outputs = {name: found[name] for name in self.network.outputs}
            parts.append((1 - settings.teacher) * settings.loss(outputs, labels, taught))
        elif settings.teacher < 1 and labels is not None:
            by_label = F.cross_entropy(out, labels, label_smoothing=settings.label_smoothing)
            parts.append((1 - settings.teacher) * by_label)
        if settings.teacher > 0 and taught is not None:
            by_teacher = distilled(out, self.scores(taught), settings.temperature)
            parts.append(settings.teacher * by_teacher)
        total: T = torch.stack(parts).sum()
        return total

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
        taught = self.taught(feeds)
        cut = {name: tensor[:rows] for name, tensor in found.items()}
        return float(self.of(cut, labels, None if taught is None else taught[:rows]))

    @torch.no_grad()
    def wanted(self, feeds: Mapping[str, T]) -> T:
        """The float network's scores."""
        return self.scores(self.teacher(feeds))

    def scores(self, out: T) -> T:
        """Scores before a Softmax, up to a constant that no loss sees."""
        return out.clamp(min=1e-12).log() if self.settings.probabilities else out


def known_labels(labels: np.ndarray | None, any_kind: bool) -> T | None:
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
