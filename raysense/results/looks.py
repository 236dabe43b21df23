"""How often a study's held-out prompts had been looked at, as plain data and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysense.strategies.verdict import competitors, held_out_stretch
from raysense.study import Study


def how_tested(study: Study, looked_before: Sequence[str]) -> dict[str, Any]:
    """How finalists are tested: by how many strategies, at which look, with intervals how many times as wide.

    Args:
        study: The study, its earlier looks counted.
        looked_before: The runs that looked before it, as far as they are known.
    """
    return {
        "strategies": competitors(study),
        "stretch": round(held_out_stretch(study), 4),
        "look": study.search.earlier_looks + 1,
        "looked_before": list(looked_before),
    }


def look_in_words(tests: Mapping[str, Any]) -> str:
    """How often the held-out prompts were looked at, and what follows; an empty text for a first look.

    Args:
        tests: What `how_tested` gave; that of an older summary does not say which look it is.
    """
    if tests.get("look", 1) == 1:
        return ""
    runs = tests["looked_before"]
    more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    after = f", after {', '.join(f'`{run}`' for run in runs[:3])}{more}" if runs else ""
    return (
        f"Look {tests['look']} at these held-out prompts{after}: finalists must clear the bounds with intervals "
        f"{tests['stretch']:.2f} times as wide as the reported ones."
    )
