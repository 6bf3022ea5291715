"""Eq. 1 and 2 with the connections of Figure 2, written with torch's functions alone, train mode."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bn(x: Tensor, norm) -> Tensor:
    return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)


def conv_bn_relu(x: Tensor, block) -> Tensor:
    return bn(F.conv2d(x, block.conv.weight), block.bn).relu()


def bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def max_pool(x: Tensor) -> Tensor:
    """3x3, stride 2, on even sizes: windows of rows 2i .. 2i+2."""
    return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-float("inf")), 3, 2)


def node(module, maps: list[Tensor]) -> Tensor:
    (conv,) = module.convs
    positive = module.fusion_weights.relu()
    fused = sum(w * x for w, x in zip(positive, maps, strict=True)) / (positive.sum() + 1e-6)
    depthwise = F.conv2d(fused, conv.dw.weight, padding=1, groups=fused.shape[1])
    return bn(F.conv2d(depthwise, conv.pw.weight), conv.bn).relu()


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
