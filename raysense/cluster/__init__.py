"""Who does the measuring: strategies' questions on evaluators, in this process or as Ray Tune trials.

Importing this package loads neither torch nor Ray; `run_on_ray` imports Ray when it is called.
"""

from raysense.cluster.evaluators import Evaluator, EvaluatorSpec
from raysense.cluster.in_process import run_in_process
from raysense.cluster.live import LiveView
from raysense.cluster.on_ray import run_on_ray
from raysense.cluster.progress import Outcome, Snapshot

__all__ = [
    "Evaluator",
    "EvaluatorSpec",
    "LiveView",
    "Outcome",
    "Snapshot",
    "run_in_process",
    "run_on_ray",
]
