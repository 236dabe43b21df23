"""A short calibration: how fast one evaluator of a study is on this machine, and how much memory it takes."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation.footprint import Footprint, stored_footprint
from raysense.records import EvaluationRequest
from raysense.store.disk import Disk
from raysense.study import Study, parse


@dataclass(frozen=True)
class Measured:
    """What the calibration found, means over its evaluators.

    Attributes:
        image: Seconds an image, from two sizes of evaluation.
        images: Seconds of an image evaluation beside its images.
        probe: Seconds of a probe evaluation.
        first_probe: Seconds that the first one takes longer.
        load: Seconds until an evaluator is loaded, imports included.
        memory: Peak bytes: of the GPU's memory if it has one, else of the process's.
        footprint: What an image takes of the GPU beside the weights, if there is one.
        device: The device's name.
        sampled: Images that the calibration made.
    """

    image: float
    images: float
    probe: float
    first_probe: float
    load: float
    memory: int
    footprint: Footprint | None
    device: str
    sampled: int


def measure_speed(study: Study, side_by_side: int = 1) -> Measured:
    """Measures on this machine.

    Args:
        study: The study; of its rungs only the batch matters: one evaluation of one batch, one of two.
        side_by_side: Evaluators that work at the same time, as they will in the study: they share the cores.

    Raises:
        RaysenseError: The pipeline or a judge cannot be had.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(side_by_side, mp_context=context) as pool:
        plain = study.model_dump(mode="json")
        found = list(pool.map(_measure, [plain] * side_by_side))
    return Measured(
        image=statistics.mean(one.image for one in found),
        images=statistics.mean(one.images for one in found),
        probe=statistics.mean(one.probe for one in found),
        first_probe=statistics.mean(one.first_probe for one in found),
        load=statistics.mean(one.load for one in found),
        memory=max(one.memory for one in found),
        footprint=found[0].footprint,
        device=found[0].device,
        sampled=sum(one.sampled for one in found),
    )


def _measure(plain: Mapping[str, Any]) -> Measured:
    began = time.perf_counter()
    import torch

    from raysense.evaluation.evaluator import Evaluator
    from raysense.evaluation.memory import most_allocated

    study = parse(plain)
    small = max(8, min(study.sampling.batch, study.rungs.preview.prompts))
    large = 2 * small
    rungs = {
        **plain["rungs"],
        "preview": {"prompts": small, "seeds": 1},
        "score": {"prompts": large, "seeds": 1},
        "validation": {"prompts": 8, "seeds": 1},
    }
    try:
        study = parse({**plain, "rungs": rungs})
        with tempfile.TemporaryDirectory() as folder:
            evaluator = Evaluator(study, folder, max(1, round(study.cluster.cpus_per_evaluator)))
            load = time.perf_counter() - began
            dense = Allocation()
            pruned = [evaluator.grid.uniform(share) for share in (0.2, 0.3, 0.4, 0.5)]
            seconds = {
                name: evaluator.evaluate(EvaluationRequest(allocation, rung)).seconds
                for name, allocation, rung in (
                    ("first probe", pruned[0], "probe"),
                    ("probe", pruned[1], "probe"),
                    ("probe again", pruned[2], "probe"),
                    ("dense small", dense, "preview"),
                    ("small", pruned[1], "preview"),
                    ("dense large", dense, "score"),
                    ("large", pruned[2], "score"),
                    ("small again", pruned[3], "preview"),
                )
            }
            footprint = stored_footprint(Disk(folder), study)
    except torch.OutOfMemoryError as error:
        raise RaysenseError(
            f"the study does not fit this device: {error}; shrink `sampling.batch`, or use a larger one"
        ) from error
    short = (seconds["small"] + seconds["small again"]) / 2
    image = max((seconds["large"] - short) / (large - small), 0.5 * seconds["large"] / large)
    probe = (seconds["probe"] + seconds["probe again"]) / 2
    cuda = evaluator.live.device == "cuda"
    return Measured(
        image=image,
        images=max(0.0, (seconds["large"] - large * image + short - small * image) / 2),
        probe=probe,
        first_probe=max(0.0, seconds["first probe"] - probe),
        load=load,
        memory=most_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        footprint=footprint,
        device=torch.cuda.get_device_name() if cuda else "CPU",
        sampled=small * 4 + large * 4,
    )
