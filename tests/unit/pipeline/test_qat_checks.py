"""What training refuses, and that what it advises to write is taken."""

import re
from types import SimpleNamespace

import pytest

from qtool.errors import RecipeError
from qtool.pipeline.qat_checks import train_validation_split


def some(count: int) -> SimpleNamespace:
    """As much of a Dataset as dividing it needs."""
    return SimpleNamespace(count=count, labels=None, take=lambda chosen: some(len(chosen)))


def error(path: tuple[str, ...], text: str) -> RecipeError:
    return RecipeError(f"{'.'.join(path)}: {text}")


@pytest.mark.parametrize("count", [2, 3, 7, 20, 333, 999, 50_000])
@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_a_share_that_leaves_one_side_empty_names_two_that_do_not(count, share):
    recipe, data = SimpleNamespace(error=error), some(count)
    with pytest.raises(RecipeError, match=r"^qat\.validation: ") as caught:
        train_validation_split(recipe, SimpleNamespace(validation=share), data, 0)
    ends = re.search(r"a share from (\S+) to (\S+)$", str(caught.value))
    assert ends is not None
    for end in map(float, ends.groups()):
        lessons, validation = train_validation_split(
            recipe, SimpleNamespace(validation=end), data, 0
        )
        assert lessons.count + validation.count == count
        assert lessons.count and validation.count
