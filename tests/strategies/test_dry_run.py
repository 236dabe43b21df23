"""The plan before the study: counts by hand, budgets, widths, pipelines of which only the configuration is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig

from raysense.cli import main
from raysense.evaluation.identity import inventory_and_grid
from raysense.pipelines.cost import assumed
from raysense.pipelines.load import empty_components, load_pipeline, modules_of
from raysense.pipelines.without_weights import Foreseen
from raysense.search.gpu_memory import fits, needs
from raysense.strategies.dry_run import Estimate, Speed, estimate
from raysense.study import Study, load, parse

SPEED = Speed(image=0.1, images=1.0, probe=0.5, load=10.0, first_probe=2.0, start=5.0)


def study(**changes: object) -> Study:
    plain = load().model_dump(mode="json")
    plain["search"] |= {"granularity": "block", "strategies": ["uniform"], "bisections": 3, "rounds": 0}
    plain["search"] |= changes.pop("search", {})  # type: ignore[operator]
    return parse({**plain, **changes})


def planned(study: Study, evaluators: int = 1) -> Estimate:
    inventory, grid = inventory_and_grid(study, empty_components(study.pipeline))
    return estimate(study, inventory, grid, SPEED, evaluators)


def test_counts_by_hand() -> None:
    found = planned(study())
    counted = {name: (stage.evaluations, stage.images) for name, stage in found.stages.items()}
    # Dense on three rungs, with two reference images a prompt of the largest of each set; three candidates on two
    # rungs, the second of which samples what the first has not; three finalists up to 47.5 % and three
    # beyond, of which the last is above one half. What has more than 128 images has
    # shards: 160 of each reference of the search, 160 and 320 held-out ones.
    assert counted == {
        "baseline": (3 + 2 + 2 + 3, (80 + 160) + 2 * (80 + 160)),
        "search": (6 + 3, 3 * 80 + 3 * 24),  # and three light candidates' previews at most, for the noise
        "validation": (6 + 6 * 2, 6 * 160),
    }
    assert found.cost == found.images * 12 * 2
    work = 18 * SPEED.images + found.images * SPEED.image
    assert found.busy == pytest.approx(work + SPEED.load)
    assert found.wall == pytest.approx(SPEED.start + found.busy + (18 + 7 + 12) * 0.05)


def test_curves_are_counted_and_more_evaluators_share_them() -> None:
    one, four = (planned(study(search={"strategies": ["uniform", "solver"]}), width) for width in (1, 4))
    groups = len(inventory_and_grid(study(), empty_components("bundled"))[0].groups("block"))
    assert groups < one.stages["sensitivity"].evaluations <= 7 * groups
    assert one.evaluations == four.evaluations
    assert four.wall < 0.75 * one.wall  # a bisection is one step after the other, whatever the width
    assert four.utilisation < one.utilisation
    assert one.price(3600.0) == pytest.approx(one.wall)


def test_parts_sample_the_same_images_and_keep_evaluators_busy() -> None:
    whole, parted = (planned(study(cluster={"images_per_shard": most}), 8) for most in (1000, 50))
    for name, stage in whole.stages.items():
        assert parted.stages[name].images == stage.images
        assert parted.stages[name].cost == stage.cost
        assert parted.stages[name].evaluations > stage.evaluations
    assert parted.wall < 0.5 * whole.wall


def test_the_budget_ends_it() -> None:
    whole = planned(study(search={"strategies": ["uniform", "lamp", "erk"]}))
    # Enough for the dense pipeline and the finalists, for which the main job keeps a reserve; not for all candidates.
    capped = planned(study(search={"strategies": ["uniform", "lamp", "erk"]}, budget={"max_nfe": 50_000}))
    assert capped.cost <= 50_000
    assert capped.stages["search"].evaluations < whole.stages["search"].evaluations


def test_an_empty_pipeline_has_the_loaded_ones_parameters() -> None:
    empty, loaded = empty_components("bundled"), modules_of(load_pipeline("bundled"))
    assert _sizes(empty) == _sizes(loaded)
    assert all(p.is_meta for module in empty.values() for p in module.parameters())


def _sizes(modules: dict[str, object]) -> dict[str, int]:
    return {
        name: sum({id(p): p.numel() for p in module.parameters()}.values())  # type: ignore[attr-defined]
        for name, module in modules.items()
    }


def test_a_full_size_pipeline_is_planned_from_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stable Diffusion 2's shapes; there are no weights in the folder."""
    shapes = UNet2DConditionModel(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=8, cross_attention_dim=8
    ).config
    sizes = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": (5, 10, 20, 20)}
    unet = {
        **{key: value for key, value in shapes.items() if key != "_use_default_values"},
        **sizes,
        "norm_num_groups": 32,
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    }
    text = CLIPTextConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, projection_dim=512
    )  # fmt: skip
    for name in ("unet", "text_encoder"):
        (tmp_path / name).mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(unet))
    text.save_pretrained(tmp_path / "text_encoder")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    paper = load(Path(__file__).parents[2] / "search/sd2_paper.yaml", [f"pipeline={tmp_path}"])
    empty = empty_components(paper.pipeline)
    inventory, _ = inventory_and_grid(paper, empty)
    assert inventory.n_components == 865_910_724 + 340_387_840
    assert inventory.n_selected == 301_219_840 + 289_406_976
    need = needs(paper, inventory, empty, Foreseen(assumed(paper.sampling), activations={"unet": 2**31}))
    assert sum(need.weights.values()) == 2 * inventory.n_pipeline
    assert (need.master, need.levels, need.learning) == (2 * inventory.n_selected, inventory.n_selected, 0)
    batches = {fit.offload: fit.batch for fit in fits(need, 24 * 2**30)}
    assert 0 < batches["none"] < batches["model"] < batches["sequential"]
    assert need.an_image == 2**30
    small = {fit.offload: fit for fit in fits(need, 4 * 2**30)}
    assert "in the host's memory" in small["none"].told
    assert not {fit.offload: fit.batch for fit in fits(need, 2 * 2**30)}["none"]
    arguments = ["--speed", "20", "--evaluators", "8", "--price", "1.5", "--gpu-memory", "24GiB"]
    assert main(["plan", "search/sd2_paper.yaml", "--set", f"pipeline={tmp_path}", *arguments]) == 0, (
        capsys.readouterr().err
    )
    told = " ".join(capsys.readouterr().out.split())
    assert (
        main(["plan", "search/sd2_paper.yaml", "--sweep", "--set", f"pipeline={tmp_path}", *arguments]) == 0
    )
    swept = capsys.readouterr().out
    assert "The reference: 10,000 photographs of COCO, some 1.6 GB in" in " ".join(swept.split())
    # The paper's 99 pruned configurations of 10,000 images; the preview's 512 of each are not counted as shards.
    (images,) = [line for line in swept.splitlines() if "sweep " in line and "│" in line]
    assert f"{99 * (10_000 - 512):,}" in images
    for words in (
        "sd2-paper",
        "GPU-hours",
        "wall time",
        "price",
        "offload: none (the study's): fits 24 GiB",
        "NFE",
    ):
        assert words in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--speed", "0"], "`--speed` must be > 0"),
        (
            ["--speed", "9", "--gpu-memory", "much"],
            "`--gpu-memory` must be a size above 0, such as 24GB",
        ),
        (["--speed", "9", "--evaluators", "0"], "`--evaluators` must be ≥ 1"),
        (["--speed", "9", "--set", "pipeline=/nowhere"], "`pipeline`"),
    ],
)
def test_bad_input(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    assert words in capsys.readouterr().err
