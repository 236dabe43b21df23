"""The rungs that sample images: preview, score and validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from raysense.errors import RaysenseError
from raysense.evaluation.image_sets import ImageSets
from raysense.evaluation.live_pipeline import LivePipeline
from raysense.evaluation.rungs.base import Found
from raysense.evaluation.sampler import Pairs
from raysense.evaluation.scoring import ImageScorer
from raysense.pipelines.load import notes_of
from raysense.pipelines.text_cache import cut_off
from raysense.records import EvaluationRequest


class ImagesRung:
    """Pruned images beside dense ones of the same prompts and noise, by all of a study's metrics."""

    def __init__(self, live: LivePipeline, sets: ImageSets, scorer: Callable[[], ImageScorer]) -> None:
        self._live, self._sets, self._scorer = live, sets, scorer

    def measure(self, request: EvaluationRequest) -> Found:
        """See `Rung`."""
        live = self._live
        pairs = self._sets.pairs(request.rung, request.replicate)
        dense = self._sets.dense(request.rung, request.replicate)
        reference = self._sets.reference(request.rung, request.replicate, dense)
        pruned = self._sets.pruned(request.allocation, request.rung, request.replicate)
        live.stand_at(request.allocation)
        if not request.allocation:
            live.notes += notes_of(live.pipeline)
            live.notes += self._cut_off([p.text for p in pairs[0]])
        measures, values = self._scorer().compare(pairs[0], pruned, dense, reference)
        return Found(measures, pruned.collapsed, _sample_rows(pairs, values))

    def _cut_off(self, texts: Sequence[str]) -> list[str]:
        """Who reads only the beginning of how many prompts, a sentence each."""
        readers = {"the CLIP model": len(self._scorer().truncated(texts))}
        found = cut_off(self._live.pipeline, list(dict.fromkeys(texts)))
        readers |= {f"the pipeline's `{name}`": n for name, n in found.items()}
        return [
            f"{count} prompts are longer than {reader} reads" for reader, count in readers.items() if count
        ]


class ShardRung:
    """Samples some of the images of another evaluation, which is another evaluator's work as well."""

    def __init__(self, live: LivePipeline, sets: ImageSets) -> None:
        self._live, self._sets = live, sets

    def measure(self, request: EvaluationRequest) -> Found:
        """See `Rung`; there are no measures."""
        if request.shard is None:
            raise RaysenseError(
                f"rung {request.rung!r}: the request names no shard of an evaluation's images"
            )
        self._sets.sample_shard(request.allocation, request.shard, request.replicate)
        self._live.stand_at(request.allocation)  # for its zeros, should the shard have been there
        return Found()


def _sample_rows(pairs: Pairs, values: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    columns = {name: value.tolist() for name, value in values.items()}
    return [
        {
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            "seed": seed,
            **{name: column[row] for name, column in columns.items()},
        }
        for row, (prompt, seed) in enumerate(zip(*pairs, strict=True))
    ]
