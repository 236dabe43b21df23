from collections.abc import Sequence

from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.records import Evaluation, EvaluationRequest, TrialSpec
from raysense.strategies.budget import BudgetTracker
from raysense.strategies.runner import Coroutine, OutOfBudget, Schedule, StrategyRunner
from raysense.study import Budget


def spec(name: str, stage: str = "search") -> TrialSpec:
    return TrialSpec(name, stage, (EvaluationRequest(Allocation(), "score"),))


def answer(value: int, nfe: int = 1) -> list[Evaluation]:
    return [Evaluation(rung="score", measures={}, zeros=value, images=0, nfe=nfe, seconds=0.0)]


def counting(name: str, times: int) -> Coroutine:
    total = 0
    try:
        for number in range(times):
            (evaluation,) = yield spec(f"{name}{number}")
            total += evaluation.zeros
    except OutOfBudget:
        pass
    return total


def run(runner: StrategyRunner[int], width: int = 3) -> list[str]:
    asked: list[str] = []
    outstanding: list[TrialSpec] = []
    while not runner.done or outstanding:
        while len(outstanding) < width and (following := runner.ask()) is not None:
            asked.append(following.name)
            outstanding.append(following)
        if not outstanding:
            break
        runner.tell(outstanding.pop(0), answer(1))
    return asked


def two_stages(runner: StrategyRunner[int]) -> Schedule[int]:
    first: Sequence[int] = yield [counting("a", 2), counting("b", 1)]
    second: Sequence[int] = yield [counting("c", sum(first))]
    return second[0]


def test_inquiries_of_a_stage_go_on_side_by_side_and_stages_in_order() -> None:
    runner = StrategyRunner(two_stages, lambda q: 1)
    assert run(runner) == ["a0", "b0", "a1", "c0", "c1", "c2"]
    assert runner.done
    assert runner.outcome == 3
    assert runner.tracker.spent == 6


def test_a_stage_without_inquiries_is_passed() -> None:
    def plan(runner: StrategyRunner[int]) -> Schedule[int]:
        nothing = yield []
        assert nothing == []
        return 7

    runner = StrategyRunner(plan, lambda q: 1)
    assert runner.done
    assert runner.outcome == 7


def test_budget_is_hard_and_leaves_the_best_so_far() -> None:
    runner = StrategyRunner(two_stages, lambda q: 1, BudgetTracker(Budget(max_nfe=2), lambda q: 1))
    assert len(run(runner)) == 2
    assert runner.done
    assert runner.tracker.spent <= 2
    assert runner.outcome == 0


def test_reserve_is_kept_for_validation() -> None:
    def plan(runner: StrategyRunner[int]) -> Schedule[int]:
        yield [counting("a", 10)]

        def validate() -> Coroutine:
            yield spec("v", "validation")
            return 1

        found = yield [validate()]
        return found[0]

    runner = StrategyRunner(plan, lambda q: 1, BudgetTracker(Budget(max_nfe=4), lambda q: 1, {"search": 1}))
    assert run(runner) == ["a0", "a1", "a2", "v"]
    assert runner.outcome == 1


def test_an_error_ends_the_story() -> None:
    def plan(runner: StrategyRunner[int]) -> Schedule[int]:
        yield [counting("a", 1)]
        raise RaysenseError("impossible")

    runner = StrategyRunner(plan, lambda q: 1)
    run(runner)
    assert runner.done
    assert str(runner.error) == "impossible"
    assert runner.error.__context__ is None  # that the coroutine before it had ended is nobody's business


def several(name: str, width: int) -> Coroutine:
    try:
        answers = yield [spec(f"{name}{number}") for number in range(width)]
    except OutOfBudget:
        return -1
    return [evaluation.zeros for (evaluation,) in answers]


def test_an_inquiry_may_ask_several_trials_side_by_side() -> None:
    def plan(runner: StrategyRunner[object]) -> Schedule[object]:
        return (yield [several("a", 3), counting("b", 2)])

    runner: StrategyRunner[object] = StrategyRunner(plan, lambda q: len(q.requests))
    asked = [runner.ask() for _ in range(5)]
    assert [q.name for q in asked if q] == ["a0", "a1", "a2", "b0"]
    for value, number in ((7, 2), (5, 0), (6, 1)):  # whoever is done first
        finished = asked[number]
        assert finished is not None
        runner.tell(finished, answer(value))
    assert run_rest(runner, asked[3]) == ["b1"]
    assert runner.outcome == [[5, 6, 7], 2]


def test_several_trials_are_paid_for_together_or_not_asked() -> None:
    def plan(runner: StrategyRunner[object]) -> Schedule[object]:
        return (yield [several("a", 3), counting("b", 2)])

    def cost(asked: TrialSpec) -> int:
        return len(asked.requests)

    runner: StrategyRunner[object] = StrategyRunner(plan, cost, BudgetTracker(Budget(max_nfe=2), cost))
    first = runner.ask()
    assert first is not None
    assert first.name == "b0"
    assert run_rest(runner, first) == ["b1"]
    assert runner.outcome == [-1, 2]


def run_rest(runner: StrategyRunner[object], outstanding: TrialSpec | None) -> list[str]:
    """Answers what is outstanding and whatever is asked then."""
    names: list[str] = []
    while outstanding is not None:
        runner.tell(outstanding, answer(1))
        outstanding = runner.ask()
        names += [outstanding.name] if outstanding else []
    return names


def test_a_stage_in_which_nobody_asks_is_passed_and_its_findings_arrive() -> None:
    def plan(runner: StrategyRunner[int]) -> Schedule[int]:
        first: Sequence[int] = yield [counting("a", 1)]
        second: Sequence[int] = yield [counting("b", 0), counting("c", 0)]
        third: Sequence[int] = yield [counting("d", 0), counting("e", 2)]
        return sum(first) + len(second) + sum(third)

    runner = StrategyRunner(plan, lambda q: 1)
    assert run(runner) == ["a0", "e0", "e1"]
    assert runner.outcome == 5
