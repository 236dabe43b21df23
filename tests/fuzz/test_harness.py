import os
import time

import pytest

from raysense.errors import RaysenseError
from tests.fuzz.harness import Case, Changed, run


def _raise(error: BaseException) -> None:
    raise error


def test_every_outcome_is_counted_and_the_rest_still_runs() -> None:
    cases: list[Case] = [
        ("fine", lambda: None),
        ("refused", lambda: _raise(RaysenseError("one line"))),
        ("two lines", lambda: _raise(RaysenseError("one\ntwo"))),
        ("changed", lambda: _raise(Changed("x"))),
        ("leaves", lambda: os._exit(3)),
        ("hangs", lambda: time.sleep(60)),
        ("deep", lambda: _raise(RecursionError())),
        ("fine again", lambda: None),
    ]
    counts = run("cases", cases, limit=1)
    assert dict(counts.by_outcome) == {
        "ok": 2, "refused": 1, "traceback": 2, "changed": 1, "died": 1, "hang": 1,
    }  # fmt: skip
    assert [name for _, name, _ in counts.bad] == ["two lines", "changed", "leaves", "hangs", "deep"]
    with pytest.raises(AssertionError, match="hangs"):
        counts.check()
