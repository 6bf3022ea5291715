"""The image classification sets of the paper: how many classes and images they have, and which archives hold them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ImageSet:
    """What a complete set looks like on disk.

    Args:
        num_classes: number of classes.
        images: number of images of each split, whose names are those of the folders.
        per_class: images of each class, for the splits in which all classes have as many.
        image_size: (height, width) if all images have one size.
        sources: file as published -> what it unpacks to (where that lies beside it, the archive is left alone), or None
            if it is not an archive.
        url: the page of the authors.
    """

    num_classes: int
    images: dict[str, int]
    per_class: dict[str, int]
    image_size: tuple[int, int] | None
    sources: dict[str, str | None]
    url: str


IMAGE_SETS = {
    "cifar100": ImageSet(
        num_classes=100,
        images={"train": 50000, "test": 10000},
        per_class={"train": 500, "test": 100},
        image_size=(32, 32),
        sources={"cifar-100-python.tar.gz": "cifar-100-python"},
        url="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "tinyimagenet": ImageSet(
        num_classes=200,
        images={"train": 100000, "val": 10000},
        per_class={"train": 500, "val": 50},
        image_size=(64, 64),
        sources={"tiny-imagenet-200.zip": "tiny-imagenet-200"},
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    ),
    "cub200": ImageSet(
        num_classes=200,
        images={"train": 5994, "test": 5794},
        per_class={},
        image_size=None,
        sources={"CUB_200_2011.tgz": "CUB_200_2011"},
        url="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    ),
    "mit67": ImageSet(
        num_classes=67,
        images={"train": 5360, "test": 1340},
        per_class={},
        image_size=None,
        sources={"indoorCVPR_09.tar": "Images", "TrainImages.txt": None, "TestImages.txt": None},
        url="https://web.mit.edu/torralba/www/indoor.html",
    ),
    "stanford40": ImageSet(
        num_classes=40,
        images={"train": 4000, "test": 5532},
        per_class={"train": 100},
        image_size=None,
        sources={"Stanford40_JPEGImages.zip": "JPEGImages", "Stanford40_ImageSplits.zip": "ImageSplits"},
        url="http://vision.stanford.edu/Datasets/40actions.html",
    ),
    "dogs": ImageSet(
        num_classes=120,
        images={"train": 12000, "test": 8580},
        per_class={"train": 100},
        image_size=None,
        sources={"images.tar": "Images", "lists.tar": "train_list.mat"},
        url="http://vision.stanford.edu/aditya86/ImageNetDogs/",
    ),
    "imagenet": ImageSet(
        num_classes=1000,
        images={"train": 1281167, "val": 50000},
        per_class={"val": 50},
        image_size=None,
        sources={
            "ILSVRC2012_img_train.tar": "train",
            "ILSVRC2012_img_val.tar": "val",
            "ILSVRC2012_devkit_t12.tar.gz": "ILSVRC2012_devkit_t12",
        },
        url="https://image-net.org/challenges/LSVRC/2012/",
    ),
}


def how_to_prepare(data_root: str | Path, name: str = "NAME") -> str:
    """The sentence with which an error about a missing or incomplete set ends.

    Example:
        >>> how_to_prepare("data/birds", "cub200")
        '`python tools/prepare_data.py cub200 SRC data/birds` makes it from CUB_200_2011.tgz in the folder SRC'
    """
    if name in IMAGE_SETS:
        source = f"{', '.join(IMAGE_SETS[name].sources)} in the folder SRC"
    else:
        source = f"the published archives in the folder SRC (NAME: {', '.join(IMAGE_SETS)})"
    return f"`python tools/prepare_data.py {name} SRC {data_root}` makes it from {source}"
