"""What a user can cause.

Every error here carries one message that says what was expected, what was found and what to do.
Anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations


class PassesError(Exception):
    """Base of everything a user can cause; the command line prints it and exits with 1."""


class SettingsError(PassesError):
    """A knob has a value outside its range, or two knobs contradict each other."""


class ModelError(PassesError):
    """The model file cannot be read, is not valid ONNX, or cannot be run by ONNX Runtime."""


class DataError(PassesError):
    """The inputs or labels do not fit the model."""


class PlanError(PassesError):
    """A saved plan cannot be read or was made for another model, data set or version."""


class OutputError(PassesError):
    """The result cannot be written where the user wants it."""


class RewriteFailed(PassesError):  # noqa: N818 - the field's term; it reports an event, not a kind of error
    """A step of a plan does not fit the graph it is applied to."""


class ValidationFailed(PassesError):  # noqa: N818
    """The evidence is empty, malformed, or shows an error above the budget; nothing is written."""
