"""What can go wrong, by name. A message says which argument, what was expected, what came, what to do."""

from __future__ import annotations

__all__ = [
    "AuditError",
    "ConvergenceError",
    "DTypeError",
    "FileFormatError",
    "MarkovLMError",
    "MissingDependencyError",
    "NotStochasticError",
    "SampleWarning",
    "ShapeError",
    "UnsupportedModelError",
    "ValueRangeError",
]


class MarkovLMError(Exception):
    """Root of every error that markovlm raises on purpose."""


class ShapeError(MarkovLMError, ValueError):
    """An array has the wrong number of axes or a length that does not fit the others."""


class DTypeError(MarkovLMError, TypeError):
    """An array or argument has a type that cannot be used, such as complex states."""


class ValueRangeError(MarkovLMError, ValueError):
    """A value is NaN, infinite, or outside the range that the quantity is defined on."""


class NotStochasticError(MarkovLMError, ValueError):
    """Rows are not probability vectors; the message names the worst row and its sum."""


class ConvergenceError(MarkovLMError, RuntimeError):
    """An iteration stopped before its tolerance; carries the partial result in ``partial``."""

    def __init__(self, message: str, partial: object = None) -> None:
        super().__init__(message)
        self.partial = partial


class AuditError(MarkovLMError, AssertionError):
    """Something that must hold of kernels does not; the message lists what, by how much, and where."""


class MissingDependencyError(MarkovLMError, ImportError):
    """An optional package is needed for this call; the message holds the pip command."""


class UnsupportedModelError(MarkovLMError):
    """The model's parts do not reproduce its logits, so nothing may be computed from them."""


class FileFormatError(MarkovLMError, ValueError):
    """A file is truncated, corrupt, of another kind, or of a schema that this version cannot read."""


class SampleWarning(UserWarning):
    """The sample is too small to carry what is claimed from it; the message says what would do."""
