"""The maps that the self-teacher receives, out of whatever a backbone and neck hand out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from frskd_plugin.core.blocks import max_pool_to, spatial_size


def flat_maps(feats: Any) -> list[Tensor]:
    """The feature maps [B, C_i, H_i, W_i] in a tensor or in nested lists and tuples, in order of appearance.

    Class tokens and other tensors that are no maps are left out, and so is a map that was handed out before.

    Raises:
        ValueError: there is no map.

    >>> import torch
    >>> tokens, map_ = torch.rand(2, 8), torch.rand(2, 8, 4, 4)
    >>> [tuple(feat.shape) for feat in flat_maps([(map_, tokens), (map_ + 1, tokens)])]
    [(2, 8, 4, 4), (2, 8, 4, 4)]
    """
    maps: list[Tensor] = []
    for tensor in _tensors(feats):
        if tensor.ndim == 4 and not any(tensor is other for other in maps):
            maps.append(tensor)
    if not maps:
        shapes = [list(tensor.shape) for tensor in _tensors(feats)]
        raise ValueError(
            f"FRSKD distils feature maps [B, C, H, W], and the backbone (or neck) hands out none: got "
            f"{type(feats).__name__} with tensors of shapes {shapes}. Let it hand out maps."
        )
    return maps


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (list, tuple)):
        for item in nested:
            yield from _tensors(item)


def select_maps(
    maps: Sequence[Tensor], feat_indices: Sequence[int] | None = None, extra_levels: int = 0
) -> list[Tensor]:
    """The self-teacher's levels, highest resolution first.

    Args:
        maps: the student's maps [B, C_i, H_i, W_i], in any order.
        feat_indices: which of them, in which order; None takes all as they come.
        extra_levels: levels that are made of the last one, each the 3x3 max-pooling with stride 2 of the one before (as
            EfficientDet makes P6 and P7), for a backbone that hands out a single map.

    Raises:
        ValueError: there is no map of such an index.

    >>> import torch
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


def level_of(in_index: int, num_maps: int, feat_indices: Sequence[int] | None = None) -> int:
    """The self-teacher's level that holds the student's map ``in_index``.

    A negative index counts from the end of the student's maps, as in mmseg. With ``feat_indices`` these are as many as
    it names, or as its greatest index asks for.

    Raises:
        ValueError: the self-teacher does not receive that map.

    >>> level_of(-1, 3), level_of(0, 3, (2, 1, 0)), level_of(-1, 3, (0, 2, 1))
    (2, 2, 1)
    """
    indices = list(range(num_maps)) if feat_indices is None else list(feat_indices)
    count = max(len(indices), max(indices) + 1)
    index = in_index + count if in_index < 0 else in_index
    if index not in indices:
        raise ValueError(
            f"`in_index` must be a level in 0..{count - 1} that the self-teacher receives (indices {indices}), got "
            f"{in_index}. Name it in `feat_indices`, with its channels in the neck's `in_channels`, or give the "
            "self-teacher a `head` that reads another."
        )
    return indices.index(index)
