"""The errors a user can meet: where, what was found, what was expected, what to do."""


class QtoolError(Exception):
    """Base of every error that is the user's to fix; never raised itself."""

    exit_code = 2


class RecipeError(QtoolError):
    """A recipe, an option or a path is wrong (exit code 2)."""


class DataError(QtoolError):
    """The data cannot be read or does not fit the model (exit code 2)."""


class ModelError(QtoolError):
    """The model file cannot be read or is damaged (exit code 2)."""


class UnsupportedError(QtoolError):
    """The model or the target asks for what this version cannot do (exit code 3)."""

    exit_code = 3


def suggest(word: str, known: object) -> str:
    """Return ``'; did you mean "x"?'`` for the closest known word, or an empty string.

    Args:
        word: what was written.
        known: an iterable of the words that exist.
    """
    import difflib

    close = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.5)  # type: ignore[attr-defined]
    return f'; did you mean "{close[0]}"?' if close else ""
