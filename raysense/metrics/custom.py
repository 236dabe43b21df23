"""A metric of the user's own, named by dotted path.

It is a function of three things, row by row the same prompt and noise, and returns one number an image, higher
being better:

    def sharpness(images: Tensor, prompts: Sequence[str], dense: Tensor) -> Tensor: ...

Per-image numbers are all that raysense needs: means, paired drops and their intervals follow from
`statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.metrics.dotted import resolve
from raysense.metrics.intervals import Floats

CustomMetric = Callable[[Tensor, Sequence[str], Tensor], npt.ArrayLike]


def custom_metric(path: str, field: str = "metric") -> Callable[[Tensor, Sequence[str], Tensor], Floats]:
    """The metric at a dotted path, its answers checked.

    Args:
        path: ``package.module.function``.
        field: Which field of the study holds the path, for error messages.

    Returns:
        A function of images (n, 3, h, w) in [0, 1], their n prompts, and the dense pipeline's images of the
        same prompts and noise, that gives (n,) float64.

    Raises:
        RaysenseError: If the path names nothing callable; on a call, if the answer is not one finite number
            an image.
    """
    metric: CustomMetric = resolve(path, field)

    def measure(images: Tensor, prompts: Sequence[str], dense: Tensor) -> Floats:
        answer = metric(images, prompts, dense)
        values = np.asarray(answer.cpu() if isinstance(answer, Tensor) else answer, dtype=np.float64)
        if values.shape != (len(images),):
            raise RaysenseError(
                f"{field} {path!r}: must return one number an image, shape ({len(images)},), but gave {values.shape}."
            )
        if not np.isfinite(values).all():
            raise RaysenseError(f"{field} {path!r}: returned NaN or infinity for images that are neither.")
        return values

    return measure
