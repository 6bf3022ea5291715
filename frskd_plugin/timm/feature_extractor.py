"""A timm model as a backbone: image in, tuple of feature maps out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from frskd_plugin.core.checkpoint_file import BrokenCheckpointError
from frskd_plugin.timm.checkpoint import create_model, load_trunk_checkpoint
from frskd_plugin.timm.probe import check_out_indices, last_of_each, maps_alone

# Arguments by which timm's models with a fixed input size (Swin, ViT) accept any size instead.
ANY_SIZE_KWARGS = {"strict_img_size": False, "dynamic_img_size": True, "dynamic_img_pad": True}


class TimmFeatureExtractor(nn.Module):
    """Feature maps of any timm model with ``forward_intermediates``; the layers behind the last map are removed.

    Images [B, C, H, W] in, maps [B, C_i, H_i, W_i] out, highest resolution first. Swin and ViT take any image size.

    Args:
        model_name: a name of timm; its tag (``'tf_efficientnet_b0.aa_in1k'``) chooses among pretrained weights.
        pretrained: fetch the weights of that tag.
        checkpoint: a local file with the weights of the whole classifier or of its trunk, instead of ``pretrained``.
        out_indices: maps to hand out, counted as in timm's ``feature_info``; None: the last map of each stride.
        frozen_stages: 0 freezes the stem, k the stem and the first k stages (blocks of a plain ViT), -1 nothing. Frozen
            layers get no gradient and stay in eval mode.
        norm_eval: keep every batch norm in eval mode.
        in_chans: channels of the images.
        model_kwargs: further arguments of ``timm.create_model``.

    Attributes:
        out_channels: channels of each map.
        strides: image size / map size of each, as timm states it.
        out_indices: the maps that are handed out, counted from 0.

    Raises:
        ValueError: an unknown model, or an index, number of stages or checkpoint that does not fit it.
        RuntimeError: pretrained weights could not be fetched.

    >>> backbone = TimmFeatureExtractor("test_resnet", out_indices=(1, 2, 3, 4))
    >>> [list(f.shape) for f in backbone(torch.rand(1, 3, 64, 64))]
    [[1, 32, 16, 16], [1, 48, 8, 8], [1, 192, 4, 4], [1, 96, 2, 2]]
    >>> backbone.out_channels, backbone.strides
    ((32, 48, 192, 96), (4, 8, 16, 32))
    """

    def __init__(
        self,
        model_name: str,
        pretrained: bool = False,
        checkpoint: str | Path | None = None,
        out_indices: int | Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        in_chans: int = 3,
        **model_kwargs: Any,
    ) -> None:
        super().__init__()
        if pretrained and checkpoint:
            raise ValueError(
                f"pretrained=True and checkpoint={str(checkpoint)!r} exclude each other: set pretrained=False to load "
                f"the file, or leave checkpoint out."
            )
        model = create_trunk(model_name, pretrained, in_chans=in_chans, **model_kwargs)
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(f"{model_name!r} has no forward_intermediates, so its feature maps cannot be taken.")
        if checkpoint:
            load_trunk_checkpoint(model, checkpoint)

        infos = model.feature_info
        if out_indices is None:
            indices = last_of_each([info["reduction"] for info in infos])
        else:
            indices = check_out_indices(out_indices, infos, model_name)
        # highest resolution first, whatever the order in which the network makes its maps
        indices = tuple(sorted(indices, key=lambda i: infos[i]["reduction"]))
        self.out_indices = indices
        self.out_channels = tuple(infos[i]["num_chs"] for i in indices)
        self.strides = tuple(infos[i]["reduction"] for i in indices)
        self.in_chans = in_chans
        self.norm_eval = norm_eval
        # The final norm and the head serve the classifier only; left in, they would be parameters without a gradient.
        model.prune_intermediate_layers(sorted(indices), prune_norm=True, prune_head=True)
        head = getattr(model, "head", None)
        if head is not None and isinstance(getattr(head, "norm", None), nn.Module):
            head.norm = nn.Identity()  # timm before 1.0.31 leaves that of ConvNeXt; a head may also hold stages
        self.model = model
        self.frozen_stages = frozen_stages
        self._frozen_modules = self._freeze(frozen_stages, model_name)
        self.train(self.training)

    def _freeze(self, frozen_stages: int, model_name: str) -> tuple[str, ...]:
        if frozen_stages == -1:
            return ()
        if not hasattr(self.model, "group_matcher"):
            raise ValueError(
                f"{model_name!r} does not tell its stages to timm (group_matcher): leave frozen_stages=-1."
            )
        groups = group_parameters(self.model, self.model.group_matcher(coarse=True))
        if not isinstance(frozen_stages, int) or not 0 <= frozen_stages < len(groups):
            raise ValueError(
                f"frozen_stages={frozen_stages!r} does not fit {model_name!r} with out_indices={self.out_indices}: "
                f"expected -1 (nothing frozen), 0 (the stem) or up to {len(groups) - 1} (the stem and every stage)."
            )
        frozen = {name for stage in range(frozen_stages + 1) for name in groups[stage]}
        for name, parameter in self.model.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)
        owned = {
            n: {f"{n}.{name}" for name, _ in module.named_parameters()} for n, module in self.model.named_modules()
        }
        return tuple(module_name for module_name, names in owned.items() if module_name and names and names <= frozen)

    def train(self, mode: bool = True) -> TimmFeatureExtractor:
        """Set the mode; frozen layers, and with ``norm_eval`` every batch norm, stay in eval mode."""
        super().train(mode)
        if mode:
            for name in self._frozen_modules:
                self.model.get_submodule(name).eval()
            if self.norm_eval:
                for module in self.model.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps [B, out_channels[i], H / strides[i], W / strides[i]] of images [B, in_chans, H, W].

        Raises:
            ValueError: the input is no batch of images with ``in_chans`` channels.
        """
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"TimmFeatureExtractor expects images [B, {self.in_chans}, H, W], got a tensor {list(x.shape)}. "
                f"A single image needs x[None]; another number of channels needs the argument in_chans."
            )
        return tuple(maps_alone(self.model, x, self.out_indices))


def create_trunk(model_name: str, pretrained: bool, **model_kwargs: Any) -> nn.Module:
    """Return the timm model without classifier, for any image size where the model has an argument for that."""
    model_kwargs.setdefault("num_classes", 0)
    model_kwargs = {**_any_size_kwargs(model_name, model_kwargs), **model_kwargs}
    try:
        return create_model(model_name, pretrained=pretrained, **model_kwargs)
    except Exception as error:  # hub, proxy, disk: every library in between raises its own classes
        # not of a wrong argument of the model, or a file of more than weights
        if not pretrained or isinstance(error, (TypeError, BrokenCheckpointError)):
            raise
        raise RuntimeError(
            f"The pretrained weights of {model_name!r} could not be loaded ({type(error).__name__}: {error}). Give a "
            f"file you have with checkpoint='FILE' and pretrained=False (a timm state_dict, .safetensors or .pth), or "
            f"train from scratch with pretrained=False alone."
        ) from error


def _any_size_kwargs(model_name: str, model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return those of `ANY_SIZE_KWARGS` that the model's class takes."""
    try:
        with torch.device("meta"):  # only the class is of interest: no memory, no random numbers
            model = create_model(model_name, **model_kwargs)
    except (NotImplementedError, RuntimeError):  # a constructor that needs real numbers
        model = create_model(model_name, **model_kwargs)
    # Subclasses hand their **kwargs on, so the arguments of every base class count.
    classes = [cls for cls in type(model).__mro__ if issubclass(cls, nn.Module)]
    names = {name for cls in classes for name in inspect.signature(cls).parameters}
    return {name: value for name, value in ANY_SIZE_KWARGS.items() if name in names}
