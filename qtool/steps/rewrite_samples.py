"""Give the rewrites that need data the values of calibration samples."""

from collections.abc import Iterator, Sequence

import numpy as np

from qtool.rewrites.rewrite import Samples
from qtool.steps.context import Context


def rewrite_samples(context: Context) -> Samples:
    """Return access to the float network's values on calibration samples.

    Args:
        context: its graph may change between two calls, not while values are yielded.
    """

    def observe(names: Sequence[str], holdout: bool) -> Iterator[dict[str, np.ndarray]]:
        import torch

        from qtool.runtime.executor import Executor

        run = Executor(context.model, context.device)
        with torch.inference_mode():
            for feeds, valid in context.feeds(context.holdout if holdout else context.fit):
                values = run(feeds, outputs=list(names))
                samples = {name: context.without_padding(values[name], valid) for name in names}
                yield {name: each.float().cpu().numpy() for name, each in samples.items()}

    return Samples(observe, context.bits.of)
