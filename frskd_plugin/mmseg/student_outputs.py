"""Maps and logits that a student of mmseg hands out in training, for its self-teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmseg.utils import SampleList
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from frskd_plugin.core.blocks import max_pool_to, spatial_size
from frskd_plugin.core.dry_run import record_calls
from frskd_plugin.core.immediate_gradient import differentiate_immediately

# Heads that hand out several maps in training: which of them `predict` takes. Others take the first.
_PREDICTED = {"PIDHead": 1, "IterativeDecodeHead": -1}
# Heads that classify masks: where class scores and masks stand in their output.
_CLASSES_AND_MASKS = {"MaskFormerHead": (0, 1), "Mask2FormerHead": (0, 1), "SideAdapterCLIPHead": (1, 0)}
_LEAST_SCORE = 1e-6


def flat_maps(feats: Any) -> list[Tensor]:
    """Return the feature maps [B, C_i, H_i, W_i] in a tensor or in nested lists and tuples, in order of appearance.

    Class tokens and other tensors that are no maps are left out, and so is a map that was handed out before.

    Raises:
        ValueError: there is no map.
    """
    tensors = [leaf for leaf in tree_leaves(feats) if isinstance(leaf, Tensor)]
    maps: list[Tensor] = []
    for tensor in tensors:
        if tensor.ndim == 4 and not any(tensor is other for other in maps):
            maps.append(tensor)
    if not maps:
        raise ValueError(
            f"FRSKD distils feature maps [B, C, H, W], and the backbone (or neck) hands out none: got "
            f"{type(feats).__name__} with tensors of shapes {[list(tensor.shape) for tensor in tensors]}. Let it hand "
            "out maps."
        )
    return maps


def select_maps(
    maps: Sequence[Tensor], feat_indices: Sequence[int] | None = None, extra_levels: int = 0
) -> list[Tensor]:
    """Return the self-teacher's levels, highest resolution first: the maps [B, C_i, H_i, W_i] of these indices.

    ``extra_levels`` are made of the last one, each the 3x3 max-pooling with stride 2 of the one before (as EfficientDet
    makes P6 and P7), for a backbone that hands out a single map.

    >>> maps = [torch.rand(1, 8, s, s) for s in (4, 16, 8)]
    >>> [tuple(feat.shape[2:]) for feat in select_maps(maps, (1, 2, 0), extra_levels=1)]
    [(16, 16), (8, 8), (4, 4), (2, 2)]
    """
    indices = range(len(maps)) if feat_indices is None else feat_indices
    if max(indices) >= len(maps):
        raise ValueError(
            f"`feat_indices` names the map {max(indices)}, but the backbone (or neck) hands out {len(maps)}: expected "
            f"indices in 0..{len(maps) - 1}, got {list(indices)}."
        )
    levels = [maps[index] for index in indices]
    for _ in range(extra_levels):
        height, width = spatial_size(levels[-1])
        levels.append(max_pool_to(levels[-1], ((height + 1) // 2, (width + 1) // 2)))
    return levels


def first_of(table: dict[str, Any], head_type: type) -> Any:
    """Look a class, or the nearest of its bases, up in a table by name (its module may not be there); None without."""
    return next((table[base.__name__] for base in head_type.__mro__ if base.__name__ in table), None)


def loss_and_logits(
    head: nn.Module, inputs: Sequence[Any], data_samples: SampleList, train_cfg: Any, test_cfg: Any
) -> tuple[dict[str, Tensor], Tensor]:
    """Return a head's own training losses, and the logits [B, K, H, W] of the semantic map that it predicts.

    ``inputs`` are what its ``loss`` takes before the samples: the maps and, in a cascade, the last stage's output.
    """
    with record_calls(head, "forward") as outputs:
        losses = head.loss(*inputs, data_samples, train_cfg)
    logits = semantic_logits(head, outputs[0]) if outputs else None
    if logits is None:  # PointRend classifies points in training
        size = data_samples[0].gt_sem_seg.data.shape[-2:]
        logits = head.predict(*inputs, [{"img_shape": torch.Size(size)}] * len(data_samples), test_cfg)
    return losses, logits


def semantic_logits(head: nn.Module, output: Any) -> Tensor | None:
    """Return the logits [B, K, H, W] which ``head.predict`` makes of an output of ``head.forward``; None without."""
    where = first_of(_CLASSES_AND_MASKS, type(head))
    if where is not None:
        return _mask_class_logits(*(output[index][-1] for index in where))
    if not isinstance(output, Tensor):
        output = output[first_of(_PREDICTED, type(head)) or 0]
    is_map = isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] == head.out_channels
    return output if is_map else None


def as_logits(head: nn.Module, predicted: Tensor) -> Tensor:
    """Return what ``head.predict`` gave as logits [B, K, H, W]; of mask classification it is scores."""
    return predicted.clamp(min=_LEAST_SCORE).log() if first_of(_CLASSES_AND_MASKS, type(head)) else predicted


def _mask_class_logits(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Log of MaskFormer's class scores (Section 3.4): [B, Q, K + 1], last "no object"; [B, Q, H, W] -> [B, K, H, W]."""
    scores = torch.einsum("bqk,bqhw->bkhw", class_logits.softmax(-1)[..., :-1], mask_logits.sigmoid())
    return scores.clamp(min=_LEAST_SCORE).log()


@contextmanager
def early_losses(head: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Let ``head.loss_by_feat`` keep nothing but the gradient in the head's own logits, for a block.

    mmseg's losses keep an up-sampled map of logits for the backward pass. Values and gradients are the same without.
    Left as they are: outputs that are no single tensor, and losses with weights of their own to train.
    """
    losses = [module for name, module in head.named_modules() if name.startswith("loss")]
    if not wanted or any(parameter.requires_grad for loss in losses for parameter in loss.parameters()):
        yield
        return
    loss_by_feat = head.loss_by_feat

    def early(output: Any, *args: Any) -> dict[str, Tensor]:  # of samples and, in PointRend, of points
        if not isinstance(output, Tensor):
            return loss_by_feat(output, *args)
        return differentiate_immediately(lambda logits: loss_by_feat(logits, *args), output)

    vars(head)["loss_by_feat"] = early
    try:
        yield
    finally:
        del vars(head)["loss_by_feat"]
