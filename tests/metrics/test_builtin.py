"""A metric of raysense's own is one file: its name stands nowhere else, and what is said of it is complete."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from raysense.metrics.builtin import SPECS
from raysense.metrics.spec import Distance, MetricSpec, OfSet
from raysense.study import parse
from raysense.study.bounds import bound_on

PACKAGE = Path(__file__).parents[2] / "raysense"

ELSEWHERE = {
    ("names.py", "frechet"): "a section of older studies had its name",
    ("study/reading.py", "clip_score"): "stands in while the rest of a study is looked at",
    ("search/template.py", "clip_score"): "the bound that a new study begins with",
    ("cli/init.py", "clip_score"): "likewise",
    ("cli/resolve.py", "clip_score"): "an example in --help",
    ("cli/search.py", "clip_score"): "likewise",
    ("cli/plan.py", "kid"): "likewise",
    ("testing/strategies.py", "clip_score"): "the study that plug-ins are tried on",
    ("names.py", "layer_error"): "what a rung without images measures",
    ("names.py", "probe_error"): "likewise",
    ("names.py", "text_error"): "likewise",
    ("study/sweep.py", "clip_score"): "the loss that a sweep tells by default",
    ("study/sweep.py", "probe_error"): "likewise, where no images are sampled",
    ("study/sweep.py", "layer_error"): "likewise",
}
"""File and metric -> why it is named there."""


def names_in(path: Path) -> set[str]:
    """Metrics named by a file's texts, docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found: set[str] = set()
    prose = {
        id(child.value)
        for node in ast.walk(tree)
        if isinstance(node, documented)
        for child in node.body
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            words = set(re.findall(r"[a-z_]+", node.value))
            found |= {
                name
                for name in SPECS
                if {name, f"{name}_drop", f"{name}_rise"} & words and is_a_name(node.value, name)
            }
    return found


def is_a_name(text: str, name: str) -> bool:
    """Precision and recall are words, too: a name stands alone, or between dots and marks of code."""
    return "_" in name or name in ("kid", "cmmd", "ssim", "lpips", "frechet") or text.strip() == name


def test_a_name_stands_in_the_metrics_own_file_only() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in PACKAGE.rglob("*.py")
        for name in names_in(path)
        if path != PACKAGE / "metrics" / "builtin" / f"{name}.py"
    }
    assert found == set(ELSEWHERE)


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_what_is_said_of_a_metric_is_complete(spec: MetricSpec) -> None:
    assert spec.label
    assert spec.meaning
    if spec.kind == "probe":
        return
    assert spec.how is not None
    assert (spec.kind == "set") == isinstance(spec.how, Distance | OfSet)
    assert (spec.dense is None) == bool(spec.relative), "compared with the dense pipeline in one way"
    assert spec.relative in ("", "_drop" if spec.higher_is_better else "_rise")
    assert bool(spec.relative) == bool(spec.relative_unit)


@pytest.mark.parametrize("spec", [s for s in SPECS.values() if s.kind != "probe"], ids=lambda spec: spec.name)
def test_bounds_follow_from_what_is_said(spec: MetricSpec) -> None:
    side = "min" if spec.higher_is_better else "max"
    study = parse({"name": "s", "constraints": {spec.name: {side: 0.5}}})
    assert [(b.field, b.measure, b.is_upper) for b in study.constraints.bounds()] == [
        (f"constraints.{spec.name}.{side}", spec.name, side == "max")
    ]
    assert spec.name in study.measured()
    for limit in (spec.lowest, spec.highest):
        if limit is not None:
            with pytest.raises(ValidationError):
                bound_on(spec)(**{side: limit + (-1 if limit == spec.lowest else 1)})


def test_a_bound_that_is_not_set_is_no_part_of_a_study() -> None:
    study = parse({"name": "s", "constraints": {"kid": {"max": 0.5}}})
    assert set(study.identity()["constraints"]) == {"kid", "custom"}
