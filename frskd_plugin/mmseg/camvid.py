"""CamVid with 11 classes, in PASCAL VOC layout."""

from __future__ import annotations

import os.path as osp
from typing import Any

from mmseg.datasets import BaseSegDataset

from frskd_plugin.mmseg.dataset_files import require_files


class CamVidDataset(BaseSegDataset):
    """Road scenes with the 11 classes of the SegNet authors (Brostow et al. 2009; Badrinarayanan et al. 2017).

    Class 0 is sky, a class of its own: there is no background and nothing to subtract. The PNG are palette images whose
    colours mean nothing here; mmseg's ``LoadAnnotations`` reads their indices (with its default Pillow backend).

    Args:
        ann_file: list of ids, one a line, below ``data_root``.
        img_suffix: of the images.
        seg_map_suffix: of the label maps.
        data_root: folder with ``JPEGImages/<id>.jpg``, ``SegmentationClass/<id>.png`` (pixel = class index 0..10, 255 =
            void) and ``ImageSets/Segmentation/<split>.txt``, or the folder in which that one is named ``CamVid``.
        data_prefix: folders of images (``img_path``) and label maps (``seg_map_path``); None: those two.
        kwargs: further arguments of `BaseSegDataset`, such as ``pipeline``.

    Raises:
        FileNotFoundError: the list or one of the two image folders is not there.
    """

    METAINFO = dict(
        classes=(
            "sky",
            "building",
            "pole",
            "road",
            "pavement",
            "tree",
            "signsymbol",
            "fence",
            "car",
            "pedestrian",
            "bicyclist",
        ),
        palette=[
            [128, 128, 128],
            [128, 0, 0],
            [192, 192, 128],
            [128, 64, 128],
            [60, 40, 222],
            [128, 128, 0],
            [192, 128, 128],
            [64, 64, 128],
            [64, 0, 128],
            [64, 64, 0],
            [0, 128, 192],
        ],
    )

    def __init__(
        self,
        ann_file: str = "ImageSets/Segmentation/train.txt",
        img_suffix: str = ".jpg",
        seg_map_suffix: str = ".png",
        data_root: str | None = None,
        data_prefix: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        if data_root is not None and not osp.isdir(osp.join(data_root, "JPEGImages")):
            inner = osp.join(data_root, "CamVid")
            data_root = inner if osp.isdir(inner) else data_root
        data_prefix = data_prefix or dict(img_path="JPEGImages", seg_map_path="SegmentationClass")
        require_files(
            "CamVid",
            data_root,
            [*data_prefix.values(), ann_file],
            "data_root is the folder that holds JPEGImages, SegmentationClass and ImageSets/Segmentation",
        )
        super().__init__(
            ann_file=ann_file,
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            data_root=data_root,
            data_prefix=data_prefix,
            **kwargs,
        )
