"""One evaluation: (allocation, rung) -> Evaluation. Importing this package loads no torch."""

from raysense.evaluation.records import Evaluation, Measure, Question, StopRule, Task

__all__ = ["Evaluation", "Measure", "Question", "StopRule", "Task"]
