"""Re-solving a stored study for other bounds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from raysense.cluster import run_in_process
from raysense.errors import RaysenseError
from raysense.pruning.allocation import Allocation
from raysense.search.main import denominators, layer_rows
from raysense.search.resolve import in_words, resolve
from raysense.store.store import Store
from tests.search.test_plan import SIGNATURE, Landscape, made_up


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Landscape]:
    folder = tmp_path_factory.mktemp("stored")
    study, inventory, grid, story = made_up(rounds=1, offspring=6)
    landscape = Landscape(inventory, grid)
    store = Store.open(str(folder), create=True)
    store.begin(study.model_dump(mode="json"), signature=SIGNATURE, denominators=denominators(inventory))
    store.write_table("layers", layer_rows(inventory, grid, study.search.granularity))
    run_in_process(story, landscape, store, signature=SIGNATURE, lookahead=4)
    assert story.error is None
    return folder, landscape


def test_another_bound_in_seconds_near_what_measuring_would_say(stored: tuple[Path, Landscape]) -> None:
    folder, landscape = stored
    began = time.process_time()
    tight = resolve(str(folder), ["constraints.clip_score.max_drop=0.1"])
    wide = resolve(str(folder), ["constraints.clip_score.max_drop=0.3"])
    assert time.process_time() - began < 20
    assert tight["predicted"]["zeros"] < wide["predicted"]["zeros"]
    for answer, bound in ((tight, 0.1), (wide, 0.3)):
        # The made-up damage is additive, so that the prediction can be held against the truth.
        truth = landscape.damage(Allocation(answer["predicted"]["levels"]))
        assert 0.6 * bound < truth < 1.4 * bound
        assert answer["predicted"]["load_low"] <= 1
    assert "predicted, not measured" in in_words(tight, str(folder))


def test_a_lower_cap_is_kept(stored: tuple[Path, Landscape]) -> None:
    folder, landscape = stored
    levels = resolve(str(folder), ["prune.cap=0.5"])["predicted"]["levels"]
    grid = landscape.grid
    assert max(grid.zeros_at(a, level) / grid.weights(a) for a, level in levels.items()) <= 0.53


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sampling.steps=3", "`sampling.steps` changes what was measured"),
        ("prune.components=[unet, vae]", "'vae', which the study did not measure"),
        ("prune.cap=0.99", "at most the study's 0.95"),
        ("constraints.clip_score.max_drop=0.001", "the dense pipeline itself misses a bound"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    stored: tuple[Path, Landscape], override: str, words: str
) -> None:
    with pytest.raises(RaysenseError, match=words):
        resolve(str(stored[0]), [override])
