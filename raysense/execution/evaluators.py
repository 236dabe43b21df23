"""What an evaluator is, how one is built on another machine, and who signs its answers."""

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
from raysense.records import Evaluation, Question, Task

ATTEMPTS = 3

log = logging.getLogger("raysense")


class Evaluator(Protocol):
    """Measures. Holds the pipeline from its making to its end."""

    def evaluate(self, task: Task) -> Evaluation:
        """Measures one allocation on one rung.

        The executor signs the answer: `key`, `question`, `stage`, `allocation`, `rung`, `draw`, `trial` and
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

    def build(self) -> Evaluator:
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
        evaluator: Evaluator = function(**self.arguments)
        return evaluator


def new_life() -> str:
    """A name for an evaluator's life, unique in the study: host, process, and a few random digits."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def signed(
    evaluation: Evaluation, question: Question, task: Task, *, signature: str, trial: str, life: str
) -> Evaluation:
    """The evaluation as the row it becomes: whose answer it is, and whose work."""
    return replace(
        evaluation,
        key=task.key(signature),
        question=question.name,
        stage=question.stage,
        allocation=task.allocation.key,
        rung=task.rung,
        draw=task.draw,
        trial=trial,
        evaluator=life,
    )


def failure(question: Question, task: Task, why: str, *, signature: str, trial: str, life: str) -> Evaluation:
    """The row of a task that could not be measured."""
    empty = Evaluation("", "", "", "", "", 0, measures={}, zeros=0, images=0, cost=0, seconds=0.0, failed=why)
    return signed(empty, question, task, signature=signature, trial=trial, life=life)
