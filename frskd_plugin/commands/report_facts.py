"""Facts of a run: its config, method and settings, progress, dates, versions, and its pictures of attention maps."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from frskd_plugin.commands.attention_maps import TrainedNetwork, attention_picture, in_order, labels_of
from frskd_plugin.commands.console import progress
from frskd_plugin.commands.report_logs import RunLogs, position_text

# of AttentionPictureHook, and of tools/attention_maps.py where it was told to draw into the work folder
_FOLDERS = ("attention", "attention_maps")
_EPOCH = re.compile(r"(epoch|iter)_(\d+)")


class Picture(NamedTuple):
    """A picture of attention maps: its image and epochs, and the PNG file's bytes."""

    caption: str
    png: bytes


def part(settings: Any, *keys: str) -> dict[str, Any]:
    """Return the dict at nested keys, an empty one where there is none.

    >>> part({"model": {"student": {"depth": 10}}}, "model", "student"), part({"model": 3}, "model", "student")
    ({'depth': 10}, {})
    """
    for key in keys:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings if isinstance(settings, dict) else {}


def facts_of(run: RunLogs, config: dict[str, Any]) -> dict[str, str]:
    """Collect title -> text from logs and config; what is not known is left out."""
    log = run.text_logs[-1]
    # tools/train.py writes them; that of an exported student lies beside its weights
    copies = [file for file in run.work_dir.glob("*.py") if not file.with_suffix(".pth").exists()]
    copies.sort(key=lambda file: file.stat().st_mtime)
    length = part(config, "train_cfg").get({"epoch": "max_epochs", "iteration": "max_iters"}[run.unit])
    length = length if isinstance(length, int) else None
    seconds = run.training["time"].values if "time" in run.training else np.empty(0)
    seconds = seconds[np.isfinite(seconds)]
    median = f"{np.median(seconds):.3g} s (median of {len(seconds)} logged values)" if len(seconds) else ""
    facts = {
        "state": state_of(run, length),
        "config": copies[-1].stem if copies else "",
        **_model_facts(part(config, "model")),
        "optimizer": _settings_text(part(config, "optim_wrapper", "optimizer")),
        "batch size per process": str(part(config, "train_dataloader").get("batch_size") or ""),
        "seed": log.facts.get("seed", ""),
        f"{run.unit}s": position_text(run.reached) + (f" of {length}" if length else ""),
        "started": run.text_logs[0].begin or "",
        "last log entry": log.end or "",
        "starts": f"{len(run.folders)}, the last in {run.folders[-1].name}" if len(run.folders) > 1 else "",
        "time per training step": median,
    }
    return {key: text for key, text in (facts | log.facts).items() if text}


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


def _settings_text(settings: dict[str, Any]) -> str:
    words = [f"{str(key).replace('_', ' ')} {value}" for key, value in settings.items() if key != "type"]
    return ", ".join([str(settings["type"]), *words]) if "type" in settings else ""


def _model_facts(model: dict[str, Any]) -> dict[str, str]:
    if not model:
        return {}
    if model.get("type") == "TimmClassifier":
        student, settings = part(model, "student").get("model_name"), part(model, "method")
        name = settings.get("name", "baseline")
    else:
        parts = [model.get("backbone"), model.get("decode_head")]
        parts = [p[0] if isinstance(p, (list, tuple)) and p else p for p in parts]  # a cascade has several heads
        networks = [str(p.get("model_name") or p.get("type")) for p in parts if isinstance(p, dict)]
        teacher, neck = part(model, "self_teacher"), part(model, "self_teacher", "neck")
        student, name = ", ".join(networks) or model.get("type"), "frskd" if teacher else "baseline"
        settings = part(teacher, "loss_distill") | {key: neck[key] for key in ("width", "channels") if key in neck}
    texts = {str(key): str(value) for key, value in settings.items() if key not in ("name", "type")}
    return {"student": str(student), "method": str(name), **texts}


def found_pictures(work_dir: Path) -> tuple[list[Picture], list[str]]:
    """Read the pictures in the work folder, image by image, and those of an image by epoch.

    Returns:
        The pictures, and a remark for each file that is no whole PNG: a run under way may be writing it.
    """
    found, remarks = [], []
    for file in (file for name in _FOLDERS for file in (work_dir / name).glob("**/*.png") if file.is_file()):
        match = _EPOCH.fullmatch(file.parent.name)
        when = f"{'epoch' if match[1] == 'epoch' else 'iteration'} {match[2]}" if match else ""
        when = "end of the training" if file.parent.name == _FOLDERS[0] else when
        order = (file.stem, file.parent.name in _FOLDERS, int(match[2]) if match else 0, str(file))
        try:
            png = file.read_bytes()
            with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises
            remarks.append(f"The picture {file} is left out, because it is no whole PNG file ({error}).")
        else:
            found.append((order, Picture(f"{file.stem}, {when}" if when else file.stem, png)))
    return [picture for _, picture in sorted(found)], remarks


def drawn_pictures(work_dir: Path, images: Sequence[Path], allow_imports: bool = False) -> list[Picture]:
    """Draw each image with all checkpoints that are still in the work folder, epochs ascending."""
    files = sorted(work_dir.glob("*.pth"), key=lambda file: (file.stem.startswith("best_"), file.name))
    opened = [TrainedNetwork(file, allow_imports) for file in files if _EPOCH.search(file.stem)]
    # one an epoch: the best one is often one of the last, too
    networks = in_order(list({network.step: network for network in reversed(opened)}.values()))
    if not networks:
        raise ValueError(
            f"{work_dir} holds no checkpoint (epoch_*.pth, best_*.pth) to draw the attention maps of --images with; "
            "leave --images out, or give a work folder whose checkpoints are still there"
        )
    pictures = []
    for image in progress(images, "drawing", "images"):
        if not image.is_file():
            raise FileNotFoundError(f"image {image} not found; expected an image file behind --images")
        buffer = io.BytesIO()
        attention_picture(networks, image).savefig(buffer, format="png")
        pictures.append(Picture(f"{image.name}: {', '.join(labels_of(networks))}", buffer.getvalue()))
    return pictures
