"""What training makes small: the distance to labels, to the float network, or to both."""

from collections.abc import Callable, Mapping

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
        settings = self.settings
        out = self.scores(self.network(feeds)[self.network.outputs[0]])
        parts = []
        if settings.teacher < 1 and labels is not None:
            by_label = F.cross_entropy(out, labels, label_smoothing=settings.label_smoothing)
            parts.append((1 - settings.teacher) * by_label)
        if settings.teacher > 0:
            parts.append(
                settings.teacher * distilled(out, self.wanted(feeds), settings.temperature)
            )
        total: T = torch.stack(parts).sum()
        return total

    @torch.no_grad()
    def wanted(self, feeds: Mapping[str, T]) -> T:
        """The float network's scores."""
        return self.scores(self.teacher(feeds))

    def scores(self, out: T) -> T:
        """Scores before a Softmax, up to a constant that no loss sees."""
        return out.clamp(min=1e-12).log() if self.settings.probabilities else out


def distilled(out: T, want: T, temperature: float) -> T:
    """How far from the teacher: KL divergence of scores [N, C], times T^2; else squared error.

    Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    if out.dim() != 2 or out.shape[1] < 2:
        return F.mse_loss(out, want)
    a = F.log_softmax(out / temperature, 1)
    b = F.log_softmax(want / temperature, 1)
    return F.kl_div(a, b, reduction="batchmean", log_target=True) * temperature**2
