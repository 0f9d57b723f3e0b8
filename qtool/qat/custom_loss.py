"""A loss function of the user, ``module:function``, called with tensors as torch's losses are."""

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtool.errors import RecipeError
from qtool.user_code import guarded, load_function

if TYPE_CHECKING:
    import torch

OPTIONAL = ("outputs", "teacher")


class CustomLoss:
    """``function(output, labels)``, plus ``outputs`` and ``teacher`` where it has them.

    ``output`` is the network's compared output, the first of floats as a rule, unchanged, and
    ``labels`` the batch's, or None where the data has none. A parameter called ``outputs`` gets all
    outputs by name, one called ``teacher`` the compared output of the float network, without
    gradient.

    Attributes:
        name: ``module:function``.
        uses_teacher: the function has a parameter called ``teacher``.
        digest: sha256 of the module's file, in hex; empty where it has none.
    """

    def __init__(self, name: str, folder: str | None, function: Callable[..., Any]) -> None:
        """Wrap a function.

        Args:
            name: ``module:function``.
            folder: its module was imported from, before sys.path.
            function: returns the loss.
        """
        self.name, self.folder, self.function = name, folder, function
        parameters = _parameters(function)
        self.optional = tuple(word for word in OPTIONAL if word in parameters)
        self.uses_teacher = "teacher" in self.optional
        file = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
        self.digest = "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()

    def __reduce__(self) -> tuple[Callable[..., "CustomLoss"], tuple[str, str | None, bool]]:
        """Pickle the name alone: another process imports the function from the same folder."""
        return custom_loss, (self.name, self.folder, True)

    def __call__(
        self,
        outputs: "Mapping[str, torch.Tensor]",
        labels: "torch.Tensor | None",
        teacher: "torch.Tensor | None",
    ) -> "torch.Tensor":
        """Return the function's result, rank 0 and float32.

        Args:
            outputs: by name, the network's compared output first.
            labels: [N, ...] on the outputs' device.
            teacher: the float network's compared output, where the function has such a parameter.

        Raises:
            RecipeError: the function raises, or returns anything but one differentiable number.
        """
        import torch

        available = {"outputs": dict(outputs), "teacher": teacher}
        optional = {word: available[word] for word in self.optional}
        with guarded(f"qat.loss: {self.name}", RecipeError):
            loss = self.function(next(iter(outputs.values())), labels, **optional)
        wrong = None
        if not isinstance(loss, torch.Tensor):
            wrong = f"a {type(loss).__name__}"
        elif loss.numel() != 1:
            wrong = f"a tensor of shape {list(loss.shape)}"
        elif torch.is_grad_enabled() and not loss.requires_grad:
            wrong = "a number without gradient"
        if wrong is not None:
            raise RecipeError(
                f"qat.loss: {self.name} gave {wrong}; expected one number computed from the "
                "outputs by torch alone, such as a mean over the samples: correct the function"
            )
        result: torch.Tensor = loss.reshape(()).float()
        return result


def custom_loss(name: str, folder: str | None, trust_code: bool) -> CustomLoss:
    """Import the loss function that a recipe names.

    Args:
        name: ``module:function``.
        folder: searched before sys.path.
        trust_code: the user passed ``--trust-code``.

    Raises:
        RecipeError: the code is not trusted, or there is no such function.
    """
    function = load_function(name, folder, trusted=trust_code, key="qat.loss", kind=RecipeError)
    return CustomLoss(name, folder, function)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters by name; none of a function in C without a signature."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
