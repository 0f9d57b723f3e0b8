"""A loss of the user's own, ``module:function``, called with tensors as torch's own losses are."""

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
    """``function(output, labels)``, with what else its parameters ask for by name.

    ``output`` is the network's first output as it is and ``labels`` the batch's, or None where the
    data has none. A parameter called ``outputs`` gets all outputs by name, one called ``teacher``
    the first output of the float network, without gradient.

    Attributes:
        name: ``module:function``.
        wants_teacher: whether the function has a parameter called ``teacher``.
        digest: sha256 of the module's file, in hex; empty where it has none.
    """

    def __init__(self, name: str, folder: str | None, function: Callable[..., Any]) -> None:
        self.name, self.folder, self.function = name, folder, function
        known = _parameters(function)
        self.asked = tuple(word for word in OPTIONAL if word in known)
        self.wants_teacher = "teacher" in self.asked
        file = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
        self.digest = "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()

    def __reduce__(self) -> tuple[Callable[..., "CustomLoss"], tuple[str, str | None, bool]]:
        """Another process imports the function anew, from where this one did."""
        return custom_loss, (self.name, self.folder, True)

    def __call__(
        self,
        outputs: "Mapping[str, torch.Tensor]",
        labels: "torch.Tensor | None",
        teacher: "torch.Tensor | None",
    ) -> "torch.Tensor":
        """The function's result, rank 0 and float32.

        Args:
            outputs: by name, the first one first.
            labels: [N, ...] on the outputs' device.
            teacher: the float network's first output, where the function asks for it.

        Raises:
            RecipeError: the function raises, or gives anything but one differentiable number.
        """
        import torch

        more = {"outputs": dict(outputs), "teacher": teacher}
        with guarded(f"qat.loss: {self.name}", RecipeError):
            found = self.function(
                next(iter(outputs.values())), labels, **{word: more[word] for word in self.asked}
            )
        wrong = None
        if not isinstance(found, torch.Tensor):
            wrong = f"a {type(found).__name__}"
        elif found.numel() != 1:
            wrong = f"a tensor of shape {list(found.shape)}"
        elif torch.is_grad_enabled() and not found.requires_grad:
            wrong = "a number without gradient"
        if wrong is not None:
            raise RecipeError(
                f"qat.loss: {self.name} gave {wrong}; expected one number computed from the "
                "outputs by torch alone, such as a mean over the samples: correct the function"
            )
        result: torch.Tensor = found.reshape(()).float()
        return result


def custom_loss(name: str, folder: str | None, trust_code: bool) -> CustomLoss:
    """The loss a recipe names.

    Args:
        name: ``module:function``.
        folder: looked into before sys.path.
        trust_code: whether the user gave ``--trust-code``.

    Raises:
        RecipeError: the code is not trusted, or there is no such function.
    """
    found = load_function(name, folder, trusted=trust_code, key="qat.loss", kind=RecipeError)
    return CustomLoss(name, folder, found)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters by name; none where a function written in C does not say."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
