"""What a run is: config, method and its settings, seed, progress, dates, versions, seconds a step."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from statistics import median
from typing import Any

from mmengine.config import Config

from frskd_plugin.core.frskd_loss import FRSKDLoss
from frskd_plugin.core.self_teacher_neck import SelfTeacherNeck
from frskd_plugin.methods.registry import method_class, method_names
from frskd_plugin.mmengine.config_tools import is_classifier
from frskd_plugin.mmengine.stored_config import parse_config
from frskd_plugin.report.run_logs import RunLogs, position_text

Facts = dict[str, str]
# a method's settings that are told also where the config leaves them at their default
_SETTINGS = ("alpha", "beta", "temperature", "width")


def read_config_of(run: RunLogs) -> Config | None:
    """The config of the last start, which mmengine writes beside the JSON log; None where there is none.

    Raises:
        ValueError: it cannot be read.
    """
    file = run.folders[-1] / "vis_data" / "config.py"
    if not file.is_file():
        return None
    try:
        return Config(parse_config(file.read_text(), str(file)))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file} cannot be read: expected the config that mmengine wrote when the run started "
            f"({type(error).__name__}: {error}); remove the file, and the page leaves its facts out"
        ) from error


def facts_of(run: RunLogs, config: Config | None, result: dict[str, Any]) -> Facts:
    """Title -> text; what is not known is left out.

    Args:
        run: its logs.
        config: of `read_config_of`.
        result: of ``result.json``.
    """
    text_log = run.text_logs[-1]
    facts: Facts = {}
    name = result.get("config") or _config_name(run.work_dir)
    if name:
        facts["config"] = str(name)
    if config is not None:
        facts |= _model_facts(config.get("model") or {}, is_classifier(config)) | _recipe_facts(config)
    seed = result.get("seed", text_log.facts.get("seed"))
    if seed is not None:
        facts["seed"] = str(seed)
    facts |= _progress_facts(run, config)
    steps = [entry.values["time"] for entry in run.training if math.isfinite(entry.values.get("time", math.nan))]
    if steps:
        facts["time per training step"] = f"{median(steps):.3g} s (median of {len(steps)} logged values)"
    return facts | {key: value for key, value in text_log.facts.items() if key != "seed"}


def reached(run: RunLogs) -> float:
    """The position of the last entry, in the unit of the training's positions where they have the same."""
    entries = [*run.training[-1:], *(run.validation[-1:] if run.training_unit == run.validation_unit else ())]
    return max(entry.position for entry in entries or run.validation)


def length_of(config: Config | None) -> tuple[float, str] | None:
    """How long the config trains, and in which unit; None where that is not known."""
    loop = (config.get("train_cfg") if config is not None else None) or {}
    for key, unit in (("max_epochs", "epoch"), ("max_iters", "iteration")):
        if isinstance(loop.get(key), int):
            return loop[key], unit
    return None


def _config_name(work_dir: Path) -> str | None:
    """Of the newest config that tools/train.py copied into the work folder."""
    files = sorted(work_dir.glob("*.py"), key=lambda file: file.stat().st_mtime)
    return files[-1].stem if files else None


def _progress_facts(run: RunLogs, config: Config | None) -> Facts:
    unit, length = run.training_unit if run.training else run.validation_unit, length_of(config)
    total = f" of {length[0]}" if length and length[1] == unit else ""
    facts = {f"{unit}s": position_text(reached(run)) + total}
    begin, end = run.text_logs[0].begin, run.text_logs[-1].end
    if begin and end:
        facts |= {"started": begin, "last log entry": end}
    if len(run.folders) > 1:
        facts["starts"] = f"{len(run.folders)}, the last in {run.folders[-1].name}"
    return facts


def _model_facts(model: dict[str, Any], classifier: bool) -> Facts:
    if classifier:
        method = dict(model.get("method") or {"name": "baseline"})
        name = str(method.pop("name", "baseline"))
        defaults = _defaults(method_class(name)) if name in method_names() else {}
        settings = {key: defaults[key] for key in _SETTINGS if key in defaults} | method
        return {"student": str((model.get("student") or {}).get("model_name")), "method": name, **_texts(settings)}
    parts = [model.get("backbone") or {}, model.get("decode_head") or {}]
    parts = [part[0] if isinstance(part, (list, tuple)) else part for part in parts]  # a cascade has several heads
    networks = [str(part.get("model_name") or part.get("type")) for part in parts if part]
    facts = {"student": ", ".join(networks) or str(model.get("type"))}
    teacher = model.get("self_teacher")
    if not teacher:
        return {**facts, "method": "baseline"}
    loss, neck = (dict(teacher.get(key) or {}) for key in ("loss_distill", "neck"))
    settings = {key: value for key, value in _defaults(FRSKDLoss).items() if key in _SETTINGS} | loss
    if neck.get("type") == SelfTeacherNeck.__name__:
        scaled = neck.get("channels", "scaled") == "scaled"
        key = "width" if scaled else "channels"
        settings[key] = neck.get(key, _defaults(SelfTeacherNeck)[key])
    settings.pop("type", None)
    return {**facts, "method": "frskd", **_texts(settings)}


def _recipe_facts(config: Config) -> Facts:
    facts: Facts = {}
    optimizer = (config.get("optim_wrapper") or {}).get("optimizer") or {}
    if optimizer:
        settings = [f"{key.replace('_', ' ')} {value}" for key, value in optimizer.items() if key != "type"]
        facts["optimizer"] = ", ".join([str(optimizer.get("type")), *settings])
    batch_size = (config.get("train_dataloader") or {}).get("batch_size")
    if batch_size is not None:
        facts["batch size per process"] = str(batch_size)
    return facts


def _defaults(component: type) -> dict[str, Any]:
    parameters = inspect.signature(component).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _texts(settings: dict[str, Any]) -> Facts:
    return {key: "default" if value is None else str(value) for key, value in settings.items()}
