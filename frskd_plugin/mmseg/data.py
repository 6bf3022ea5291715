"""Data sets of mmseg that name the file when something is wrong, and the IoU of student and self-teacher."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmcv
import mmengine.fileio as fileio
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmseg.datasets import BaseSegDataset, PascalVOCDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.evaluation.metrics import IoUMetric
from PIL import Image

from frskd_plugin.data.image_folder import has_deep_pixels


def checked_folders(
    name: str, hint: str, ann_file: str, data_root: str | None, data_prefix: dict[str, str] | None
) -> dict[str, str]:
    """Return the folders of images and labels; a `FileNotFoundError` names what is missing."""
    data_prefix = data_prefix or dict(img_path="JPEGImages", seg_map_path="SegmentationClass")
    for path in [*data_prefix.values(), ann_file]:
        expected = Path(data_root or "") / path
        if not expected.exists():
            raise FileNotFoundError(
                f"{name}: {expected} is missing (data_root={data_root!r}; tools/train.py --data-root DIR sets it). "
                f"{hint}"
            )
    return data_prefix


class CheckedPascalVOCDataset(PascalVOCDataset):
    """mmseg's `PascalVOCDataset` with a `FileNotFoundError` that says which list or folder is missing.

    ``data_root`` is the devkit's folder, which holds VOC2007 and VOC2012, or one of these two.
    """

    def __init__(
        self, ann_file: str, data_root: str | None = None, data_prefix: dict[str, str] | None = None, **kwargs: Any
    ) -> None:
        hint = (
            "data_root is the folder that holds VOC2007 and VOC2012, and `python tools/prepare_voc.py DATA_ROOT` "
            "writes the training lists (with --paper-protocol those of the paper)"
        )
        data_prefix = checked_folders("PASCAL VOC", hint, ann_file, data_root, data_prefix)
        super().__init__(ann_file=ann_file, data_root=data_root, data_prefix=data_prefix, **kwargs)


class CamVidDataset(BaseSegDataset):
    """Road scenes with the 11 classes of the SegNet authors (Brostow et al. 2009; Badrinarayanan et al. 2017).

    Class 0 is sky: there is no background and nothing to subtract.

    Args:
        ann_file: list of ids, one a line, below ``data_root``.
        data_root: folder with ``JPEGImages/<id>.jpg``, ``SegmentationClass/<id>.png`` (palette image, pixel = class
            index 0..10, 255 = void) and ``ImageSets/Segmentation/<split>.txt``, or the folder above it, where it is
            named ``CamVid``.
        data_prefix: folders of images (``img_path``) and label maps (``seg_map_path``).
        **kwargs: of `BaseSegDataset`, such as ``pipeline``.

    Raises:
        FileNotFoundError: the list or one of the two image folders is not there.
    """

    METAINFO = dict(
        classes=tuple("sky building pole road pavement tree signsymbol fence car pedestrian bicyclist".split()),
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
        data_root: str | None = None,
        data_prefix: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        if data_root is not None and not osp.isdir(osp.join(data_root, "JPEGImages")):
            inner = osp.join(data_root, "CamVid")
            data_root = inner if osp.isdir(inner) else data_root
        hint = "data_root is the folder that holds JPEGImages, SegmentationClass and ImageSets/Segmentation"
        data_prefix = checked_folders("CamVid", hint, ann_file, data_root, data_prefix)
        super().__init__(ann_file=ann_file, data_root=data_root, data_prefix=data_prefix, **kwargs)


@contextmanager
def _named(kind: str, path: str) -> Iterator[None]:
    """Say which file is missing or cannot be decoded."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{kind} {path} is missing; check data_root (--data-root sets it) and the list of images"
        ) from error
    except Exception as error:  # each decoder has its own kinds of errors
        raise ValueError(
            f"{kind} {path} cannot be decoded ({type(error).__name__}: {error}); restore the file, or take it out "
            f"of the list of images"
        ) from error


class LoadCheckedImage(LoadImageFromFile):
    """mmcv's `LoadImageFromFile` with an error that says which image is missing or cannot be decoded.

    An image of more than 8 bits a channel that would be read as one of 8 is an error too: ``color_type='unchanged'``
    keeps its values.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        path = results["img_path"]
        with _named("image", path):
            loaded = super().transform(results)
        if loaded is not None and self.color_type != "unchanged" and _has_deep_pixels(path):
            raise ValueError(
                f"image {path} has more than 8 bits a channel, of which color_type={self.color_type!r} cuts off; "
                f"convert it to 8 bits, or set color_type='unchanged'"
            )
        return loaded


class LoadCheckedAnnotations(LoadAnnotations):
    """mmseg's `LoadAnnotations` that checks the label map against the classes and the image, which is loaded before.

    Args:
        num_classes: labels must be below it or equal to `ignore_index`; None leaves the labels unchecked.
        ignore_index: the label of pixels that do not count.

    Raises:
        FileNotFoundError: the label map is missing.
        ValueError: it cannot be decoded, has another size than the image, is not a map of single labels, or holds a
            label that is no class.
    """

    def __init__(self, num_classes: int | None = None, ignore_index: int = 255, **kwargs: Any) -> None:
        if num_classes is not None and not 0 < num_classes <= 256:
            raise ValueError(f"LoadCheckedAnnotations: num_classes must be from 1 to 256, got {num_classes}")
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        path = results["seg_map_path"]
        with _named("mask", path):
            content = fileio.get(path, backend_args=self.backend_args)
            labels = mmcv.imfrombytes(content, flag="unchanged", backend=self.imdecode_backend).squeeze()
        results["gt_seg_map"] = self._mapped(_whole_labels(labels, path), results)
        results["seg_fields"].append("gt_seg_map")
        self._check(results["gt_seg_map"], results)

    def _mapped(self, labels: np.ndarray, results: dict[str, Any]) -> np.ndarray:
        """Return the labels as mmseg changes them: without class 0, and with the classes of ``label_map``."""
        if self.reduce_zero_label is None:
            self.reduce_zero_label = results["reduce_zero_label"]
        if self.reduce_zero_label != results["reduce_zero_label"]:
            raise ValueError(
                f"reduce_zero_label is {self.reduce_zero_label} where labels are loaded and "
                f"{results['reduce_zero_label']} in the data set; give both the same"
            )
        if self.reduce_zero_label:
            labels = np.where(labels == 0, 255, labels) - 1
            labels[labels == 254] = 255
        mapped = labels.copy()
        for old, new in (results.get("label_map") or {}).items():
            mapped[labels == old] = new
        return mapped

    def _check(self, labels: np.ndarray, results: dict[str, Any]) -> None:
        path, image = results["seg_map_path"], results.get("img_path")
        if labels.ndim != 2:
            raise ValueError(
                f"mask {path} must hold one label a pixel (a grey or palette PNG), got an array of shape "
                f"{labels.shape}; convert colours to class indices first"
            )
        size = results.get("ori_shape")
        if size is not None and labels.shape != tuple(size[:2]):
            raise ValueError(
                f"mask {path} has size {labels.shape[1]}x{labels.shape[0]} (width x height), but its image {image} "
                f"has {size[1]}x{size[0]}; they must be equal"
            )
        if self.num_classes is None:
            return
        wrong = np.unique(labels[(labels >= self.num_classes) & (labels != self.ignore_index)])
        if wrong.size:
            raise ValueError(
                f"mask {path} holds label {', '.join(map(str, wrong[:5].tolist()))}, but there are "
                f"{self.num_classes} classes (0 to {self.num_classes - 1}) and {self.ignore_index} for ignored pixels; "
                f"mend the mask, or set num_classes and the data set's classes to fit"
            )


def _has_deep_pixels(path: str) -> bool:
    try:
        with Image.open(path) as image:
            return has_deep_pixels(image)
    except OSError:  # of another backend or decoder
        return False


def _whole_labels(labels: np.ndarray, path: str) -> np.ndarray:
    """Return labels of any type as uint8 or, where they are greater, uint16: mmseg takes them modulo 256."""
    if labels.dtype == np.uint8 or not labels.size:
        return labels.astype(np.uint8)
    least, most = labels.min(), labels.max()
    if not (0 <= least and most < 2**16 and (labels == np.floor(labels)).all()):
        raise ValueError(
            f"mask {path} must hold whole numbers from 0 to 65535, one a class, got {labels.dtype} from {least} to "
            f"{most}; convert it"
        )
    return labels.astype(np.uint8 if most < 2**8 else np.uint16)


class SelfTeacherIoUMetric(IoUMetric):
    """mmseg's ``IoUMetric``, with figures under ``self_teacher.`` and ``ensemble.`` beside the student's.

    They stand there when the samples carry ``pred_self_teacher`` and ``pred_ensemble`` (`SelfTeacherValidationHook`).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.others = {name: IoUMetric(**{**kwargs, "output_dir": None}) for name in ("self_teacher", "ensemble")}

    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:
        """Count the predictions of a batch."""
        super().process(data_batch, data_samples)
        for name, metric in self.others.items():
            key = f"pred_{name}"
            metric.dataset_meta = self.dataset_meta
            metric.process(data_batch, [{**item, "pred_sem_seg": item[key]} for item in data_samples if key in item])

    def evaluate(self, size: int) -> dict[str, float]:
        """Figures over ``size`` images, in percent."""
        metrics = super().evaluate(size)
        for name, metric in self.others.items():
            if metric.results:
                metrics |= {f"{name}.{key}": value for key, value in metric.evaluate(size).items()}
        return metrics
