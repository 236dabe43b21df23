"""Mean and covariance of features, and the Fréchet distance between two of them, for any number of images.

Dowson & Landau, "The Fréchet distance between multivariate normal distributions" (1982); Heusel et al.,
"GANs Trained by a Two Time-Scale Update Rule…" (2017), who call it FID with Inception features:

    d = |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁ Σ₂)^½

With Σᵢ = Fᵢᵀ Fᵢ, where Fᵢ has as many rows as there are images (or dimensions, if fewer), the non-zero
eigenvalues of Σ₁ Σ₂ are the squared singular values of F₁ F₂ᵀ. So tr (Σ₁ Σ₂)^½ = ‖F₁ F₂ᵀ‖ (nuclear norm):
96 images with 1280 features need the singular values of a 96-row matrix, not the square root of a 1280² one,
and nothing is lost to a square root of eigenvalues that rounding made negative.

The influence of image i, for a fixed reference, follows by differentiating in the images' weights. With
(X − μ₁) F₂ᵀ / √(n − 1) = U S Vᵀ, the centred images seen through the reference,

    φᵢ = 2 (μ₁ − μ₂)·(xᵢ − μ₁) + |xᵢ − μ₁|² n / (n − 1) − n (U S Uᵀ)ᵢᵢ   minus its mean

The distance is biased upward by about C/N, with C depending on the model (Chong & Forsyth, "Effectively
Unbiased FID…", 2020): compare only at equal N, against the same reference.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.metrics.intervals import Estimate, Floats


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a set of features.

    Attributes:
        mean: (d,) float64.
        factor: (k, d) float64 with factorᵀ · factor = covariance (normalised by n − 1).
        n: Images behind it.
    """

    mean: Tensor
    factor: Tensor
    n: int

    @property
    def covariance(self) -> Tensor:
        """(d, d) float64."""
        return self.factor.T @ self.factor


def centre(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (d,) of (n, d) features and what each deviates from it (n, d), in float64.

    Raises:
        RaysenseError: If there are fewer than two images or a feature is not finite.
    """
    if features.ndim != 2 or len(features) < 2:
        raise RaysenseError(
            f"`features` must be (n ≥ 2, d), but got {tuple(features.shape)}; sample more images."
        )
    x = features.double()
    if not bool(torch.isfinite(x).all()):
        raise RaysenseError("`features` holds NaN or infinity; ask `why_collapsed` before measuring.")
    mean = x.mean(dim=0)
    return mean, x - mean


def statistics(features: Tensor) -> Gaussian:
    """Mean and covariance factor of (n, d) features.

    Raises:
        RaysenseError: See `centre`.
    """
    mean, centred = centre(features)
    n, d = centred.shape
    factor = centred / (n - 1) ** 0.5
    if n > d:
        # Of the same Gram matrix, R of the QR decomposition is the factor with the fewest rows.
        factor = torch.linalg.qr(factor, mode="r").R
    return Gaussian(mean, factor, n)


def distance(a: Gaussian, b: Gaussian) -> float:
    """Fréchet distance between two Gaussians; never below zero but for rounding.

    Raises:
        RaysenseError: If they do not have the same number of features.
    """
    shift = gap(a.mean, b.mean).square().sum()
    spread = a.factor.square().sum() + b.factor.square().sum()
    overlap = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    return float(shift + spread - 2 * overlap)


def gap(a: Tensor, b: Tensor) -> Tensor:
    """Difference of two means (d,), if they can be compared."""
    if a.shape != b.shape:
        raise RaysenseError(f"{len(a)} and {len(b)} features cannot be compared; use one extractor for both.")
    return a - b


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Fréchet distance between two sets of features, (n, d) and (m, d)."""
    return distance(statistics(features_a), statistics(features_b))


def estimate(features: Tensor, reference: Gaussian, reference_features: Tensor | None = None) -> Estimate:
    """Fréchet distance of (n, d) features to a reference, and each image's influence on it.

    Args:
        features: (n, d).
        reference: Mean and covariance of the reference.
        reference_features: (m, d), what `reference` was made of, for the influence of its images; None where they
            are not known, and then the reference counts as fixed.

    Raises:
        RaysenseError: See `centre` and `distance`.
    """
    value, influence = _moves(features, reference)
    theirs = None if reference_features is None else _moves(reference_features, statistics(features))[1]
    return Estimate(value, influence, reference=theirs)


def _moves(features: Tensor, reference: Gaussian) -> tuple[float, Floats]:
    """The distance, and what each image of (n, d) features moves it by."""
    mean, centred = centre(features)
    n = len(centred)
    shift, sizes = gap(mean, reference.mean), centred.square().sum(dim=1)
    u, s, _ = torch.linalg.svd(centred @ reference.factor.T / (n - 1) ** 0.5, full_matrices=False)
    value = shift.square().sum() + sizes.sum() / (n - 1) + reference.factor.square().sum() - 2 * s.sum()
    influence = 2 * centred @ shift + sizes * n / (n - 1) - n * u.square() @ s
    return float(value), (influence - influence.mean()).numpy()


def from_moments(mean: npt.ArrayLike, covariance: npt.ArrayLike, n: int) -> Gaussian:
    """The Gaussian of a stored mean (d,) and covariance (d, d), e.g. published reference statistics.

    Raises:
        RaysenseError: If the shapes disagree or the covariance is not one.
    """
    mu = torch.from_numpy(np.array(mean, dtype=np.float64))
    sigma = torch.from_numpy(np.array(covariance, dtype=np.float64))
    if mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
        raise RaysenseError(
            f"mean {tuple(mu.shape)} and covariance {tuple(sigma.shape)} do not belong together."
        )
    if not bool(torch.isfinite(mu).all() and torch.isfinite(sigma).all()):
        raise RaysenseError("the stored mean or covariance is not finite; compute the statistics again.")
    values, vectors = torch.linalg.eigh((sigma + sigma.T) / 2)
    top = float(values[-1])
    if not bool(torch.isfinite(values).all()) or float(values[0]) < -1e-6 * top:
        raise RaysenseError(
            "the stored covariance has negative or undefined variances; compute the statistics again."
        )
    # Rounding turns the zero eigenvalues of a rank-deficient covariance into noise of either sign.
    kept = values > 1e-14 * top
    factor = values[kept].sqrt()[:, None] * vectors[:, kept].T
    return Gaussian(mu, factor, n)


def save(gaussian: Gaussian, path: Path, extractor: str) -> None:
    """Write statistics as .npz with `mu` and `sigma`, as other FID tools do, plus `n` and `extractor`."""
    np.savez(
        path,
        mu=gaussian.mean.numpy(),
        sigma=gaussian.covariance.numpy(),
        n=gaussian.n,
        extractor=np.array(extractor),
    )


def load(path: Path, extractor: str) -> Gaussian:
    """Read statistics written by `save` or by another FID tool (`mu`, `sigma`).

    Args:
        path: An .npz file.
        extractor: Whose features are to be compared; must agree with the file where the file says.

    Returns:
        The statistics; n is 0 when the file does not tell.

    Raises:
        RaysenseError: If the file is missing, no statistics, or another extractor's.
    """
    try:
        with zipfile.ZipFile(
            path
        ) as archive:  # numpy may stop before the end, where the checksum is compared
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"`{damaged}` does not match its checksum")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        n = int(arrays.get("n", 0))
        numbers = {name: np.array(arrays[name], dtype=np.float64) for name in {"mu", "sigma"} & arrays.keys()}
    except Exception as error:  # zipfile, zlib and numpy raise a dozen types for damage
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RaysenseError(
            f"reference statistics {path}: cannot be read ({reason}); give an .npz file."
        ) from error
    if not {"mu", "sigma"} <= arrays.keys():
        raise RaysenseError(f"reference statistics {path}: has {sorted(arrays)}, needs `mu` and `sigma`.")
    written_for = str(arrays["extractor"]) if "extractor" in arrays else extractor
    if written_for != extractor:
        raise RaysenseError(
            f"reference statistics {path}: made with {written_for}, but the study measures with {extractor}; "
            "make them again or name that extractor."
        )
    try:
        return from_moments(numbers["mu"], numbers["sigma"], n)
    except RaysenseError as error:
        raise RaysenseError(f"reference statistics {path}: {error}") from error
