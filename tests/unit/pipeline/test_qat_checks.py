"""Errors about the training data, and that the values they advise are accepted."""

import re
from types import SimpleNamespace

import pytest

from qtool.errors import RecipeError
from qtool.pipeline.training.checks import train_validation_split


def fake_dataset(count: int) -> SimpleNamespace:
    """Build the part of a Dataset that splitting it uses."""
    return SimpleNamespace(count=count, labels=None, take=lambda chosen: fake_dataset(len(chosen)))


def error(path: tuple[str, ...], text: str) -> RecipeError:
    return RecipeError(f"{'.'.join(path)}: {text}")


@pytest.mark.parametrize("count", [2, 3, 7, 20, 333, 999, 50_000])
@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_error_about_an_empty_split_names_a_valid_range(count, share):
    recipe, data = SimpleNamespace(error=error), fake_dataset(count)
    with pytest.raises(RecipeError, match=r"^qat\.validation: ") as caught:
        train_validation_split(recipe, SimpleNamespace(validation=share), data, 0)
    limits = re.search(r"a share from (\S+) to (\S+)$", str(caught.value))
    assert limits is not None
    for limit in map(float, limits.groups()):
        train_data, validation = train_validation_split(
            recipe, SimpleNamespace(validation=limit), data, 0
        )
        assert train_data.count + validation.count == count
        assert train_data.count and validation.count
