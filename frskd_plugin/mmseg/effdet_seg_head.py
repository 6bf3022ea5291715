"""The head of the paper's segmentors (reference section 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn


class EffDetSegHead(BaseDecodeHead):
    """3x3 convolution, BN, ReLU, 3x3 convolution on one level of the pyramid, without dropout.

    Args:
        in_channels: channels of the level that ``in_index`` names.
        channels: channels between the two convolutions.
        norm_cfg: normalisation behind the first.
        dropout_ratio: of the classifier's input; the published head has none.
        **kwargs: of mmseg's ``BaseDecodeHead``, ``num_classes`` among them.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 256,
        *,
        norm_cfg: dict[str, Any] | None = None,
        dropout_ratio: float = 0.0,
        **kwargs: Any,
    ) -> None:
        norm_cfg = {"type": "BN", "requires_grad": True} if norm_cfg is None else norm_cfg
        super().__init__(in_channels, channels, norm_cfg=norm_cfg, dropout_ratio=dropout_ratio, **kwargs)
        self.conv = ConvModule(in_channels, channels, 3, padding=1, bias=True, norm_cfg=norm_cfg, act_cfg=self.act_cfg)
        self.conv_seg = nn.Conv2d(channels, self.out_channels, 3, padding=1)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps [B, C, H_i, W_i] -> logits [B, num_classes, H, W] at the size of the level read."""
        return self.cls_seg(self.conv(self._transform_inputs(inputs)))
