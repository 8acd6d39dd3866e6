"""Errors that a user can cause and mend. The command prints them without a traceback."""


class VeridicalError(Exception):
    """Base of every error whose message is written for the user: what was expected, what came, the likely fix."""


class UnknownName(VeridicalError, ValueError):
    """A name, key or option that no table has; the message suggests the nearest one."""


class BadOption(VeridicalError, ValueError):
    """An option with an impossible value; the message says what was expected and what came."""


class WeightsMissing(VeridicalError, FileNotFoundError):
    """A pretrained file was neither found nor fetched, or its hash is wrong."""


class MissingExtra(VeridicalError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class DataError(VeridicalError, ValueError):
    """An image, a folder or a pair of folders that cannot be used."""


class RecipeError(VeridicalError, ValueError):
    """A recipe that does not validate."""


class NonFiniteLoss(VeridicalError, ArithmeticError):
    """Training met a NaN or an infinity; the message names the guilty term and the last good checkpoint."""


class FolderInUse(VeridicalError, RuntimeError):
    """Another process works in the folder; the message names it."""


class ProcessLost(VeridicalError, RuntimeError):
    """One of the processes that train together has ended or does not answer; the message says which, where that is
    known, and the last good checkpoint."""
