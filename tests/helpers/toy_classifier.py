"""A classifier of three layers with as much of timm's interface as `wrap` and `FRSKDTask` use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_SIZE = (3, 8, 8)
NUM_CLASSES = 3


class ToyClassifier(nn.Module):
    """Maps of 8x8 and 4x4; nothing in it looks at the rest of the batch, or with ``batch_norm`` one layer does."""

    pretrained_cfg = {"input_size": IMAGE_SIZE, "classifier": "head"}

    def __init__(self, batch_norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
        self.body = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, NUM_CLASSES)

    def forward_intermediates(
        self, x: Tensor, indices: list[int] | None = None, output_fmt: str = "NCHW"
    ) -> tuple[Tensor, list[Tensor]]:
        early = F.relu(self.norm(self.stem(x)))
        late = F.relu(self.body(early))
        return late, [(early, late)[i] for i in (range(2) if indices is None else indices)]

    def forward_head(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_intermediates(x)[0])

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        return self.head


class TwoHeads(ToyClassifier):
    """With a second classifier, as timm's distilled models have."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dist = nn.Linear(8, NUM_CLASSES)

    def forward_head(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))
        return (self.head(pooled) + self.head_dist(pooled)) / 2

    def get_classifier(self) -> tuple[nn.Module, ...]:
        return self.head, self.head_dist


def toy_batch(size: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images [B, 3, 8, 8] and labels [B]."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, *IMAGE_SIZE, generator=generator)
    return images, torch.randint(NUM_CLASSES, (size,), generator=generator)
