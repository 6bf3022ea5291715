"""Which of a timm model's feature maps are taken: the default choice, and the check of the user's own."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

NUM_PLAIN_MAPS = 4  # as many levels as the usual pyramid, taken from a model whose maps all have one stride


def default_out_indices(feature_info: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    """The last map of each distinct stride; of a model with one stride (plain ViT), four evenly spaced blocks.

    >>> default_out_indices([dict(reduction=2), dict(reduction=4), dict(reduction=4), dict(reduction=8)])
    (0, 2, 3)
    >>> default_out_indices([dict(reduction=16)] * 12)
    (2, 5, 8, 11)
    """
    return last_of_each([info["reduction"] for info in feature_info])


def last_of_each(strides: Sequence[Hashable]) -> tuple[int, ...]:
    """Index of the last map of each stride (or size); where all are alike, four evenly spaced ones."""
    if len(set(strides)) == 1 and len(strides) > 1:
        num_maps = min(NUM_PLAIN_MAPS, len(strides))
        return tuple((i + 1) * len(strides) // num_maps - 1 for i in range(num_maps))
    return tuple(i for i, stride in enumerate(strides) if stride not in strides[i + 1 :])


def choose_indices(
    maps: Sequence[tuple[int, int, int]], out_indices: int | Sequence[int] | None, model_name: str
) -> tuple[int, ...]:
    """Indices of the maps to take, highest resolution first.

    Args:
        maps: channels, height and width of every map that the model hands out.
        out_indices: the user's choice; None is the last map of each size.
        model_name: for the message.

    Raises:
        ValueError: see `check_out_indices`.
    """
    sizes = [(height, width) for _, height, width in maps]
    if out_indices is None:
        chosen = last_of_each(sizes)
    else:
        infos = [{"num_chs": c, "size": f"{h}x{w}"} for c, h, w in maps]
        chosen = check_out_indices(out_indices, infos, model_name)
    return tuple(sorted(chosen, key=lambda i: -sizes[i][0] * sizes[i][1]))


def check_out_indices(
    out_indices: int | Sequence[int], feature_info: Sequence[dict[str, Any]], model_name: str
) -> tuple[int, ...]:
    """Indices counted from the first map on; negative ones count from the last.

    Raises:
        ValueError: An index does not exist, or the indices are not in the order in which the network makes the maps.
    """
    num_maps = len(feature_info)
    given = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    if not given or any(not isinstance(i, int) or not -num_maps <= i < num_maps for i in given):
        maps = ", ".join(f"{i}: {f['num_chs']} channels {_place_of(f)}" for i, f in enumerate(feature_info))
        raise ValueError(
            f"out_indices={out_indices!r} does not fit {model_name!r}, which has {num_maps} feature maps ({maps}). "
            f"Choose from 0..{num_maps - 1}, or count from the last with -1..-{num_maps}."
        )
    indices = tuple(i % num_maps for i in given)
    if any(a >= b for a, b in zip(indices, indices[1:], strict=False)):
        raise ValueError(
            f"out_indices={out_indices!r} of {model_name!r} must name each map once, in ascending order (the order in "
            f"which the network makes them), e.g. {tuple(sorted(set(indices)))}."
        )
    return indices


def _place_of(info: dict[str, Any]) -> str:
    return f"of {info['size']}" if "size" in info else f"at stride {info['reduction']}"
