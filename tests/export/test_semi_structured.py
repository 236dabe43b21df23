"""2:4 exports: what of them can be shown without a GPU. The kernels themselves have not run in any test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from benchmarks import semi_structured as benchmark
from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation.evaluator import Evaluator
from raysense.export.pack import RECORD, compress, load_compressed
from raysense.export.semi_structured import (
    Conversion,
    check_device,
    convert,
    follows,
    load_either,
    load_semi_structured,
    read_record,
    why_not,
)
from raysense.study import load


def linear(rows: int, columns: int, dtype: torch.dtype = torch.float16, pattern: bool = True) -> nn.Linear:
    layer = nn.Linear(columns, rows, dtype=dtype)
    if pattern:
        with torch.no_grad():
            layer.weight[:, ::2] = 0
    return layer


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (linear(32, 64), ""),
        (linear(32, 64, torch.bfloat16), ""),
        (linear(32, 64, torch.float32), "float32: the kernels take float16, bfloat16"),
        (linear(24, 64), "24 x 64 weights: the kernels take multiples of 16 x 16"),
        (linear(32, 40), "32 x 40 weights"),
        (linear(32, 64, pattern=False), "its zeros do not follow 2:4"),
        (nn.Conv2d(16, 16, 1).half(), "a Conv2d: only Linear layers"),
    ],
)
def test_a_layer_that_cannot_says_why(module: nn.Module, words: str) -> None:
    reason = why_not(module)
    assert words in reason
    assert bool(reason) == bool(words)


def test_two_zeros_in_every_four_along_the_inputs() -> None:
    assert follows(torch.tensor([[1.0, 0, 0, 1, 0, 0, 0, 1]]))
    assert not follows(torch.tensor([[1.0, 1, 1, 0, 0, 0, 0, 0]]))  # half are zeros, but not of every four
    assert not follows(torch.zeros(4, 6))


def test_a_machine_without_such_a_gpu_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RaysenseError, match="device: cpu; 2:4 kernels need a CUDA device"):
        load_semi_structured(tmp_path, device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(RaysenseError, match=r"compute capability 7\.5; 2:4 kernels need 8\.0"):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_device("cuda")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The bundled pipeline at 2:4, plain and compressed, as an export leaves it."""
    folder = tmp_path_factory.mktemp("export")
    study = load(overrides=["prune.pattern='2:4'"])
    evaluator = Evaluator(study, str(folder / "run"))
    evaluator.stand_at(Allocation(dict.fromkeys(evaluator.grid.addresses, 1)))
    plain, small = folder / "plain", folder / "small"
    evaluator.pipeline.save_pretrained(plain, safe_serialization=True)
    compress(plain, small)
    record = {"pattern": "2:4", "zeros_by_layer": {layer.address: 0 for layer in evaluator.inventory.layers}}
    for form in (plain, small):
        (form / RECORD).write_text(json.dumps(record))
    return plain, small


def test_compressed_it_comes_back_bit_for_bit_and_still_2_to_4(exported: tuple[Path, Path]) -> None:
    plain, small = exported
    one, two = DiffusionPipeline.from_pretrained(plain), load_compressed(small)
    addresses = read_record(plain)["zeros_by_layer"]
    seen = 0
    for address in addresses:
        component, path = address.split(":")
        a, b = (getattr(p, component).get_submodule(path) for p in (one, two))
        assert torch.equal(a.weight, b.weight)
        if isinstance(a, nn.Linear) and a.in_features % 4 == 0:
            assert follows(b.weight), address
            seen += 1
    assert seen > 40


def test_each_layer_is_converted_or_says_why(
    exported: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch's conversion replaced by a copy: what is chosen, and that the pipeline holds what came of it."""
    pipeline = load_either(exported[1], torch_dtype=torch.float16)
    given: list[Tensor] = []

    def copied(weight: Tensor) -> Tensor:
        given.append(weight)
        return weight.clone()

    monkeypatch.setattr("raysense.export.semi_structured.to_sparse_semi_structured", copied)
    addresses = list(read_record(exported[1])["zeros_by_layer"])
    found = convert(pipeline, addresses)
    assert len(given) == len(found.converted) > 40
    assert {*found.converted, *found.left} == set(addresses)
    assert any("Conv2d" in reason for reason in found.left.values())
    assert f"{len(found.converted)} of {len(addresses)} layers" in found.in_words()


def test_what_torch_refuses_is_left_with_its_words(exported: tuple[Path, Path]) -> None:
    """On a CPU torch itself refuses every one: the pipeline stays whole."""
    pipeline = load_either(exported[0], torch_dtype=torch.float16)
    found = convert(pipeline, list(read_record(exported[0])["zeros_by_layer"]))
    assert found.converted == ()
    assert any(reason.startswith("torch refuses: ") for reason in found.left.values())


def test_a_folder_that_is_no_such_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RaysenseError, match="holds no export of raysense"):
        read_record(tmp_path)
    (tmp_path / RECORD).write_text(json.dumps({"pattern": None, "zeros_by_layer": {}}))
    with pytest.raises(RaysenseError, match=r"without the pattern 2:4 \(prune.pattern: None\)"):
        read_record(tmp_path)


def test_the_benchmark_says_not_measured_without_a_gpu(
    exported: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["semi_structured", str(exported[0])])
    assert benchmark.main() == 0
    shown = capsys.readouterr().out
    assert shown.startswith("speed: not measured (device: cuda; 2:4 kernels need a CUDA device")
    monkeypatch.setattr("sys.argv", ["semi_structured", str(exported[0].parent)])
    assert benchmark.main() == 2


def test_side_by_side_takes_turns() -> None:
    calls: list[str] = []
    ratios = benchmark.side_by_side(lambda: calls.append("dense"), lambda: calls.append("sparse"), 3)
    assert len(ratios) == 3
    assert calls == ["dense", "sparse", "sparse", "dense", "dense", "sparse", "sparse", "dense"]


def test_a_conversion_in_words() -> None:
    text = Conversion(("a",), {"b": "too small", "c": "too small"}).in_words()
    assert text == "1 of 3 layers on 2:4 kernels\n  2 not: too small"
