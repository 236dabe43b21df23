"""The committed rows of `benchmarks.methods` and `benchmarks.proxies`, and what the documents quote of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import methods, proxies
from benchmarks.beds import STUDIES, scopes_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("table", "page"),
    [
        (lambda: methods.tables(methods.COMMITTED), "methods.md"),
        (lambda: proxies.tables(proxies.committed()), "evaluation.md"),
    ],
)
def test_the_tables_that_are_quoted_follow_from_the_committed_rows(
    table: Callable[[], str], page: str
) -> None:
    text = (ROOT / "docs/explanation" / page).read_text(encoding="utf-8")
    for line in table().splitlines():
        assert line in text


@pytest.mark.parametrize("bed", STUDIES)
def test_the_committed_rows_are_whole(bed: str) -> None:
    rows = pd.read_parquet(methods.COMMITTED / f"{bed}.parquet")
    assert set(rows["bed"]) == {bed}
    assert set(rows["images"]) == {methods.FULL.prompts, methods.FULL.sweep_prompts}
    compared = rows[rows["rung"] == "validation"]
    cells = compared.groupby(["scope", "method"])["sparsity"].agg(tuple)
    assert set(cells) == {methods.FULL.sparsities}
    for _, scope in compared.groupby("scope"):
        worst = scope[scope["sparsity"] == methods.FULL.sparsities[-1]].sort_values("value").iloc[0]
        assert worst["method"] == "random"
    assert proxies.committed()[bed]["allocations"] == len(proxies.BANDS) * proxies.EACH


@pytest.mark.parametrize(
    ("bed", "expected"),
    [
        (
            "bundled",
            {
                "text encoders": ("text_encoder",),
                "denoiser, Linear": ("unet",),
                "denoiser, all kinds": ("unet",),
            },
        ),
        # One patch embedding is no scope.
        (
            "bundled-transformer",
            {"text encoders": ("text_encoder", "text_encoder_2"), "denoiser, Linear": ("transformer",)},
        ),
    ],
)
def test_the_scopes_of_a_bed_are_found_in_its_pipeline(
    bed: str, expected: dict[str, tuple[str, ...]]
) -> None:
    assert {scope.name: scope.components for scope in scopes_of(bed)} == expected
