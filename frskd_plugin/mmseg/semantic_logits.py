"""The semantic map [B, K, H, W] that a head of mmseg predicts, read off its training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmseg.utils import SampleList
from torch import Tensor, nn

from frskd_plugin.core.dry_run import record_calls

# Heads that hand out several maps in training: which of them `predict` takes. Others take the first.
_PREDICTED = {"PIDHead": 1, "IterativeDecodeHead": -1}
# Heads that classify masks: where class scores and masks stand in their output.
_CLASSES_AND_MASKS = {"MaskFormerHead": (0, 1), "Mask2FormerHead": (0, 1), "SideAdapterCLIPHead": (1, 0)}
_LEAST_SCORE = 1e-6


def first_of(table: dict[str, Any], head_type: type) -> Any:
    """What a table says of a class or of the nearest of its bases, by name; None where it names none of them.

    Names, because a module of mmseg may need packages that are not installed.

    >>> first_of({"int": "a number"}, bool)
    'a number'
    """
    return next((table[base.__name__] for base in head_type.__mro__ if base.__name__ in table), None)


def loss_and_logits(
    head: nn.Module, inputs: Sequence[Any], data_samples: SampleList, train_cfg: Any, test_cfg: Any
) -> tuple[dict[str, Tensor], Tensor]:
    """A head's own training loss, and the logits of the semantic map that it predicts; ``forward`` runs once.

    Only where ``forward`` gives no map (PointRend classifies points), the head's ``predict`` is run beside it.

    Args:
        head: of mmseg; a stage of a cascade too.
        inputs: what its ``loss`` takes before the samples: the maps and, behind a first stage, the last one's output.
        data_samples: ground truth, ``gt_sem_seg`` [1, H, W] each.
        train_cfg: of the segmentor.
        test_cfg: of the segmentor.

    Returns:
        The losses, and logits [B, K, H, W] with the graph that made them.
    """
    with record_calls(head, "forward") as outputs:
        losses = head.loss(*inputs, data_samples, train_cfg)
    logits = semantic_logits(head, outputs[0]) if outputs else None
    if logits is None:
        size = data_samples[0].gt_sem_seg.data.shape[-2:]
        logits = head.predict(*inputs, [{"img_shape": torch.Size(size)}] * len(data_samples), test_cfg)
    return losses, logits


def semantic_logits(head: nn.Module, output: Any) -> Tensor | None:
    """The logits [B, K, H, W] of the map that ``head.predict`` would make of an output of ``head.forward``.

    Mask classification gives the logarithm of its class scores, so that a softmax makes them probabilities.

    Returns:
        None where the output holds no such map.
    """
    where = first_of(_CLASSES_AND_MASKS, type(head))
    if where is not None:
        return mask_class_logits(output[where[0]][-1], output[where[1]][-1])
    if not isinstance(output, Tensor):
        output = output[first_of(_PREDICTED, type(head)) or 0]
    is_map = isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] == head.out_channels
    return output if is_map else None


def mask_class_logits(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Log of the class scores that mask classification gives to each position (MaskFormer, Section 3.4).

    Args:
        class_logits: of each query, [B, Q, K + 1]; the last class is "no object".
        mask_logits: of each query, [B, Q, H, W].

    Returns:
        [B, K, H, W]: ``log(sum_q softmax(class_logits)_k * sigmoid(mask_logits))``.

    >>> import torch
    >>> classes, masks = torch.tensor([[[9.0, -9.0, -9.0]]]), torch.full((1, 1, 1, 1), 9.0)
    >>> mask_class_logits(classes, masks).softmax(1).flatten().round().tolist()
    [1.0, 0.0]
    """
    scores = torch.einsum("bqk,bqhw->bkhw", class_logits.softmax(-1)[..., :-1], mask_logits.sigmoid())
    return scores.clamp(min=_LEAST_SCORE).log()
