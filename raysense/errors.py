"""The one exception that users meet."""

from __future__ import annotations


class RaysenseError(Exception):
    """Something the user can mend.

    Its message names the field, the value and the remedy; the command line prints it without a
    traceback and exits with status 2.
    """
