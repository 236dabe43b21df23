"""Search strategies and allocation rules of the user's own, at the same rungs, bounds and budget as raysense's."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

from raysense.allocation import Allocation, LevelGrid
from raysense.errors import RaysenseError
from raysense.pruning.allocation_rules import AllocationRule
from raysense.pruning.layers import Inventory
from raysense.records import Evaluation, TrialSpec
from raysense.registry import DOTTED, declaration_of, find
from raysense.strategies.asking import asked_for, judged, judged_together
from raysense.strategies.context import Candidate, SearchContext, candidate_of
from raysense.strategies.runner import Coroutine, OutOfBudget

Proposals = Generator[Allocation | Sequence[Allocation] | TrialSpec, Any, object]
UserStrategy = Callable[[SearchContext, Sequence[Candidate]], Proposals]
UserRule = Callable[[Inventory, LevelGrid, int], Allocation]


def user_strategies(names: Sequence[str]) -> dict[str, UserStrategy]:
    """Those entries of `search.strategies` that are strategies of the user's own, imported.

    Raises:
        RaysenseError: One cannot be imported, or has no decorator.
    """
    return {name: found for name in names if (found := _of_kind(name, "strategy"))}


def user_rules(
    names: Sequence[str], inventory: Inventory, grid: LevelGrid, field: str = "search.strategies"
) -> dict[str, AllocationRule]:
    """Those of some names that are allocation rules of the user's own, imported.

    Args:
        names: Names and dotted paths.
        inventory: What the rules share a total among.
        grid: Its levels.
        field: Where the study names them.

    Raises:
        RaysenseError: One cannot be imported, or has no decorator.
    """
    found = {name: _of_kind(name, "allocation_rule", field) for name in names}
    return {name: checked_rule(name, rule, inventory, grid) for name, rule in found.items() if rule}


def checked_rule(name: str, rule: UserRule, inventory: Inventory, grid: LevelGrid) -> AllocationRule:
    """A rule whose answers are held to the contract: an allocation on the grid."""

    def allocate(zeros: int) -> Allocation:
        try:
            found = rule(inventory, grid, zeros)
        except RaysenseError:
            raise
        except Exception as error:
            raise RaysenseError(f"{name}: raised {type(error).__name__}: {error}") from error
        return checked_allocation(name, found, grid)

    return allocate


def checked_allocation(name: str, found: object, grid: LevelGrid) -> Allocation:
    """What a plug-in gave, if it is an allocation on the grid.

    Raises:
        RaysenseError: It is none, or names layers or levels that there are not.
    """
    if not isinstance(found, Allocation):
        raise RaysenseError(f"{name}: must give an Allocation, but gave {type(found).__name__}")
    try:
        grid.validate(found)
    except RaysenseError as error:
        raise RaysenseError(f"{name}: {error}") from None
    return found


def propose(
    context: SearchContext,
    name: str,
    strategy: UserStrategy,
    candidates: Sequence[Candidate],
    allowed: int,
) -> Coroutine:
    """A strategy of the user's own at work; returns its candidates.

    It may spend `allowed` NFE, then it is closed.
    """
    found: list[Candidate] = []
    spent, asked, answer = 0, 0, None
    proposals = started(name, strategy, context, candidates)
    try:
        while spent < allowed:
            try:
                wanted = proposals.send(answer)
            except StopIteration:
                break
            except RaysenseError:
                raise
            except Exception as error:
                raise RaysenseError(f"{name}: raised {type(error).__name__}: {error}") from error
            if isinstance(wanted, TrialSpec):
                answer = yield from _asked(context, name, asked, wanted)
                spent += sum(evaluation.nfe for evaluation in answer)
                pairs = zip(wanted.requests, answer, strict=False)
                found += [candidate_of(context, name, t.allocation, e) for t, e in pairs if t.rung == "score"]
                asked += 1
            elif isinstance(wanted, Sequence):
                if not wanted:
                    raise RaysenseError(f"{name}: yielded an empty list; yield an allocation, or return")
                pool = [checked_allocation(name, allocation, context.grid) for allocation in wanted]
                labels = [f"{name}/{asked + i}" for i in range(len(pool))]
                answer = yield from judged_together(context, name, labels, pool)
                found += answer
                spent += sum(_climbed(context, candidate) for candidate in answer)
                asked += len(pool)
            else:
                allocation = checked_allocation(name, wanted, context.grid)
                answer = yield from judged(context, name, f"{name}/{asked}", allocation)
                found.append(answer)
                spent += _climbed(context, answer)
                asked += 1
    except OutOfBudget:
        pass
    finally:
        proposals.close()
    return found


def _climbed(context: SearchContext, candidate: Candidate) -> int:
    """NFE of a candidate's climb, as far as it came: what fell at the preview cost no more."""
    dropped = candidate.evaluation.rung == "preview"
    return context.costs.images("preview") if dropped else context.costs.climb


def started(
    name: str, strategy: UserStrategy, context: SearchContext, candidates: Sequence[Candidate]
) -> Proposals:
    """The strategy's generator.

    Raises:
        RaysenseError: It is none.
    """
    proposals: object = strategy(context, candidates)
    if not isinstance(proposals, Generator):
        raise RaysenseError(
            f"{name}: a strategy is a generator, but gave {type(proposals).__name__}; use `yield`"
        )
    return proposals


def _asked(context: SearchContext, name: str, number: int, wanted: TrialSpec) -> Coroutine:
    """A trial of the strategy's own under a name that is unique in the study."""
    for request in wanted.requests:
        checked_allocation(name, request.allocation, context.grid)
        if request.rung not in ("probe", "preview", "score"):
            raise RaysenseError(
                f"{name}: asked for the rung {request.rung!r}; ask for probe, preview or score"
            )
    spec = replace(wanted, name=f"search/{name}/{number}", stage="search")
    evaluations: list[Evaluation] = yield from asked_for(context, spec)
    return evaluations


def _of_kind(name: str, kind: str, field: str = "search.strategies") -> Any:
    """The object at a dotted path if it is decorated as this kind; None for any other."""
    if not DOTTED.fullmatch(name):
        return None
    found = find(name, field)
    said = declaration_of(found)
    if said is None or said.kind not in ("strategy", "allocation_rule"):
        raise RaysenseError(
            f"`{field}`: {name!r} must be decorated with `@raysense.strategy(…)` or "
            "`@raysense.allocation_rule(…)` where it is defined"
        )
    return found if said.kind == kind else None
