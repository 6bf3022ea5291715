"""Ways in which batches of CIFAR-100 reach the network: an ordinary `DataLoader`, and `TensorImages`."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from frskd_plugin.benchmark.training_step import StepSettings
from frskd_plugin.data.cifar100 import load_cifar100
from frskd_plugin.data.tensor_images import TensorImages, take_batch

DEFAULT_BATCH = 128
PADDING = 4
SIZE = 32
NUM_CLASSES = 100
# of the training images, in 0..255
MEAN, STD = (129.3, 124.1, 112.4), (68.2, 65.4, 70.4)


@dataclass(frozen=True)
class Source:
    """The images: uint8 [N, 3, H, W], int64 [N], and what they are."""

    images: Tensor
    targets: Tensor
    text: str


def cifar100_or_drawn(data_root: str | None, count: int) -> Source:
    """CIFAR-100's training images, or random ones of their size.

    Args:
        data_root: where CIFAR-100 lies; None draws ``count`` images.
        count: how many are drawn.

    Raises:
        FileNotFoundError: There is no CIFAR-100.
    """
    if data_root is not None:
        loaded = load_cifar100(data_root, "train")
        images, targets = torch.as_tensor(loaded.images), torch.as_tensor(loaded.targets)
        return Source(images, targets, f"{len(images)} images of CIFAR-100")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return Source(images, torch.arange(count) % NUM_CLASSES, f"{count} drawn images")


class SampleImages(Dataset):
    """A sample at a time, as torchvision's CIFAR100 makes it: a PIL image, a random crop and flip of it, a tensor."""

    def __init__(self, source: Source) -> None:
        self.images = source.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = source.targets.tolist()
        self.transforms = v2.Compose(
            [v2.RandomCrop(self.images.shape[1:3], padding=PADDING), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        return {"inputs": self.transforms(Image.fromarray(self.images[index])), "targets": self.targets[index]}


class DataPath:
    """Makes batches in one way, for networks of one layout.

    Args:
        dataset: `SampleImages` or `TensorImages`.
        settings: batch size, device and layout.
        workers: processes of the loader.
    """

    def __init__(self, dataset: SampleImages | TensorImages, settings: StepSettings, workers: int = 0) -> None:
        self.dataset = dataset
        self.workers = workers
        self.batch = settings.batch or DEFAULT_BATCH
        self.device = torch.device(settings.device)
        self.memory_format = settings.memory_format
        # kept there: to make them for each batch would have the host wait for the GPU
        self.mean, self.std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (MEAN, STD))

    def batches(self, count: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        """That many batches on the device: images [B, 3, H, W], shuffled and normalised, and labels [B]."""
        is_tensor = isinstance(self.dataset, TensorImages)
        loader = DataLoader(
            self.dataset,
            self.batch,
            sampler=RandomSampler(range(len(self.dataset)), num_samples=count * self.batch),
            num_workers=self.workers,
            collate_fn=take_batch if is_tensor else None,
            pin_memory=not is_tensor and self.device.type == "cuda",
        )
        for batch in loader:
            images = (batch["inputs"].to(self.device, non_blocking=True).float() - self.mean) / self.std
            targets = batch["targets"].to(self.device, non_blocking=True)
            yield images.contiguous(memory_format=self.memory_format), targets
