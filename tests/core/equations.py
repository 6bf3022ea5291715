"""Eq. 1 and 2 with the connections of Figure 2, written with plain tensor operations in float64, train mode."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bn(x: Tensor, norm) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    var = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


def conv1x1(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], x)


def conv_bn_relu(x: Tensor, block) -> Tensor:
    return bn(conv1x1(x, block.conv.weight), block.bn).clamp_min(0)


def depthwise3x3(x: Tensor, weight: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, channels, height + 2, width + 2)
    padded[:, :, 1:-1, 1:-1] = x
    return sum(
        padded[:, :, i : i + height, j : j + width] * weight[:, 0, i, j].view(1, -1, 1, 1)
        for i in range(3)
        for j in range(3)
    )


def interpolation_matrix(source: int, target: int) -> Tensor:
    """Rows of linear weights with half-pixel centres, clamped at the edges."""
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for i in range(target):
        position = max((i + 0.5) * source / target - 0.5, 0.0)
        low = min(math.floor(position), source - 1)
        high = min(low + 1, source - 1)
        matrix[i, low] += 1 - (position - low)
        matrix[i, high] += position - low
    return matrix


def bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    rows, columns = interpolation_matrix(x.shape[2], size[0]), interpolation_matrix(x.shape[3], size[1])
    return torch.einsum("ih,jw,bchw->bcij", rows, columns, x)


def max_pool(x: Tensor) -> Tensor:
    """3x3, stride 2, on even sizes: windows of rows 2i .. 2i+2."""
    height, width = x.shape[2:]
    rows = [x[:, :, 2 * i : 2 * i + 3].amax(2) for i in range(height // 2)]
    halved = torch.stack(rows, 2)
    return torch.stack([halved[..., 2 * j : 2 * j + 3].amax(3) for j in range(width // 2)], 3)


def fuse(weights: Tensor, maps: list[Tensor]) -> Tensor:
    positive = weights.clamp_min(0)
    return sum(w * x for w, x in zip(positive, maps, strict=True)) / (positive.sum() + 1e-6)


def node(module, maps: list[Tensor]) -> Tensor:
    (conv,) = module.convs
    return bn(
        conv1x1(depthwise3x3(fuse(module.fusion_weights, maps), conv.dw.weight), conv.pw.weight), conv.bn
    ).clamp_min(0)


def project(resize, x: Tensor) -> Tensor:
    return x if resize.project is None else conv_bn_relu(x, resize.project)


def refined_maps(layer, feats: list[Tensor]) -> list[Tensor]:
    """T_1 .. T_n of the paper, from the parameters of a `BiFPNcLayer`."""
    n = len(feats)
    lateral = [conv_bn_relu(feat, layer.laterals[str(i)]) for i, feat in enumerate(feats)]
    p = {n - 1: lateral[n - 1]}  # P_{n-1} takes L_n itself
    for i in reversed(range(n - 1)):
        up = project(layer.td_resize[str(i)], bilinear(p[i + 1], feats[i].shape[2:]))
        p[i] = node(layer.td_nodes[str(i)], [lateral[i], up])
    t = [p[0]]  # T_1 takes L_1 and P_2
    for i in range(1, n):
        down = project(layer.bu_resize[str(i)], max_pool(t[-1]))
        t.append(node(layer.bu_nodes[str(i)], [lateral[i], down] if i == n - 1 else [lateral[i], p[i], down]))
    return t
