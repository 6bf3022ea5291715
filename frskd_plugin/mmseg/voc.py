"""PASCAL VOC with an error that says which file is missing and how to get it."""

from __future__ import annotations

from typing import Any

from mmseg.datasets import PascalVOCDataset

from frskd_plugin.mmseg.dataset_files import require_files


class CheckedPascalVOCDataset(PascalVOCDataset):
    """mmseg's `PascalVOCDataset`, which stops with a bare assertion where a list or a folder is missing.

    Args:
        ann_file: list of ids, one a line, below ``data_root``.
        data_root: the devkit's folder, which holds VOC2007 and VOC2012, or one of these two.
        data_prefix: folders of images (``img_path``) and label maps (``seg_map_path``); None: ``JPEGImages`` and
            ``SegmentationClass``.
        kwargs: further arguments of `PascalVOCDataset`, such as ``pipeline``.

    Raises:
        FileNotFoundError: names what is missing.
    """

    def __init__(
        self, ann_file: str, data_root: str | None = None, data_prefix: dict[str, str] | None = None, **kwargs: Any
    ) -> None:
        data_prefix = data_prefix or dict(img_path="JPEGImages", seg_map_path="SegmentationClass")
        require_files(
            "PASCAL VOC",
            data_root,
            [*data_prefix.values(), ann_file],
            "data_root is the folder that holds VOC2007 and VOC2012, and `python tools/prepare_voc.py DATA_ROOT` "
            "writes the training lists (with --paper-protocol those of the paper)",
        )
        super().__init__(ann_file=ann_file, data_root=data_root, data_prefix=data_prefix, **kwargs)
