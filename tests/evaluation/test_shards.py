"""Large sets of images in shards: every image once, and the same measures as in one piece, whoever sampled what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysense.allocation import Allocation
from raysense.evaluation.evaluator import Evaluator
from raysense.evaluation.shards import is_split, ranges, ranges_of, shards_of
from raysense.records import Evaluation, EvaluationRequest
from raysense.study import Study, load

SMALL = [
    "rungs.preview.prompts=8",
    "rungs.score.prompts=10",
    "rungs.validation.prompts=9",
    "sampling.steps=2",
    "metrics.also=[ssim]",
]


def study(most: int) -> Study:
    return load(overrides=[*SMALL, f"cluster.images_per_shard={most}"])


@given(st.integers(1, 5000), st.integers(1, 700))
def test_every_image_is_in_one_part_and_parts_are_as_few_and_as_even_as_can_be(n: int, most: int) -> None:
    found = ranges(n, most)
    assert [i for shard in found for i in shard] == list(range(n))
    sizes = {len(shard) for shard in found}
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert (len(found) - 1) * most < n


def test_a_set_that_fits_has_no_parts() -> None:
    whole, parted = study(20), study(8)
    some = Allocation({"unet:conv_in": 1})
    assert shards_of(whole, some, "validation") == shards_of(whole, Allocation(), "score") == []
    assert not is_split(whole, "score", reference=True)
    assert len(shards_of(parted, some, "validation")) == 2
    # Two of the dense pipeline's own, and of the reference, 2 × 9 images, three.
    assert len(shards_of(parted, Allocation(), "validation")) == 2 + 3
    assert shards_of(parted, Allocation(), "probe") == []
    # The preview's 8 are the first of the score rung's 10.
    assert ranges_of(parted, "score") == [range(8), range(8, 10)]
    assert [str(request.shard) for request in shards_of(parted, some, "score")] == ["score 2 of 2"]
    # The preview is small, but is compared with the reference of the whole search.
    assert {
        request.shard.rung for request in shards_of(parted, Allocation(), "preview") if request.shard
    } == {"score"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def evaluators(folder: Path) -> list[Evaluator]:
    """Two that share a store, as on a cluster."""
    return [Evaluator(study(4), str(folder / "shared")) for _ in range(2)]


def pruned(evaluator: Evaluator, sparsity: float = 0.4) -> Allocation:
    return Allocation({a: evaluator.grid.level_for(a, sparsity) for a in evaluator.grid.addresses})


def test_parts_by_two_evaluators_give_what_one_evaluator_gives(
    evaluators: list[Evaluator], folder: Path
) -> None:
    request = EvaluationRequest(pruned(evaluators[0]), "validation")
    sampled: list[Evaluation] = []
    for wanted in (EvaluationRequest(Allocation(), "validation"), request):
        shards = shards_of(evaluators[0].study, wanted.allocation, wanted.rung)
        for number, shard in enumerate(shards):
            sampled.append(evaluators[number % 2].evaluate(shard))
    first, last = (
        evaluators[1].evaluate(EvaluationRequest(Allocation(), "validation")),
        evaluators[0].evaluate(request),
    )
    assert first.images == last.images == first.nfe == last.nfe == 0
    assert sum(e.images for e in sampled) == 9 + 2 * 9 + 9
    assert sum(e.nfe for e in sampled) == (9 + 2 * 9 + 9) * 2 * 2
    assert all(e.measures == {} for e in sampled)
    assert last.zeros == sampled[-1].zeros == evaluators[0].grid.zeros(request.allocation)
    assert [row["prompt_id"] for row in last.samples] == [row["prompt_id"] for row in first.samples]

    alone = Evaluator(study(100), str(folder / "alone"))
    whole = alone.evaluate(request)
    assert last.measures.keys() == whole.measures.keys()
    for name, measure in whole.measures.items():
        # Other batches, so matrix products are summed in another order.
        assert last.measures[name].value == pytest.approx(measure.value, rel=5e-3, abs=1e-4), name
        assert last.measures[name].n == measure.n


def test_an_evaluation_that_ended_in_the_middle_goes_on_at_its_last_part(
    evaluators: list[Evaluator], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = evaluators
    request = EvaluationRequest(pruned(one, 0.2), "score")
    real, calls = one.sampler.scored, 0

    def dying(*arguments: object) -> object:
        nonlocal calls
        calls += bool(arguments[2])  # the pruned pipeline's own; a dense set has nothing beside it
        if calls == 3:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    one.evaluate(EvaluationRequest(Allocation(), "score"))
    monkeypatch.setattr(one.sampler, "scored", dying)
    with pytest.raises(KeyboardInterrupt):
        one.evaluate(request)
    assert other.evaluate(request).images == 2  # of shards of 4, 4 and 2


def test_what_the_preview_has_sampled_the_score_rung_has_already(evaluators: list[Evaluator]) -> None:
    one, other = evaluators
    for allocation in (Allocation(), pruned(one, 0.25)):
        preview = one.evaluate(EvaluationRequest(allocation, "preview"))
        score = other.evaluate(EvaluationRequest(allocation, "score"))
        if allocation:
            assert (preview.images, score.images) == (8, 2)
        assert [row["prompt_id"] for row in score.samples[:8]] == [r["prompt_id"] for r in preview.samples]
        drops = [[row["clip_score"] for row in found.samples[:8]] for found in (preview, score)]
        assert drops[0] == drops[1]


def test_broken_images_are_known_as_such_from_the_cache(
    evaluators: list[Evaluator], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = evaluators
    one.evaluate(EvaluationRequest(Allocation(), "validation"))
    request = EvaluationRequest(pruned(one, 0.1), "validation")
    real = one.scorer.score
    monkeypatch.setattr(
        one.scorer, "score", lambda images, prompts, dense: real(torch.zeros_like(images), prompts, dense)
    )
    first, second, third = shards_of(one.study, request.allocation, "validation")
    one.evaluate(first)
    one.evaluate(second)
    other.evaluate(third)
    found = other.evaluate(request)
    assert found.images == 0
    assert found.collapsed.startswith("black"), "more than half of the images"


def test_a_damaged_part_is_sampled_again(evaluators: list[Evaluator], folder: Path) -> None:
    one, other = evaluators
    request = EvaluationRequest(pruned(one, 0.3), "validation")
    before = set((folder / "shared" / "cache").iterdir())
    first, *rest = shards_of(one.study, request.allocation, "validation")
    one.evaluate(first)
    (entry,) = set((folder / "shared" / "cache").iterdir()) - before
    for shard in rest:
        one.evaluate(shard)
    entry.write_bytes(entry.read_bytes()[:-3])
    found = other.evaluate(request)
    assert found.images == len(ranges_of(one.study, "validation")[0])
    assert replace(found, seconds=0.0).measures == one.evaluate(request).measures
