"""Mathematics and modules of FRSKD. Torch only: knows neither timm nor OpenMMLab."""

from frskd_plugin.core.bifpn import BiFPN
from frskd_plugin.core.blocks import fast_normalized_fusion
from frskd_plugin.core.feature_losses import (
    AttentionTransferLoss,
    HintLoss,
    OverhaulLoss,
    attention_map,
    attention_transfer_loss,
    overhaul_loss,
    overhaul_margin,
)
from frskd_plugin.core.frskd_loss import FRSKDLoss
from frskd_plugin.core.schedule import distill_factor, sigmoid_rampup
from frskd_plugin.core.self_teacher import SelfTeacher
from frskd_plugin.core.self_teacher_neck import SelfTeacherNeck
from frskd_plugin.core.soft_label import (
    BinarySoftLabelLoss,
    SoftLabelLoss,
    binary_soft_label_loss,
    resized_soft_label_loss,
    soft_label_loss,
)

__all__ = [
    "AttentionTransferLoss",
    "BiFPN",
    "BinarySoftLabelLoss",
    "FRSKDLoss",
    "HintLoss",
    "OverhaulLoss",
    "SelfTeacher",
    "SelfTeacherNeck",
    "SoftLabelLoss",
    "attention_map",
    "attention_transfer_loss",
    "binary_soft_label_loss",
    "distill_factor",
    "fast_normalized_fusion",
    "overhaul_loss",
    "overhaul_margin",
    "resized_soft_label_loss",
    "sigmoid_rampup",
    "soft_label_loss",
]
