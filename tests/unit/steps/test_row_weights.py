"""Rows of large power add as much as a typical one; scales do not matter."""

import torch

from qtool.steps.row_weights import row_power, row_weights, typical_power


def weights_of(values: torch.Tensor, *axes: int) -> torch.Tensor:
    power = row_power(values, *axes)
    return row_weights(power, typical_power(power))


def test_a_large_row_adds_as_much_as_a_typical_one():
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [30.0, 40.0]])
    weights = weights_of(rows, 1)
    assert weights.shape == (4, 1)
    torch.testing.assert_close(weights[:, 0], torch.tensor([1.0, 1.0, 1.0, 2 / 2500]))
    torch.testing.assert_close((weights * rows.square()).sum(1)[3], torch.tensor(2.0))
    for scale in (1e-6, 1e6):
        torch.testing.assert_close(weights_of(scale * rows, 1), weights)


def test_rows_of_an_image_are_its_positions():
    image = torch.ones(2, 3, 4, 4)
    image[:, :, 0, 0] = 10
    weights = weights_of(image, 1)
    assert weights.shape == (2, 1, 4, 4)
    assert torch.allclose(weights[:, :, 0, 0], torch.tensor(0.01))
    assert torch.all(weights.flatten(2)[:, :, 1:] == 1)


def test_where_most_rows_are_zero_all_weigh_the_same():
    rows = torch.zeros(5, 3)
    rows[0] = 7
    assert torch.all(weights_of(rows, 1) == 1)
