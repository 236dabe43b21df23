"""What no image follows from: a vision tower beside a language model, that model's head, a VAE's encoder.

Such weights can all be pruned without any effect, so they are neither prunable nor in a denominator. They are found on
a run of the pipeline without its weights (`raysense.pipelines.without_weights`), so every process finds the same ones.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from raysense.pipelines.adapter import takes_timestep
from raysense.pipelines.origin import Origin, pipeline_folder
from raysense.pipelines.without_weights import Foreseen, foresee
from raysense.study import Sampling, Study


def foreseen_for(study: Study) -> Foreseen:
    """What is known of a study's pipeline without its weights; found once a process."""
    origin = Origin.of(study)
    return _foreseen(origin, study.sampling.model_dump_json(), _stamp(origin))


@functools.lru_cache(maxsize=16)
def _foreseen(origin: Origin, sampling: str, stamp: tuple[object, ...]) -> Foreseen:
    return foresee(origin, Sampling.model_validate_json(sampling))


def _stamp(origin: Origin) -> tuple[object, ...]:
    """What changes when a pipeline's configuration on this machine does."""
    folder = Path((origin.is_file and origin.config) or pipeline_folder(origin.source))
    found = [(str(file), file.stat()) for file in sorted(folder.rglob("*.json"))] if folder.is_dir() else []
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)


def idle_in(modules: Mapping[str, nn.Module], ran: Collection[str]) -> frozenset[str]:
    """Addresses, ``component:path``, of the modules with weights of their own that never ran.

    Args:
        modules: Components.
        ran: The modules that were called; where there are none, nothing is known and nothing is idle.

    Returns:
        Language models' heads are among them, called or not: no image follows from what they say. Left out are modules
        whose weights others use without calling them, as attention of PyTorch's own does; and experts of which a
        sibling ran: which ones run is up to the input.
    """
    called = set(ran)
    if not called:
        return frozenset()
    heads = heads_of(modules)
    siblings = {_unnumbered(address) for address in called if "expert" in address}
    found = set(heads)
    for name, component in modules.items():
        inside = [path for path, part in component.named_modules() if isinstance(part, nn.MultiheadAttention)]
        for path, part in component.named_modules():
            address = f"{name}:{path}"
            has_own = next(part.parameters(recurse=False), None) is not None
            if not has_own or address in called or _unnumbered(address) in siblings:
                continue
            if any(f"{name}:{outer}" in called and path.startswith(f"{outer}.") for outer in inside):
                continue
            if not any(f"{name}:{path}.{inner}" in called for inner, _ in part.named_modules() if inner):
                found.add(address)
    return frozenset(found)


def heads_of(modules: Mapping[str, nn.Module]) -> frozenset[str]:
    """Addresses of the heads that turn a text encoder's last states into words, which nobody reads."""
    found = set()
    for name, component in modules.items():
        if isinstance(component, PreTrainedModel) and not takes_timestep(type(component)):
            head = component.get_output_embeddings()
            found |= {f"{name}:{path}" for path, part in component.named_modules() if part is head and path}
    return frozenset(found)


def _unnumbered(address: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", address)
