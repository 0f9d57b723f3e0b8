"""The errors a user can meet: where, what was found, what was expected, what to do."""

import errno
import tempfile
from collections.abc import Iterable

KeyPath = tuple[str | int, ...]
"""Keys from the top of a recipe down to a value; numbers are positions in lists."""


class QtoolError(Exception):
    """Base of every error that is the user's to fix; never raised itself."""

    exit_code = 2


class RecipeError(QtoolError):
    """A recipe, an option or a path is wrong (exit code 2).

    Args:
        text: what was found, what was expected, what to do.
        key: of the value that the text is about, ``()`` for the whole recipe;
            ``Recipe.locate_errors`` adds its place. None: the text says where.
        place: ``file:line`` of the value, or the option that set it; empty: not located yet.
    """

    def __init__(self, text: str, key: KeyPath | None = None, place: str = "") -> None:
        super().__init__(text)
        self.key = key
        self.place = place

    def __str__(self) -> str:
        """Return the place and the key, as far as there are any, and the text."""
        return ": ".join(part for part in (self.place, dotted(self.key or ()), self.text) if part)

    @property
    def text(self) -> str:
        """The message without place and key."""
        return super().__str__()


class DataError(QtoolError):
    """The data cannot be read or does not fit the model (exit code 2)."""


class SampleError(DataError):
    """A sample is damaged or holds NaN or infinity (exit code 2); calibration goes on without."""


class ModelError(QtoolError):
    """The model file cannot be read or is damaged (exit code 2)."""


class UnsupportedError(QtoolError):
    """The model or the target asks for what this version cannot do (exit code 3)."""

    exit_code = 3


class StorageError(QtoolError):
    """A disk is full, or refuses a file (exit code 2)."""


# What a disk or its rights refuse: not a defect of qtool.
_REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
)


def storage_error(error: OSError) -> StorageError | None:
    """Return the error of a disk that refuses a file; None where the system says something else.

    Args:
        error: of the system.
    """
    if error.errno not in _REFUSED:
        return None
    if error.filename:
        return StorageError(
            f"{error.filename}: {error.strerror}; free space or rights there, or choose --out"
        )
    return StorageError(
        f"{error.strerror}; free space or rights in the run folder (--out) and in "
        f"{tempfile.gettempdir()} (TMPDIR), or choose others"
    )


class OutOfMemoryError(QtoolError):
    """The machine has too little memory (exit code 2)."""


def out_of_memory(reason: str) -> OutOfMemoryError:
    """Return the error with what helps.

    Args:
        reason: what was done, without a full stop.
    """
    return OutOfMemoryError(
        f"{reason}: too little memory; write --memory 2G (what there is), take fewer samples "
        "(--count, evaluate.simulate) or fewer --threads, or free memory"
    )


# What PyTorch and ONNX Runtime say, whose errors have other classes than MemoryError.
_OUT_OF_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "Failed to allocate memory",
    "can't allocate memory",
    "not enough memory",
    "out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of any library says that memory could not be allocated."""
    return isinstance(error, MemoryError) or any(part in str(error) for part in _OUT_OF_MEMORY)


def dotted(path: KeyPath) -> str:
    """Return a path of keys as ``--set`` takes it; list positions in brackets."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (f'"{part}"' if "." in part else part)
    return text


def suggest(word: str, words: Iterable[object]) -> str:
    """Return ``'; did you mean "x"?'`` for the closest of ``words``, or an empty string.

    Args:
        word: the text of the user.
        words: those that exist.
    """
    import difflib

    close = difflib.get_close_matches(word, [str(each) for each in words], n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""
