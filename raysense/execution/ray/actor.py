"""The evaluator actor: loads a pipeline once, measures until it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

import raysense
from raysense.errors import RaysenseError
from raysense.execution.executor import EvaluatorSpec, Measurer, new_life, signed
from raysense.records import Evaluation, EvaluationRequest, TrialSpec
from raysense.store.rows import without_samples
from raysense.store.store import Store


@dataclass(frozen=True)
class PoolSpec:
    """What the pool and its evaluators need to know.

    Attributes:
        spec: How to make an evaluator.
        store_uri: Where evaluators put their evaluations.
        signature: The study's.
        count: Evaluators to keep, or None: as many as the nodes have room for.
        cpus: CPU cores an evaluator reserves.
        gpus: GPUs, or the fraction of one, that an evaluator reserves.
        version: The driver's version of raysense.
        begun: Whether the driver has written the study's definition to the store.
        patience: Seconds that every evaluation is given at least.
    """

    spec: EvaluatorSpec
    store_uri: str
    signature: str
    count: int | None
    cpus: float
    gpus: float
    version: str
    begun: bool
    patience: float = 600.0


@dataclass(frozen=True)
class Reply:
    """An evaluator's answer: the evaluation, or why there is none.

    Attributes:
        evaluation: What was measured.
        error: Why this attempt failed.
        fatal: Why no attempt can succeed, which the user can mend.
        sound: Whether the evaluator can go on; after a failure of another kind than want of memory it is replaced.
    """

    evaluation: Evaluation | None = None
    error: str = ""
    fatal: str = ""
    sound: bool = True


class EvaluatorActor:
    """An evaluator's life, as a Ray actor: loads once, measures until it ends."""

    def __init__(self, spec: PoolSpec) -> None:
        self._spec = spec
        self._life = new_life()
        self._evaluator: Measurer | None = None

    def load(self) -> Reply:
        """Makes the evaluator."""
        if self._spec.version != raysense.__version__:
            return Reply(
                fatal=f"worker {self._life} runs raysense {raysense.__version__}, the driver {self._spec.version}. "
                "Install the same version on every node."
            )
        try:
            self._store = Store.open(self._spec.store_uri, create=True)
            seen = (self._store.study or {}).get("signature")
            if self._spec.begun and seen != self._spec.signature:
                return Reply(
                    fatal=f"evaluator {self._life}: {self._spec.store_uri} is not the driver's folder there: its rows "
                    "would be lost. Give `--out` a folder that every machine sees under the same path, or s3://…"
                )
            self._evaluator = self._spec.spec.build()
        except RaysenseError as error:
            return Reply(fatal=f"evaluator {self._life}: {error}")
        except Exception as error:
            return Reply(error=f"{type(error).__name__}: {error}")
        return Reply()

    def where(self) -> tuple[str, str]:
        """The life's name and its node; also tells that it has not ended."""
        return self._life, ray.get_runtime_context().get_node_id()

    def measure(self, trial_spec: TrialSpec, request: EvaluationRequest, trial: str) -> Reply:
        """Measures and stores, unless an evaluator that died after storing already did."""
        assert self._evaluator is not None  # the pool hands out loaded evaluators only
        try:
            stored = self._store.get_object(request.key(self._spec.signature))
            if stored is not None:
                return Reply(stored)
            evaluation = signed(
                self._evaluator.evaluate(request),
                trial_spec,
                request,
                signature=self._spec.signature,
                trial=trial,
                life=self._life,
            )
            self._store.put(evaluation, request.allocation)
        except RaysenseError as error:
            return Reply(
                fatal=f"{trial_spec.name}, allocation {request.allocation.key}, rung {request.rung}: {error}"
            )
        except Exception as error:
            # Torch is not loaded here: its out-of-memory error is known by name.
            fits = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
            return Reply(error=f"{type(error).__name__}: {error}", sound=fits)
        return Reply(without_samples(evaluation))


def evaluator_actor(spec: PoolSpec) -> Any:
    """Starts an evaluator's life. The pool sees to it that a dead one is replaced, so Ray need not."""
    return (
        ray.remote(EvaluatorActor)
        .options(num_cpus=spec.cpus, num_gpus=spec.gpus, max_restarts=0)
        .remote(spec)
    )
