"""Who executes a strategy, what measures for it, how that is built on another machine, and who signs the answers."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from raysense.errors import RaysenseError
from raysense.execution.progress import OnProgress, Outcome
from raysense.execution.reused_rows import ReusedRows
from raysense.records import Evaluation, EvaluationRequest, TrialSpec
from raysense.secrets import masked
from raysense.store.store import Store
from raysense.strategies.base import Strategy

ATTEMPTS = 3

log = logging.getLogger("raysense")


class Executor(Protocol):
    """Has a strategy's trials answered: in this process, or on a Ray cluster."""

    def run(
        self,
        strategy: Strategy,
        store: Store,
        *,
        signature: str,
        lookahead: int,
        on_progress: OnProgress | None = None,
        earlier: ReusedRows | None = None,
    ) -> Outcome:
        """Ask, measure what the store does not answer, store, tell, until the strategy is done.

        Args:
            strategy: What to ask. Stays in this process.
            store: Where evaluations are looked up and put. Its lock is held during the run.
            signature: The study's signature, part of every evaluation's key.
            lookahead: W of design decision 3: the same W gives the same decisions, whoever executes.
            on_progress: Called about twice a second, and at the end.
            earlier: A run whose rows are taken over where the store has none.

        Returns:
            Whether the strategy is done or the run was interrupted (Ctrl-C once), and the final numbers.

        Raises:
            RaysenseError: Another driver runs on the store, or the store cannot be written.
        """
        ...


class Measurer(Protocol):
    """Measures. Holds the pipeline from its making to its end."""

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """Measures one allocation on one rung.

        The executor signs the answer: `key`, `trial`, `stage`, `allocation`, `rung`, `replicate`, `ray_trial` and
        `evaluator` are set by it, whatever is given here.
        """
        ...


@dataclass(frozen=True)
class EvaluatorSpec:
    """How to make an evaluator on a machine that has only raysense (and what it imports) installed.

    Attributes:
        target: ``package.module:function``, called once per evaluator life.
        arguments: Its keyword arguments, JSON-able.
    """

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Measurer:
        """Imports the target and calls it.

        Raises:
            RaysenseError: The target cannot be imported.
        """
        module, _, name = self.target.partition(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise RaysenseError(
                f"evaluator `{self.target}`: {error}. Give `package.module:function`, importable on every worker."
            ) from error
        evaluator: Measurer = function(**self.arguments)
        return evaluator


def new_life() -> str:
    """A name for an evaluator's life, unique in the study: host, process, and a few random digits."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def signed(
    evaluation: Evaluation,
    spec: TrialSpec,
    request: EvaluationRequest,
    *,
    signature: str,
    trial: str,
    life: str,
) -> Evaluation:
    """The evaluation as the row it becomes: whose answer it is, and whose work."""
    return replace(
        evaluation,
        key=request.key(signature),
        trial=spec.name,
        stage=spec.stage,
        allocation=request.allocation.key,
        rung=request.rung,
        replicate=request.replicate,
        ray_trial=trial,
        evaluator=life,
    )


def failure(
    spec: TrialSpec, request: EvaluationRequest, why: str, *, signature: str, trial: str, life: str
) -> Evaluation:
    """The row of a request that could not be measured."""
    empty = Evaluation(measures={}, zeros=0, images=0, nfe=0, seconds=0.0, failed=masked(why))
    return signed(empty, spec, request, signature=signature, trial=trial, life=life)
