"""Two pruning methods: one scores weights by the activations they meet, one also updates the weights that stay."""

import torch
from torch import Tensor

import raysense as rs
from raysense.pruning.saliency import LayerStats, from_output_rows, output_rows


@rs.saliency("ria", needs=["inputs"], kinds=["linear"])
def ria(weight: Tensor, stats: LayerStats) -> Tensor:
    """Relative importance times the root of the input's norm.

    Source: Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models"
    (ICLR 2024).
    """
    assert stats.inputs is not None
    size = weight.detach().float().abs()
    rows, columns = size.sum(dim=1, keepdim=True), size.sum(dim=0, keepdim=True)
    norms = stats.inputs[0].to(size).sqrt()
    return (size / rows.clamp_min(1e-12) + size / columns.clamp_min(1e-12)) * norms.sqrt()


@rs.saliency("refit", updates_weights=True)
def refit(weight: Tensor, hessian: Tensor, zeros: int, kind: str) -> Tensor:
    """The smallest weights leave; the others are refitted to the layer's outputs by projected gradient descent.

    The loss is tr((W' - W) H (W' - W)ᵀ), the squared error of the layer's outputs on the calibration prompts.
    """
    dense = output_rows(weight, kind).float()
    groups, columns = hessian.shape[0], hessian.shape[-1]
    stays = torch.ones(dense.numel(), dtype=torch.bool)
    stays[output_rows(weight, kind).abs().flatten().argsort(stable=True)[:zeros]] = False
    kept = stays.view_as(dense).reshape(groups, -1, columns)
    start = dense.reshape(groups, -1, columns)
    moments = hessian.float()
    step = 1 / torch.linalg.matrix_norm(moments, 2).clamp_min(1e-12)[:, None, None]
    new = start * kept
    for _ in range(10):
        new = (new - step * ((new - start) @ moments)) * kept
    # A weight that stays is not zero: where it rounds to zero it keeps its old value.
    rounded = new.to(weight.dtype)
    rounded = torch.where(kept & (rounded == 0), start.to(weight.dtype), rounded)
    return from_output_rows(rounded.reshape(dense.shape), weight.shape, kind)
