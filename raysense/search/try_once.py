"""One allocation, here and now: no search, no Ray. What `raysense try` and the benchmarks do."""

from __future__ import annotations

import logging
import math
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import raysense
from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation.calibration import calibration_cost
from raysense.evaluation.evaluator import Evaluator
from raysense.names import OUTLIERS
from raysense.pipelines.idle_modules import foreseen_for
from raysense.pipelines.load import modules_of, notes_of
from raysense.records import CALIBRATION, EvaluationRequest
from raysense.strategies.rules import built_in_rules, check_strategies, outlier_weighed
from raysense.strategies.user_defined import user_rules
from raysense.study import Study
from raysense.study.complete import complete

logger = logging.getLogger(__name__)


def with_strategy(study: Study, strategy: str) -> Study:
    """The study with this strategy alone, so that what it needs is collected."""
    return study.model_copy(update={"search": study.search.model_copy(update={"strategies": (strategy,)})})


def try_once(study: Study, strategy: str, share: float, rung: str, directory: str) -> str:
    """Prune to a share of the selected weights by an allocation rule and measure it.

    Args:
        study: What to prune, and how to measure.
        strategy: The rule's name.
        share: Zeros over the selected weights.
        rung: Where to measure.
        directory: The cache of dense references and statistics.

    Returns:
        A few lines: what was asked, what was counted under each denominator, each measure with its interval.

    Raises:
        RaysenseError: The study, the strategy or the method cannot be used.
    """
    study = complete(with_strategy(study, strategy))
    foreseen_for(study)  # steps that the scheduler refuses
    evaluator = Evaluator(study, directory)
    inventory = evaluator.inventory
    calibration_cost(study, inventory, evaluator.grid, modules_of(evaluator.pipeline))
    asked, allocation = allocate(evaluator, share)
    with said_in_one_line(study.pipeline):
        evaluation = evaluator.evaluate(EvaluationRequest(allocation, rung))
    lines = [
        f"{evaluation.method}, {strategy}: {asked:,} zeros asked, {evaluation.zeros:,} counted, steps of "
        f"{evaluator.grid.base:,}",
        *(f"{name:<20}{value:.4f}" for name, value in inventory.sparsities(evaluation.zeros).items()),
        *(
            f"{name:<20}{m.value:.4g}  [{m.ci_low:.4g}, {m.ci_high:.4g}]  n {m.n}, {m.extractor}"
            for name, m in evaluation.measures.items()
        ),
        f"cost                {evaluation.nfe:,} NFE, {evaluation.seconds:.1f} s",
        evaluator.masker.described,
    ]
    notes = (evaluation.collapsed, evaluation.notes, *notes_of(evaluator.pipeline))
    problems = [note for note in notes if note]
    return "\n".join(lines + problems)


@contextmanager
def said_in_one_line(pipeline: str) -> Iterator[None]:
    """Whatever a pipeline's own code raises while it is called, as an error that names the pipeline.

    A study keeps such things as failed rows; here nobody would see more than a traceback.

    Raises:
        RaysenseError: Something was raised.
    """
    try:
        yield
    except RaysenseError:
        raise
    except Exception as error:
        logger.info("the pipeline's error:", exc_info=True)
        reason = " ".join(str(error).split())[:300]
        if place := _own_code(error):
            raise RaysenseError(
                f"code of your own failed at {place} ({type(error).__name__}: {reason})"
            ) from error
        raise RaysenseError(
            f"`pipeline`: `{pipeline}` could be loaded, but not measured ({type(error).__name__}: {reason}); check its "
            "configuration files, or `sampling`; -v shows where"
        ) from error


def _own_code(error: BaseException) -> str:
    """File and line of the innermost frame in code that belongs neither to raysense nor to an installed package."""
    ours = str(Path(raysense.__file__).parent)
    installed = tuple(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib"))
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((ours, "<", *installed))]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def allocate(evaluator: Evaluator, share: float) -> tuple[int, Allocation]:
    """The allocation of the study's one strategy that removes a share of the selected weights.

    Args:
        evaluator: Of a study with one strategy, see `with_strategy`.
        share: Zeros over the selected weights.

    Returns:
        Zeros that were asked for, and the allocation.

    Raises:
        RaysenseError: The strategy is no allocation rule, or the limits of layers do not allow so much.
    """
    study, grid, inventory = evaluator.study, evaluator.grid, evaluator.inventory
    modules = modules_of(evaluator.pipeline)
    evaluator.stand_at(Allocation())
    rules = built_in_rules(inventory, grid, modules, study.search.proportions)
    rules |= user_rules(study.search.strategies, inventory, grid)
    (strategy,) = study.search.strategies
    check_strategies([strategy], (*rules, *OUTLIERS))
    if strategy in OUTLIERS:
        calibration = evaluator.evaluate(EvaluationRequest(Allocation(), CALIBRATION))
        rules[strategy] = outlier_weighed(strategy, inventory, grid, calibration)
    asked, most = round(share * grid.n), grid.max_zeros
    # Steps may end a little below the limit: that much is rounding, and both numbers are said.
    if asked > most and share > most / grid.n + 1e-3:
        pattern, cap = study.prune.pattern, study.prune.max_layer_sparsity
        remedy = (
            f"the pattern {pattern} allows no more"
            if pattern
            else f"raise `prune.max_layer_sparsity`, which is {cap:g}"
        )
        if not pattern and share < 1:
            remedy += f" (--set prune.max_layer_sparsity={min(1.0, share + 0.005):.3g})"
        raise RaysenseError(
            f"`--sparsity` is {share:g}, {asked:,} zeros, but at most {math.floor(1000 * most / grid.n) / 1000:g} of "
            f"the selected weights can go, {most:,} zeros: ask for less, or {remedy}"
        )
    return asked, rules[strategy](min(asked, most))
