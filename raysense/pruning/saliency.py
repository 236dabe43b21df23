"""How much each weight matters: one function per method.

The contract: a method takes a weight and the `LayerStats` of its layer, and returns one score a weight (float32,
float16 or bfloat16), in the weight's shape, all finite; the weights with the lowest scores leave first. Equal scores
are ordered by position. The order of a layer's scores is all that counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.names import UPDATING
from raysense.pruning.layers import all_finite
from raysense.registry import DOTTED, declaration_of, find


@dataclass(frozen=True)
class LayerStats:
    """What a saliency method may use beside the weight.

    Attributes:
        address: The layer's address.
        kind: The layer's kind, see `layers.KINDS`.
        inputs: Mean square of each input that a weight is multiplied with, float64 (groups, columns), see
            `statistics.InputMoments`; None if not collected.
        gradients: Mean square of the gradient of each weight, float32, in the weight's shape, or None.
        seed: The study's seed.
    """

    address: str
    kind: str
    inputs: Tensor | None = None
    gradients: Tensor | None = None
    seed: int = 0


Score = Callable[[Tensor, LayerStats], Tensor]


@dataclass(frozen=True)
class Method:
    """A saliency method.

    Attributes:
        name: What a study calls it.
        score: See the contract of this module.
        needs: The statistics it needs: any of ``inputs`` and ``gradients``.
        kinds: The kinds of layers it can score, see `layers.KINDS`; None for all.
    """

    name: str
    score: Score
    needs: frozenset[str] = frozenset()
    kinds: frozenset[str] | None = None


def magnitude(weight: Tensor, stats: LayerStats | None = None) -> Tensor:
    """|w|, in the weight's own type: scores of 16 bits are ranked some four times as fast."""
    return weight.detach().abs()


def random(weight: Tensor, stats: LayerStats) -> Tensor:
    """Uniform noise from the study's seed and the layer's address: the control."""
    digest = hashlib.sha256(f"{stats.seed}/{stats.address}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(weight.shape, generator=generator).to(weight.device)


def wanda(weight: Tensor, stats: LayerStats) -> Tensor:
    """|w|·‖x‖₂, ranked within each output row, so that every row loses the same share.

    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (ICLR 2024).
    """
    scores = output_rows(wanda_tensor(weight, stats), stats.kind)
    ranks = scores.argsort(dim=1, stable=True).argsort(dim=1)
    return from_output_rows(ranks.float(), weight.shape, stats.kind)


def wanda_tensor(weight: Tensor, stats: LayerStats) -> Tensor:
    """|w|·‖x‖₂, ranked over the whole layer."""
    inputs = _require(stats.inputs, "inputs", stats)
    rows = output_rows(weight.detach().float().abs(), stats.kind)
    groups = inputs.numel() // rows.shape[1]
    norms = (
        inputs.to(rows.device).sqrt().reshape(groups, -1).repeat_interleave(rows.shape[0] // groups, dim=0)
    )
    return from_output_rows(rows * norms, weight.shape, stats.kind)


def taylor(weight: Tensor, stats: LayerStats) -> Tensor:
    """w²·g²: the squared first-order change of the loss when the weight leaves; g² is a mean.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning" (CVPR 2019), eq. 8.
    """
    gradients = _require(stats.gradients, "gradients", stats)
    return weight.detach().float().square() * gradients.to(weight.device)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("magnitude", magnitude),
        Method("random", random),
        Method("wanda", wanda, frozenset({"inputs"})),
        Method("wanda_tensor", wanda_tensor, frozenset({"inputs"})),
        Method("taylor", taylor, frozenset({"gradients"})),
    )
}


def find_method(name: str) -> Method:
    """The method of this name, or the one at a dotted path.

    A dotted path ``package.module.function`` leads to a `Method`, or to a function with the contract of this
    module; its decorator (`raysense.saliency`) says which statistics it needs and which layers it can score.

    Raises:
        RaysenseError: No such method, module or attribute.
    """
    if name in METHODS:
        return METHODS[name]
    if not DOTTED.fullmatch(name):
        raise RaysenseError(
            f"saliency: {name!r} is unknown; choose from {', '.join((*METHODS, *UPDATING))}, "
            "or give a dotted path"
        )
    target = find(name, "saliency", may_be=Method)
    return target if isinstance(target, Method) else own_method(name, target)


def own_method(name: str, score: Score) -> Method:
    """A function of the user's own as a method, with what its decorator says.

    Raises:
        RaysenseError: Its decorator says that it updates weights, which the study does not.
    """
    said = declaration_of(score)
    if said is None or said.kind != "saliency":
        return Method(name, score)
    if said.facts["updates_weights"]:
        raise RaysenseError(
            f"saliency: {name!r} updates the weights that stay, which its decorator must say as a plain `True`; or set "
            "`prune.updates_weights: true`"
        )
    kinds = said.facts["kinds"]
    return Method(name, score, frozenset(said.facts["needs"]), None if kinds is None else frozenset(kinds))


def score_layer(method: Method, weight: Tensor, stats: LayerStats) -> Tensor:
    """The method's scores, held to the contract; what is zero already is put first.

    Raises:
        RaysenseError: Weights or scores that are not finite, scores of another shape, or missing statistics.
    """
    if not all_finite(weight):
        raise RaysenseError(
            f"{stats.address}: its weights hold NaN or infinity; mend the checkpoint before pruning"
        )
    if method.kinds is not None and stats.kind not in method.kinds:
        raise RaysenseError(
            f"saliency: {method.name} cannot score {stats.address}, which is {stats.kind}; it handles "
            f"{', '.join(sorted(method.kinds))}: set `prune.kinds` to these, or choose another method"
        )
    scores = method.score(weight, stats)
    if scores.shape != weight.shape or not all_finite(scores):
        raise RaysenseError(
            f"saliency: {method.name} must give a finite score for each of {tuple(weight.shape)} weights of "
            f"{stats.address}, but gave {int(torch.isfinite(scores).sum())} in shape {tuple(scores.shape)}"
        )
    if scores.dtype not in (torch.float16, torch.bfloat16):
        scores = scores.float()
    return scores.masked_fill(weight == 0, -torch.inf)


def output_rows(weight: Tensor, kind: str) -> Tensor:
    """The weight as a matrix with one row per output channel, shape (out, in·kernel)."""
    return weight.t() if kind == "transformers_conv1d" else weight.flatten(1)


def from_output_rows(rows: Tensor, shape: torch.Size, kind: str) -> Tensor:
    """The inverse of `output_rows`."""
    return rows.t() if kind == "transformers_conv1d" else rows.reshape(shape)


def _require(statistic: Tensor | None, name: str, stats: LayerStats) -> Tensor:
    if statistic is None:
        raise RaysenseError(
            f"saliency: {name} of {stats.address} were not collected; run the calibration first"
        )
    return statistic
