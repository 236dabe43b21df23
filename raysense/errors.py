"""The one exception that users meet."""

from __future__ import annotations

from raysense.secrets import masked


class RaysenseError(Exception):
    """Something the user can mend.

    Its message names the field, the value and the remedy; the command line prints it without a
    traceback and exits with status 2.

    Attributes:
        status: The exit status.
    """

    status = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(masked(str(message)))


class OtherVersion(RaysenseError):
    """A file of a store is whole, but of another schema version than this raysense reads."""


class MeasuringFailed(RaysenseError):
    """Nothing that was asked could be measured, so nothing is known about quality."""

    status = 1
