"""Whether something of a study may come from the model hub."""

from __future__ import annotations

import os

from raysense import names
from raysense.hub import pipeline_index, settle_hub
from raysense.study.schema import Study


def settle(study: Study) -> str:
    """`settle_hub`, if something of the study may come from the hub; else none is asked.

    Raises:
        RaysenseError: The study's pipeline is neither there nor in the hub's cache on this machine.
    """
    extractor, clip = study.metrics.features.extractor, study.metrics.clip.model
    from_hub = (
        study.pipeline not in names.BUNDLED_PIPELINES and not os.path.exists(study.pipeline),
        clip != names.BUNDLED and not clip.startswith(names.LOCAL),
        extractor.startswith(names.OPEN_CLIP) and names.LOCAL not in extractor,
    )
    if not any(from_hub):
        return ""
    said = settle_hub()
    if from_hub[0]:
        pipeline_index(study.pipeline, study.revision)
    return said
