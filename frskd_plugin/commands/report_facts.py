"""Facts of a run: its config, method and settings, progress, dates, versions, and its pictures of attention maps."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from frskd_plugin.commands.attention_maps import TrainedNetwork, attention_picture, in_order, labels_of, open_checkpoint
from frskd_plugin.commands.report_logs import RunLogs, position_text
from frskd_plugin.core.frskd_loss import FRSKDLoss
from frskd_plugin.core.self_teacher_neck import SelfTeacherNeck
from frskd_plugin.methods.registry import method_class, method_names
from frskd_plugin.mmengine.stored_config import parse_config

Facts = dict[str, str]
# a method's settings that are told also where the config leaves them at their default
_SETTINGS = ("alpha", "beta", "temperature", "width")
# of AttentionPictureHook, and of tools/attention_maps.py where it was told to draw into the work folder
_FOLDERS = ("attention", "attention_maps")
_EPOCH = re.compile(r"(epoch|iter)_(\d+)")
_SHOWN = (
    "the image, and how much each place of it counts in the feature maps of the student and, where there is one, of "
    "its self-teacher"
)


@dataclass(frozen=True)
class Picture:
    """A picture of attention maps."""

    caption: str  # the image, and after which epochs
    png: bytes  # the file's
    width: int
    height: int

    @property
    def alt(self) -> str:
        """The content, for those who do not see it."""
        return f"Attention maps, {self.caption}: {_SHOWN}."


def read_config_of(run: RunLogs) -> tuple[str | None, dict[str, Any]]:
    """Read the config of the last start, which mmengine writes beside the JSON log, as data: nothing in it is run.

    Returns:
        Its text and its settings; None and nothing where there is no such file.

    Raises:
        ValueError: it holds code.
    """
    file = run.folders[-1] / "vis_data" / "config.py"
    if not file.is_file():
        return None, {}
    text = file.read_text(encoding="utf-8", errors="replace")
    return text, parse_config(text, str(file))


def part(settings: Any, *keys: str) -> dict[str, Any]:
    """Return the dict at nested keys, an empty one where there is none.

    >>> part({"model": {"student": {"depth": 10}}}, "model", "student"), part({"model": 3}, "model", "student")
    ({'depth': 10}, {})
    """
    for key in keys:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings if isinstance(settings, dict) else {}


def facts_of(run: RunLogs, config: dict[str, Any], result: dict[str, Any]) -> Facts:
    """Collect title -> text from logs, config and ``result.json``; what is not known is left out."""
    log, first = run.text_logs[-1], run.text_logs[0]
    copies = sorted(run.work_dir.glob("*.py"), key=lambda file: file.stat().st_mtime)  # by tools/train.py
    length = part(config, "train_cfg").get({"epoch": "max_epochs", "iteration": "max_iters"}[run.unit])
    length = length if isinstance(length, int) else None
    facts: Facts = {"state": state_of(run, length)}
    facts["config"] = str(result.get("config") or (copies[-1].stem if copies else ""))
    facts |= _model_facts(part(config, "model"))
    optimizer = part(config, "optim_wrapper", "optimizer")
    settings = [f"{str(key).replace('_', ' ')} {value}" for key, value in optimizer.items() if key != "type"]
    facts["optimizer"] = ", ".join([str(optimizer["type"]), *settings]) if "type" in optimizer else ""
    facts["batch size per process"] = str(part(config, "train_dataloader").get("batch_size") or "")
    facts["seed"] = str(result.get("seed", log.facts.get("seed", "")))
    facts[f"{run.unit}s"] = position_text(run.reached) + (f" of {length}" if length else "")
    facts |= {"started": first.begin or "", "last log entry": log.end or ""}
    if len(run.folders) > 1:
        facts["starts"] = f"{len(run.folders)}, the last in {run.folders[-1].name}"
    seconds = run.training["time"].values if "time" in run.training else np.empty(0)
    seconds = seconds[np.isfinite(seconds)]
    if len(seconds):
        facts["time per training step"] = f"{np.median(seconds):.3g} s (median of {len(seconds)} logged values)"
    return {key: text for key, text in (facts | {k: v for k, v in log.facts.items() if k != "seed"}).items() if text}


def state_of(run: RunLogs, length: int | None) -> str:
    """Say how far the run is on the way to ``length``, the whole training, where that is known."""
    unit = run.unit
    if length is None:
        return f"{unit} {position_text(run.reached)} is logged"
    if run.reached < length:
        return f"under way or stopped, at {unit} {position_text(run.reached)} of {length}"
    validated = [series.positions[-1] for series in run.validation.values()]
    if validated and run.validation_unit == unit and max(validated) < length:
        return f"all {length} {unit}s are trained, the last validation is missing"  # mmengine ends with one
    return f"done, {length} {unit}s"


def _model_facts(model: dict[str, Any]) -> Facts:
    if not model:
        return {}
    if model.get("type") == "TimmClassifier":
        method = dict(part(model, "method") or {"name": "baseline"})
        name = str(method.pop("name", "baseline"))
        defaults = _defaults(method_class(name)) if name in method_names() else {}
        settings = {key: defaults[key] for key in _SETTINGS if key in defaults} | method
        return {"student": str(part(model, "student").get("model_name")), "method": name, **_texts(settings)}
    parts = [model.get("backbone"), model.get("decode_head")]
    parts = [p[0] if isinstance(p, (list, tuple)) and p else p for p in parts]  # a cascade has several heads
    networks = [str(p.get("model_name") or p.get("type")) for p in parts if isinstance(p, dict)]
    facts = {"student": ", ".join(networks) or str(model.get("type"))}
    teacher = part(model, "self_teacher")
    if not teacher:
        return {**facts, "method": "baseline"}
    loss, neck = part(teacher, "loss_distill"), part(teacher, "neck")
    settings = {key: value for key, value in _defaults(FRSKDLoss).items() if key in _SETTINGS} | loss
    if neck.get("type") == SelfTeacherNeck.__name__:
        key = "width" if neck.get("channels", "scaled") == "scaled" else "channels"
        settings[key] = neck.get(key, _defaults(SelfTeacherNeck)[key])
    settings.pop("type", None)
    return {**facts, "method": "frskd", **_texts(settings)}


def _defaults(component: type) -> dict[str, Any]:
    parameters = inspect.signature(component).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _texts(settings: dict[str, Any]) -> Facts:
    return {str(key): "default" if value is None else str(value) for key, value in settings.items()}


def found_pictures(work_dir: Path) -> tuple[list[Picture], list[str]]:
    """Read the pictures in the work folder, image by image, and those of an image by epoch.

    Returns:
        The pictures, and a remark for each file that is no whole PNG: a run under way may be writing it.
    """
    files = [f for folder in _FOLDERS for f in (work_dir / folder).glob("**/*.png") if f.is_file()]
    pictures, remarks = [], []

    def order(file: Path) -> tuple[str, bool, int, str]:
        match = _EPOCH.fullmatch(file.parent.name)
        return file.stem, file.parent.name in _FOLDERS, int(match[2]) if match else 0, str(file)

    for file in sorted(files, key=order):
        when = "end of the training" if file.parent.name == _FOLDERS[0] else ""
        if match := _EPOCH.fullmatch(file.parent.name):
            when = f"{'epoch' if match[1] == 'epoch' else 'iteration'} {match[2]}"
        try:
            pictures.append(_picture(f"{file.stem}, {when}" if when else file.stem, file.read_bytes()))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises
            remarks.append(f"The picture {file} is left out, because it is no whole PNG file ({error}).")
    return pictures, remarks


def drawn_pictures(work_dir: Path, images: Sequence[Path], allow_imports: bool = False) -> list[Picture]:
    """Draw each image with all checkpoints that are still in the work folder, epochs ascending.

    Raises:
        FileNotFoundError: an image is missing.
        ValueError: there is no checkpoint, or an image or checkpoint cannot be read.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    networks = in_order(networks_of(work_dir, allow_imports))
    pictures = []
    for image in images:
        if not image.is_file():
            raise FileNotFoundError(f"image {image} not found; expected an image file behind --images")
        buffer = io.BytesIO()
        FigureCanvasAgg(attention_picture(networks, image)).print_png(buffer)
        pictures.append(_picture(f"{image.name}: {', '.join(labels_of(networks))}", buffer.getvalue()))
    return pictures


def networks_of(work_dir: Path, allow_imports: bool = False) -> list[TrainedNetwork]:
    """Open all checkpoints, one an epoch: the best one is often one of the last, too.

    Raises:
        ValueError: there is none, or one cannot be read.
    """
    files = sorted(work_dir.glob("*.pth"), key=lambda file: (file.stem.startswith("best_"), file.name))
    networks: dict[int, TrainedNetwork] = {}
    for file in files:
        if _EPOCH.search(file.stem):
            network = open_checkpoint(file, allow_imports)
            networks.setdefault(network.step, network)
    if not networks:
        raise ValueError(
            f"{work_dir} holds no checkpoint (epoch_*.pth, best_*.pth) to draw the attention maps of --images with; "
            "leave --images out, or give a work folder whose checkpoints are still there"
        )
    return list(networks.values())


def _picture(caption: str, png: bytes) -> Picture:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image.load()
        return Picture(caption, png, *image.size)
