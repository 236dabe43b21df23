"""Every method from the command line to counted zeros, and what calibration keeps in the cache."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raysense.allocation import Allocation
from raysense.cli import main
from raysense.errors import RaysenseError
from raysense.evaluation.calibration import calibration_cost
from raysense.evaluation.evaluator import Evaluator
from raysense.evaluation.method_selection import METHOD_ERRORS, compared_allocations
from raysense.evaluation.solved_weights import SolvedWeights
from raysense.names import OUTLIERS
from raysense.pipelines.load import modules_of
from raysense.pruning.saliency import LayerStats, Method
from raysense.records import CALIBRATION, EvaluationRequest
from raysense.store.disk import Disk
from raysense.strategies.rules import outliers_of
from raysense.study import load

SMALL = [
    "prune.include=['text_encoder:*.layers.0.*', 'unet:down_blocks.1.attentions.*', 'unet:down_blocks.0.resnets.*']",
    "prune.calibration={prompts: 4, levels: 6, memory_gb: 0.008}",
    "rungs.probe={prompts: 2, timesteps: 1}",
    "rungs.preview.prompts=8",
    "rungs.score.prompts=8",
    "rungs.validation.prompts=8",
    "sampling.steps=2",
]
UPDATED_PATTERN = ["prune.pattern='2:4'", "prune.kinds=[linear]"]

METHODS: dict[str, list[str]] = {
    **{
        name: []
        for name in ("magnitude", "random", "wanda", "wanda_tensor", "taylor", "sparsegpt", "obs_diff")
    },
    f"{__name__}.largest_first": [],
    "magnitude 2:4": ["prune.pattern='2:4'"],
    "wanda 4:8": ["prune.pattern='4:8'"],
    "obs_diff 2:4": UPDATED_PATTERN,
}


def largest_first(weight: Tensor, stats: LayerStats) -> Tensor:
    """A method of one's own: the worst there is."""
    return -weight.detach().float().abs()


linear_only = Method("linear_only", largest_first, kinds=frozenset({"linear"}))


def attempt(cache: Path, *values: str, sparsity: float = 0.5, more: tuple[str, ...] = ()) -> int:
    settings = [part for value in (*SMALL, *values) for part in ("--set", value)]
    return main(["try", *settings, "--sparsity", str(sparsity), "--cache", str(cache), *more])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def errors() -> dict[str, str]:
    """Method -> its probe error, for the test that no two methods are one."""
    return {}


@pytest.mark.parametrize("method", METHODS)
def test_from_the_command_line_to_counted_zeros(
    method: str, cache: Path, errors: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    saliency = method.split()[0]
    assert attempt(cache, f"prune.saliency={saliency}", *METHODS[method]) == 0
    printed = capsys.readouterr().out
    line = re.search(
        r"^(.*), uniform: ([\d,]+) zeros asked, ([\d,]+) counted, steps of ([\d,]+)$", printed, re.MULTILINE
    )
    assert line is not None, printed
    asked, counted, step = (int(number.replace(",", "")) for number in line.groups()[1:])
    assert line[1] == method
    if ":" not in method:  # a pattern's layers lose all or nothing, so its totals are coarse
        assert 0 <= asked - counted < step
    sparsity = float(re.findall(r"^sparsity_selected +([\d.]+)$", printed, re.MULTILINE)[0])
    assert sparsity == pytest.approx(0.5, abs=0.02)
    assert "dense master of" in printed
    error = re.findall(r"^probe_error +([\d.e-]+)", printed, re.MULTILINE)[0]
    assert float(error) > 0
    assert error not in errors.values(), f"{method} prunes like another method: {errors}"
    errors[method] = error


def evaluator(folder: Path, *values: str) -> Evaluator:
    return Evaluator(load(overrides=[*SMALL, *values]), str(folder))


@pytest.mark.parametrize(
    ("values", "runs"),
    [
        (["prune.saliency=wanda", "search.strategies=[uniform, owl]"], 1),
        (["search.strategies=[owl, owl_block]"], 1),
        (["prune.saliency=taylor", "search.strategies=[owl]"], 3),  # calls are recorded, then replayed
        (["prune.saliency=obs_diff"], 2.25),  # two passes, and one image to count the calls of a run
    ],
    ids=["wanda and owl", "owl both ways", "taylor and owl", "obs_diff"],
)
def test_calibration_is_charged_once_and_known_to_all(values: list[str], runs: float, tmp_path: Path) -> None:
    first = evaluator(tmp_path, *values)
    promised = calibration_cost(first.study, first.inventory, first.grid, modules_of(first.pipeline))
    learnt = first.evaluate(EvaluationRequest(Allocation(), CALIBRATION))
    assert learnt.nfe == runs * 4 * first.study.sampling.steps * 2
    assert learnt.nfe <= promised
    assert learnt.method == first.study.prune.saliency
    assert first.evaluate(EvaluationRequest(Allocation(), CALIBRATION)).nfe == 0
    allocation = first.grid.uniform(0.5)
    here = first.evaluate(EvaluationRequest(allocation, "probe"))
    assert here.zeros == first.grid.zeros(allocation)
    if "owl" in str(values):
        rules = [rule for rule in OUTLIERS if rule in first.study.search.strategies]
        found = {rule: outliers_of(rule, learnt) for rule in rules}
        assert len(learnt.measures) == len(rules) * len(first.inventory.layers)
        for ratios in found.values():
            assert set(ratios) == {layer.address for layer in first.inventory.layers}
            assert 0 < max(ratios.values()) < 0.1
        if "owl_block" in found:
            blocks = {(layer.block, found["owl_block"][layer.address]) for layer in first.inventory.layers}
            assert len(blocks) == len(first.inventory.groups("block")), "one ratio a block"
            assert len(set(found["owl"].values())) > len({ratio for _, ratio in blocks})
    second = evaluator(tmp_path, *values)
    there = second.evaluate(EvaluationRequest(allocation, "probe"))
    assert there.measures["probe_error"].value == pytest.approx(here.measures["probe_error"].value, rel=1e-4)
    assert there.nfe == here.nfe, "the second evaluator finds everything in the cache"
    second.masker.restore()
    dense = evaluator(tmp_path)
    for layer in dense.inventory.layers:
        ours, theirs = (modules_of(e.pipeline)[layer.component] for e in (second, dense))
        assert torch.equal(ours.get_submodule(layer.path).weight, theirs.get_submodule(layer.path).weight)


def test_raised_damping_stands_in_the_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = ["prune.saliency=sparsegpt", "prune.calibration={prompts: 1, levels: 2, damping: 1.0e-12}"]
    assert attempt(tmp_path, *values) == 0
    assert re.search(
        r"^\d+ layers: text_encoder:.* damping 1e-12 -> 1e-\d+", capsys.readouterr().out, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("values", "more", "words"),
    [
        (["prune.saliency=magic"], (), ["unknown method 'magic'", "magnitude", "obs_diff"]),
        (
            ["prune.saliency=sparsegpt", "prune.pattern='2:4'"],
            (),
            ["kernel of 3×3", "prune.kinds"],
        ),
        (
            [f"prune.saliency={__name__}.linear_only"],
            (),
            ["linear_only cannot score unet:", "conv2d", "linear"],
        ),
        (
            ["prune.saliency=wanda", "prune.calibration.prompts=99999"],
            (),
            ["`prune.calibration.prompts` must be ≤"],
        ),
        (["prune.pattern='4:2'"], (), ["pattern must keep fewer than all"]),
        (
            ["prune.pattern='1:4'", "prune.max_layer_sparsity=0.5"],
            (),
            ["pattern 1:4 prunes more than max_layer_sparsity allows"],
        ),
        (["search.proportions={vae: 1}"], ("--strategy", "per_component"), ["'vae'", "text_encoder, unet"]),
        ([], ("--strategy", "solver"), ["'solver'", "owl"]),
        ([], ("--sparsity", "1.5"), ["`--sparsity` must be between 0 and 1"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_gives_one_error(
    values: list[str],
    more: tuple[str, ...],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert attempt(tmp_path, *values, more=more) == 2
    *warnings, printed = capsys.readouterr().err.splitlines()
    assert printed.startswith("raysense: error: ")
    assert all(line.startswith("raysense: warning: ") for line in warnings)
    for word in words:
        assert word in printed


@pytest.mark.parametrize("local", [True, False], ids=["mapped in place", "copied to the node first"])
def test_slices_come_back_as_they_were(local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    (tmp_path / "cache").mkdir()
    disk = Disk(str(tmp_path))
    disk.local = local
    slices = SolvedWeights(disk, {"unet:a": "abc", "unet:b": "def"})
    levels = {level: torch.randn(4, 6).bfloat16() for level in (1, 2)}
    assert not slices.has("unet:a")
    slices.put("unet:a", levels, "damping 0.01 -> 0.1")
    assert slices.has("unet:a")
    assert slices.note("unet:a") == "damping 0.01 -> 0.1"
    for level, weight in levels.items():
        assert torch.equal(slices.load("unet:a", level), weight)
    with pytest.raises(RaysenseError, match=r"slices: unet:b at level 1: .* is gone"):
        slices.load("unet:b", 1)


def test_damaged_slices_are_noticed(tmp_path: Path) -> None:
    slices = SolvedWeights(Disk(str(tmp_path)), {"unet:a": "abc"})
    slices.put("unet:a", {1: torch.ones(64)})
    file = tmp_path / "cache" / "abc.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RaysenseError, match=r"is damaged \(its content does not match its hash\)"):
        slices.load("unet:a", 1)
    file.write_bytes(content[:-10])
    assert not slices.has("unet:a")


def test_methods_compete_for_each_component(tmp_path: Path) -> None:
    names = ("random", "magnitude", "wanda")
    first = evaluator(tmp_path, f"prune.saliency=[{', '.join(names)}]")
    promised = calibration_cost(first.study, first.inventory, first.grid, modules_of(first.pipeline))
    held = first.evaluate(EvaluationRequest(Allocation(), CALIBRATION))
    assert held.method == " or ".join(names)  # nothing is pruned in this row
    assert 0 < held.nfe <= promised
    found = {
        tuple(name.removeprefix(METHOD_ERRORS).split("/")): measure.value
        for name, measure in held.measures.items()
        if name.startswith(METHOD_ERRORS)
    }
    assert {key[:2] for key in found} == {(c, m) for c in ("text_encoder", "unet") for m in names}

    # The same as one method alone measures, on the same component and at the same sparsity.
    alone = evaluator(tmp_path, "prune.saliency=wanda")
    for allocation in compared_allocations(first.grid, "unet"):
        error = alone.evaluate(EvaluationRequest(allocation, "probe")).measures["probe_error"].value
        assert error == pytest.approx(
            min((found[k] for k in found if k[:2] == ("unet", "wanda")), key=lambda e: abs(e - error)),
            rel=1e-4,
        )

    # Each component has its best, which is never the control, and every row says so.
    best = {
        component: min(
            names,
            key=lambda m: np.prod([e for (c, name, _), e in found.items() if (c, name) == (component, m)]),
        )
        for component in ("text_encoder", "unet")
    }
    assert "random" not in best.values()
    row = first.evaluate(EvaluationRequest(first.grid.uniform(0.5), "probe"))
    assert row.method == ", ".join(f"{component}: {method}" for component, method in best.items())
    assert row.zeros == first.grid.zeros(first.grid.uniform(0.5))

    # Another worker finds the outcome, and the same weights leave.
    second = evaluator(tmp_path, f"prune.saliency=[{', '.join(names)}]")
    assert second.evaluate(EvaluationRequest(first.grid.uniform(0.5), "probe")).measures[
        "probe_error"
    ].value == pytest.approx(row.measures["probe_error"].value, rel=1e-4)
    for layer in first.inventory.layers:
        ours, theirs = (modules_of(e.pipeline)[layer.component] for e in (first, second))
        assert torch.equal(
            ours.get_submodule(layer.path).weight == 0, theirs.get_submodule(layer.path).weight == 0
        )
    # Methods compared without being asked for: nothing is left behind.
    third = evaluator(tmp_path / "new", f"prune.saliency=[{', '.join(names)}]")
    dense = evaluator(tmp_path / "new")
    third.stand_at(third.grid.uniform(0.5))
    third.masker.restore()
    for layer in third.inventory.layers:
        ours, theirs = (modules_of(e.pipeline)[layer.component] for e in (third, dense))
        assert torch.equal(ours.get_submodule(layer.path).weight, theirs.get_submodule(layer.path).weight)


def test_a_method_that_updates_weights_does_not_compete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attempt(tmp_path, "prune.saliency=[magnitude, obs_diff]") == 2
    assert "obs_diff updates the weights that stay and cannot compete" in capsys.readouterr().err
    assert attempt(tmp_path, "prune.saliency=[wanda, wanda]") == 2
    assert "`prune.saliency` must list each entry once, not 'wanda' twice" in capsys.readouterr().err
