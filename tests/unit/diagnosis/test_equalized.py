"""Scales of simulated equalization: equal ranges on both sides, and none that float32 lacks."""

import numpy as np
import pytest

from qtool.diagnosis.equalized import channel_scales


def test_both_ranges_become_their_geometric_mean():
    before, behind = np.array([4.0, 0.0, 9.0]), np.array([1.0, 5.0, 0.0])
    scale = channel_scales(before, behind)
    np.testing.assert_allclose(scale, [2, 1, 1])
    assert before[0] / scale[0] == behind[0] * scale[0] == 2


@pytest.mark.parametrize(("before", "behind"), [(3e38, 3e38), (1.0, 1e-30), (np.inf, 1.0)])
def test_no_scale_that_leaves_float32(before, behind):
    assert channel_scales(np.array([1.0, before]), np.array([1.0, behind])) is None
