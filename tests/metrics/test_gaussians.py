from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from raysense.errors import RaysenseError
from raysense.metrics import gaussians
from raysense.metrics.features import TorchFidelityFeatures, as_bytes
from raysense.metrics.intervals import Interval, influence_rise, jackknife

from .conftest import paint


def sample(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(1, 0.1, d, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * spread * scale + shift


def rise(
    pruned: Tensor, dense: Tensor, reference: gaussians.Gaussian, prompts: list[int] | None = None
) -> Interval:
    return influence_rise(
        gaussians.estimate(pruned, reference), gaussians.estimate(dense, reference), prompts
    )


def fidelity(a: Tensor, b: Tensor) -> float:
    one, two = fid_features_to_statistics(a), fid_features_to_statistics(b)
    return float(fid_statistics_to_metric(one, two, False)["frechet_inception_distance"])


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 24), (60, 200, 24), (20, 30, 24), (12, 300, 24)])
def test_equals_torch_fidelity(n: int, m: int, d: int) -> None:
    a, b = sample(n, d, 0), sample(m, d, 1, 1.3, 0.2)
    assert gaussians.frechet_distance(a, b) == pytest.approx(fidelity(a, b), rel=1e-5)


class Pooled(FeatureExtractorBase):  # type: ignore[misc]
    """48 features that are cheap: the image shrunk to 4 × 4."""

    def __init__(self, name: str, features_list: list[str], **_: object) -> None:
        super().__init__(name, features_list)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.nn.functional.adaptive_avg_pool2d(x.float(), 4).flatten(1),)

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        return ("pooled",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "pooled"

    @staticmethod
    def can_be_compiled() -> bool:
        return False


class Images(torch.utils.data.Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.pixels = as_bytes(images)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]


def test_equals_torch_fidelity_from_the_images_on() -> None:
    torch_fidelity.register_feature_extractor("pooled-by-a-test", Pooled)
    a, b = paint(80, seed=1), paint(90, seed=2) * 0.9
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(a),
        input2=Images(b),
        fid=True,
        feature_extractor="pooled-by-a-test",
        cuda=False,
        verbose=False,
        save_cpu_ram=True,
        cache=False,
    )
    features = TorchFidelityFeatures("pooled-by-a-test")
    ours = gaussians.frechet_distance(features.images(a), features.images(b))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)


def test_of_two_points_in_one_dimension() -> None:
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [7.0]])
    # Means 1 and 4; standard deviations √2 and √18.
    assert gaussians.frechet_distance(a, b) == pytest.approx(9 + (18**0.5 - 2**0.5) ** 2)


@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_is_a_distance(n: int, d: int, seed: int) -> None:
    a, b = sample(n, d, seed), sample(n + 3, d, seed + 1, 1.5, 0.3)
    there, back = gaussians.frechet_distance(a, b), gaussians.frechet_distance(b, a)
    assert there == pytest.approx(back, rel=1e-9, abs=1e-9)
    assert there >= -1e-9
    assert gaussians.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@given(st.integers(3, 30), st.integers(0, 10**6), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_follows_rotation_shift_and_scale(n: int, seed: int, scale: float) -> None:
    a, b = sample(n, 8, seed), sample(20, 8, seed + 1, 1.5, 0.3)
    rotation = torch.linalg.qr(sample(8, 8, seed + 2)).Q
    moved = gaussians.frechet_distance(scale * a @ rotation + 5, scale * b @ rotation + 5)
    assert moved == pytest.approx(scale**2 * gaussians.frechet_distance(a, b), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize(("n", "m"), [(40, 100), (15, 100), (100, 15), (15, 12)])
def test_influence_is_the_derivative_in_the_weights(n: int, m: int) -> None:
    d = 20
    x, reference = sample(n, d, 3, 1.2, 0.1), gaussians.statistics(sample(m, d, 4))

    def weighted(weights: Tensor) -> float:
        mean = weights @ x
        factor = (weights * n / (n - 1)).sqrt()[:, None] * (x - mean)
        return gaussians.distance(gaussians.Gaussian(mean, factor, n), reference)

    uniform, step = torch.full((n,), 1 / n, dtype=torch.float64), 1e-6
    influence = gaussians.estimate(x, reference).influence
    for i in range(0, n, 5):
        towards = torch.zeros(n, dtype=torch.float64)
        towards[i] = 1
        slope = (
            weighted(uniform + step * (towards - uniform)) - weighted(uniform - step * (towards - uniform))
        ) / (2 * step)
        assert influence[i] == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_interval_agrees_with_leaving_out() -> None:
    pruned, dense = sample(64, 40, 5, 1.2, 0.1), sample(64, 40, 6)
    reference = gaussians.statistics(sample(200, 40, 7))
    prompts = [index // 2 for index in range(64)]

    def value_of(kept: np.ndarray) -> float:
        return gaussians.distance(gaussians.statistics(pruned[kept]), reference) - gaussians.distance(
            gaussians.statistics(dense[kept]), reference
        )

    quick, slow = rise(pruned, dense, reference, prompts), jackknife(value_of, prompts)
    assert quick.value == pytest.approx(slow.value, rel=1e-9)
    assert quick.ci_high - quick.ci_low == pytest.approx(slow.ci_high - slow.ci_low, rel=0.2)


def test_rise_of_a_pipeline_over_itself_is_exactly_zero() -> None:
    dense, reference = sample(30, 40, 8), gaussians.statistics(sample(50, 40, 9))
    found = rise(dense, dense, reference)
    assert (found.value, found.ci_low, found.ci_high) == (0, 0, 0)


def test_few_images_never_meet_a_square_matrix_of_the_features() -> None:
    dense, pruned = sample(48, 30_000, 10).float(), sample(48, 30_000, 11, 1.1).float()
    reference = gaussians.statistics(sample(64, 30_000, 12).float())
    found = rise(pruned, dense, reference)  # a 30,000² covariance would need 7 GB
    assert found.ci_low < found.value < found.ci_high


def test_statistics_survive_the_disk(tmp_path: Path) -> None:
    a, b = gaussians.statistics(sample(60, 16, 13)), gaussians.statistics(sample(10, 16, 14))
    for name, gaussian in {"many": a, "few": b}.items():
        gaussians.save(gaussian, tmp_path / f"{name}.npz", "net-1")
        back = gaussians.load(tmp_path / f"{name}.npz", "net-1")
        assert back.n == gaussian.n
        assert gaussians.distance(back, a) == pytest.approx(
            gaussians.distance(gaussian, a), rel=1e-7, abs=1e-7
        )


def test_statistics_of_other_tools_are_read(tmp_path: Path) -> None:
    x = sample(60, 16, 15).numpy()
    np.savez(tmp_path / "theirs.npz", mu=x.mean(axis=0), sigma=np.cov(x, rowvar=False))
    stored = gaussians.load(tmp_path / "theirs.npz", "inception-v3-compat")
    assert stored.n == 0
    assert gaussians.distance(stored, gaussians.statistics(torch.from_numpy(x))) == pytest.approx(0, abs=1e-7)


def test_statistics_of_another_extractor_are_refused(tmp_path: Path) -> None:
    gaussians.save(gaussians.statistics(sample(9, 4, 16)), tmp_path / "a.npz", "net-1")
    with pytest.raises(RaysenseError, match=r"a\.npz.*net-1.*net-2"):
        gaussians.load(tmp_path / "a.npz", "net-2")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda path: gaussians.load(path / "none.npz", "net"), "cannot be read"),
        (lambda path: gaussians.load(broken(path), "net"), "cannot be read"),
        (lambda path: gaussians.load(other(path), "net"), "needs `mu`"),
        (lambda path: gaussians.statistics(torch.zeros(1, 3)), "n ≥ 2"),
        (lambda path: gaussians.statistics(torch.full((3, 3), torch.nan)), "NaN"),
        (lambda path: gaussians.frechet_distance(torch.zeros(3, 3), torch.zeros(3, 4)), "3 and 4 features"),
        (lambda path: gaussians.from_moments(np.zeros(3), np.eye(4), 5), "do not belong together"),
        (lambda path: gaussians.from_moments(np.zeros(2), np.diag([1.0, -1.0]), 5), "negative"),
    ],
)
def test_errors_say_what_and_why(call: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(RaysenseError, match=words):
        call(tmp_path)  # type: ignore[operator]


def broken(folder: Path) -> Path:
    (folder / "broken.npz").write_bytes(b"not an archive")
    return folder / "broken.npz"


def other(folder: Path) -> Path:
    np.savez(folder / "other.npz", pixels=np.zeros(3))
    return folder / "other.npz"
