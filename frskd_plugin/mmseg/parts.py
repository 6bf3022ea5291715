"""Segmentors of mmseg as plain networks, images -> logits: the student, the self-teacher, or the ensemble of both."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from frskd_plugin.core.checks import check_one_of
from frskd_plugin.core.dry_run import record_calls
from frskd_plugin.core.soft_label import mean_prediction
from frskd_plugin.mmseg.student_outputs import as_logits, first_of
from frskd_plugin.timm.parts import PARTS, soft_label_of

# What a segmentor of mmseg runs at inference; auxiliary heads and preprocessor stay behind.
_INFERENCE_PARTS = ("backbone", "neck", "decode_head")
_BRANCHES_IN_TRAINING = {"PIDNet": True, "DDRNet": True}  # backbones that hand out all of them then only


class SegmentationNetwork(nn.Module):
    """An encoder-decoder of mmseg from normalised images to logits of the same size, in mode 'whole'.

    Args:
        segmentor: in eval mode; its parameters are shared, not copied.
        part: 'student'; of one with a self-teacher also 'self_teacher' (in place of the decode head) or 'ensemble', the
            mean of both probabilities (`mean_prediction`).

    Raises:
        ValueError: it is tested in another mode than 'whole', an unknown part, or no self-teacher for it.
    """

    def __init__(self, segmentor: Any, part: str = "student") -> None:
        super().__init__()
        mode = (segmentor.test_cfg or {}).get("mode", "whole")
        if mode != "whole":
            raise ValueError(
                f"a segmentor with test_cfg.mode={mode!r} cannot be exported: Python lays the windows, image by image. "
                "Set model.test_cfg=dict(mode='whole') (--cfg-options model.test_cfg.mode=whole), and let the program "
                "around the exported network cut the windows, if it needs any."
            )
        teacher = getattr(segmentor, "self_teacher", None)
        if check_one_of("part", part, PARTS) != "student" and not isinstance(teacher, nn.Module):
            raise ValueError(
                f"part={part!r}: {type(segmentor).__name__} has no self-teacher; part='student' is all of it."
            )
        self.model = _with_modules(segmentor, _INFERENCE_PARTS)
        self.self_teacher = self.soft_label = None
        if part == "self_teacher":
            self.model._modules["decode_head"] = _with_modules(teacher, ("neck", "head"))
        elif part == "ensemble":
            self.self_teacher, self.soft_label = _with_modules(teacher, ("neck", "head")), soft_label_of(teacher)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, K, H, W]."""
        size = images.shape[-2:]
        metas = [{"img_shape": size, "ori_shape": size, "pad_shape": size}]
        with record_calls(self.model, "extract_feat") as feats:
            logits = self.model.encode_decode(images, metas)
        if self.self_teacher is None:
            return logits
        if first_of(_BRANCHES_IN_TRAINING, type(self.model.backbone)):
            with all_branches(self.model.backbone):
                feats = [self.model.extract_feat(images)]
        others = self.self_teacher.predict(feats[0], metas, self.model.test_cfg)
        return mean_prediction(as_logits(self.model.decode_head, logits), others, self.soft_label or "auto")


def _with_modules(module: nn.Module, names: tuple[str, ...]) -> Any:
    """Return a copy that shares these submodules and has no others."""
    made = copy.copy(module)
    made._modules = {name: module._modules[name] for name in names if module._modules.get(name) is not None}
    return made


@contextmanager
def all_branches(backbone: nn.Module) -> Iterator[None]:
    """Let a backbone hand out what it does in training, while its layers (batch normalisation) stay as they are."""
    training = backbone.training
    try:
        backbone.training = training or bool(first_of(_BRANCHES_IN_TRAINING, type(backbone)))
        yield
    finally:
        backbone.training = training
