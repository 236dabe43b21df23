"""A whole study stored on S3: evaluators write there, the driver compacts there, a resumed study reads there."""

from __future__ import annotations

import json

import pytest

from raysense.errors import RaysenseError
from raysense.execution.executor import EvaluatorSpec
from raysense.execution.local import LocalExecutor
from raysense.execution.progress import Outcome
from raysense.execution.ray.driver import RayExecutor
from raysense.store import Store, lock
from tests.execution.curves import Chain
from tests.execution.sleepers import Sleeper
from tests.s3 import s3_server


def run(strategy: Chain, uri: str) -> Outcome:
    spec = EvaluatorSpec("tests.execution.sleepers:sleeper", {"seconds": 0.05})
    store = Store.open(uri, create=True)
    return RayExecutor(spec, evaluators=2).run(strategy, store, signature="s", lookahead=6)


@pytest.mark.usefixtures("local_ray")
def test_a_study_on_s3_gives_what_one_on_disk_gives_and_resumes(tmp_path: object) -> None:
    with s3_server() as bucket:
        uri = bucket.format("tiny")
        store = Store.open(uri, create=True)
        store.begin({"name": "tiny"}, signature="s", denominators={"n_selected": 9})
        strategy, reference = Chain(8, width=2), Chain(8, width=2)
        assert run(strategy, uri).finished
        whole = Store.open(f"{tmp_path}/whole", create=True)
        LocalExecutor(Sleeper()).run(reference, whole, signature="s", lookahead=6)
        assert strategy.trace == reference.trace

        rows = Store.open(uri).table("evaluations").to_pylist()
        assert {row["key"] for row in rows} == set(whole.known())
        assert len(rows) == 16
        assert {row["n_selected"] for row in rows} == {9}
        assert all(row["ray_trial"] and row["evaluator"] for row in rows)
        assert not store._disk.names("objects")  # compacted
        assert json.loads(store._disk.read(lock.NAME) or b"")["free"]  # given back

        again = Chain(8, width=2)
        assert run(again, uri).snapshot.measured == 0
        assert again.trace == strategy.trace
        with pytest.raises(RaysenseError, match="another study"):
            store.begin({"name": "other"}, signature="t")
