"""Top-1 and top-5 accuracy of the student and, where it predicts too, of its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor


def top_k_hits(logits: Tensor, targets: Tensor, top_k: Sequence[int]) -> Tensor:
    """Whether the target is among the k highest logits; always, where k is no less than the number of classes.

    Args:
        logits: [B, K].
        targets: labels [B].
        top_k: the values of k.

    Returns:
        Bool [B, len(top_k)].

    >>> top_k_hits(torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([2]), (1, 2))
    tensor([[False,  True]])
    """
    highest = logits.topk(min(max(top_k), logits.shape[1]), dim=1).indices
    hits = highest == targets[:, None]
    return torch.stack([hits[:, :k].any(dim=1) for k in top_k], dim=1)


class TopKAccuracyMetric(BaseMetric):
    """``top1`` and ``top5`` in percent; ``teacher_top1``, ``teacher_top5`` where predictions hold the teacher's logits.

    With several processes each image counts once: what a sampler repeats to give all of them equally many is dropped.

    Args:
        top_k: the values of k.
        kwargs: of mmengine's ``BaseMetric``.

    Raises:
        ValueError: a k below 1, or none.
    """

    default_prefix = ""

    def __init__(self, top_k: Sequence[int] = (1, 5), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not top_k or min(top_k) < 1:
            raise ValueError(f"TopKAccuracyMetric: top_k must be numbers of 1 or more, got {top_k}")
        self.top_k = tuple(top_k)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Tensor]]) -> None:
        """Note the hits of a batch of `TimmClassifier`'s predictions."""
        targets = torch.stack([sample["target"] for sample in data_samples])
        columns: dict[str, list[bool]] = {}
        for prefix in ("", "teacher_"):
            if f"{prefix}logits" in data_samples[0]:
                logits = torch.stack([sample[f"{prefix}logits"] for sample in data_samples])
                hits = top_k_hits(logits, targets, self.top_k)
                columns |= {f"{prefix}top{k}": hits[:, i].tolist() for i, k in enumerate(self.top_k)}
        # one result an image, so that mmengine can put those of several processes in order
        self.results += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def compute_metrics(self, results: list[dict[str, bool]]) -> dict[str, float]:
        """Percent of the images that hit."""
        return {name: 100 * sum(result[name] for result in results) / len(results) for name in results[0]}
