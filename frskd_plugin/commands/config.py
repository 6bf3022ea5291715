"""Make the config of a run, in one pass: its file, the command line, the method and what it needs of the data."""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import OPTIMIZERS

import frskd_plugin
from frskd_plugin.commands.arguments import add_settings
from frskd_plugin.mmengine.config_tools import is_classifier, override, read_config, set_data_root
from frskd_plugin.mmengine.distributed import prepare_distributed
from frskd_plugin.mmengine.method_data import method_name, provide_method_data, set_method
from frskd_plugin.mmengine.resume import resume_state
from frskd_plugin.mmengine.stored_config import parse_config

RECIPES = ("strong", "mixup", "cutmix")
# Setting -> its least value, and the kind of number.
NUMBERS: dict[str, tuple[int, str]] = {
    **dict.fromkeys(("train_cfg.max_epochs", "train_cfg.max_iters", "train_cfg.val_interval"), (1, "an int")),
    **{f"{loop}_dataloader.batch_size": (1, "an int") for loop in ("train", "val", "test")},
    **{f"{loop}_dataloader.num_workers": (0, "an int") for loop in ("train", "val", "test")},
    "optim_wrapper.accumulative_counts": (1, "an int"),
    "randomness.seed": (0, "an int"),
    **{f"optim_wrapper.optimizer.{name}": (0, "a number") for name in ("lr", "weight_decay", "momentum")},
}
GRAPH_LOOPS = ("EpochBasedTrainLoop", "GraphTrainLoop")
# With these an optimizer reads its learning rate from the device, and keeps no number of its own on the host.
FUSED_OPTIMIZERS = {
    "SGD": {"fused": True},
    "Adam": {"fused": True, "capturable": True},
    "AdamW": {"fused": True, "capturable": True},
}
# Settings of mmengine's schedulers, some of which are used only after hours of training.
SCHEDULE_NUMBERS = {"gamma", "begin", "T_max", "start_factor", "end_factor", "factor", "power", "step_size"}


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add ``config`` and the options of every command that runs a config."""
    add = parser.add_argument
    add("config", help="config file, such as configs/frskd_voc_effdet_d0.py; one of the package is found anywhere")
    add("--work-dir", help="folder of logs and checkpoints (the config's, or work_dirs/<config, recipe, method>)")
    add("--data-root", help="folder of the data set; sets every data_root in the config")
    text = "settings that override the config: key=value, nested as a.b=value, lists as key='[a,b]' or key=a,b"
    add_settings(parser, "--cfg-options", text)
    add_import_option(parser)
    add("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="job launcher")
    add("--local_rank", "--local-rank", type=int, default=0, help="set by the launcher")


def add_import_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--import``, for `import_modules`."""
    text = (
        "modules to import first, which register methods and components of yours: in this folder, beside the config or "
        "on PYTHONPATH"
    )
    parser.add_argument("--import", nargs="+", dest="imports", default=[], metavar="MODULE", help=text)


def import_modules(names: Sequence[str], *folders: str | Path) -> None:
    """Import modules by name, from `folders`, the current folder and wherever Python looks."""
    places = list(dict.fromkeys(str(Path(folder).resolve()) for folder in (*folders, ".")))
    sys.path.extend(place for place in places if names and place not in sys.path)  # last: they must not hide others
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            reason = f"it needs a module that is missing: {error}"
            if name and f"{name}.".startswith(f"{error.name}."):
                reason = f"there is no such module in {', '.join(places)} or on PYTHONPATH; give its name, without .py"
            raise ImportError(f"--import {name}: {reason}") from error
        except Exception as error:
            raise ImportError(f"--import {name}: importing it fails with {type(error).__name__}: {error}") from error


def prepare_config(args: argparse.Namespace, training: bool = False) -> Config:
    """Return the config of a run with the command line's settings in it, to train or to test a checkpoint.

    Args:
        args: options of `add_common_options`; for ``training`` those of `frskd train` too.

    Raises:
        FileNotFoundError: the config, the data or a checkpoint that it names is not there.
        ValueError: an option or a setting has a wrong name or value.
    """
    _check_options(args)
    import_modules(args.imports, Path(args.config).parent)
    config = load_config(args.config, args.recipe if training else None)
    config.launcher = args.launcher
    if args.data_root is not None and set_data_root(config, args.data_root) == 0:
        raise ValueError(f"--data-root: {args.config} has no data_root to set; set the paths with --cfg-options")
    override(config, args.cfg_options or {})
    named = [Path(args.config).stem]
    if training:
        named += [args.recipe] if args.recipe else []
        if is_classifier(config):
            config.recipe = args.recipe or locate_config(args.config)[1]  # `_set_resume` compares it
        if args.method is not None or args.method_options is not None:
            named += [args.method] if set_method(config, args.method, args.method_options or {}) else []
    # Command line, then config, then the name of the config: the order that mmseg's users know.
    config.work_dir = args.work_dir or config.get("work_dir") or f"work_dirs/{'_'.join(named)}"
    if missing := [key for key in ("model", f"{'train' if training else 'test'}_dataloader") if not config.get(key)]:
        raise ValueError(f"{args.config} has no {' and no '.join(missing)}: give the config of a training, not a part")
    _check_values(config)
    if is_classifier(config):
        provide_method_data(config)
    if training:
        _set_speed(config, args)
        _set_randomness(config, args)
        if args.resume:
            _set_resume(config, explicit="load_from" in (args.cfg_options or {}))
        source = config.get("load_from")
        if source is not None and "://" not in str(source) and not Path(str(source)).is_file():
            raise FileNotFoundError(f"load_from: {source} not found; expected a checkpoint file")
    if args.launcher != "none":
        prepare_distributed(config)
    return config


def _check_options(args: argparse.Namespace) -> None:
    """Refuse folders that are not there and names that are empty, before anything is read."""
    for option in ("config", "work_dir", "data_root"):
        if getattr(args, option) == "":
            raise ValueError(f"{option.replace('_', '-')} is empty; expected a path")
    if args.data_root is not None and not Path(args.data_root).is_dir():
        raise FileNotFoundError(f"--data-root: {args.data_root} is not a folder; expected the data set's root folder")
    if args.work_dir is not None and Path(args.work_dir).exists() and not Path(args.work_dir).is_dir():
        raise ValueError(f"--work-dir: {args.work_dir} is a file; expected a folder, which may be new")
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))


def load_config(path: str | Path, recipe: str | None = None) -> Config:
    """Read a config, found by `locate_config`, with a recipe laid over it; None takes what the file's name asks for.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: it cannot be read, or the recipe does not exist or fit it.
    """
    path, named = locate_config(path)
    if recipe and named and recipe != named:
        raise ValueError(f"--recipe {recipe}: the config is of the recipe {named} already; leave one of them out")
    recipe, plain = recipe or named, read_config(path)
    if recipe is None:
        return plain
    overlay = find_file(f"configs/_base_/recipes/{recipe}.py")
    if overlay is None:
        raise ValueError(f"--recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
    if not is_classifier(plain):
        raise ValueError(f"--recipe {recipe} is for classifiers, and {path} trains none; leave it out")
    try:
        text = f"_base_ = {str(path.resolve())!r}\n{overlay.read_text(encoding='utf-8')}"
        merged = Config.fromstring(text, file_format=".py")
    except Exception as error:  # mmengine's, where the config lacks what the recipe builds on
        raise ValueError(f"--recipe {recipe} does not fit {path}: {error}") from error
    return Config(merged.to_dict(), filename=plain.filename)


def locate_config(path: str | Path) -> tuple[Path, str | None]:
    """Return the file of a config, and the recipe that its name asks for.

    A file that is not there is looked for among the package's configs, with ``configs/`` and ``.py`` or without;
    ``NAME_strong``, where there is none, is ``NAME`` with the recipe ``strong``.

    >>> path, recipe = locate_config("frskd_cub200_resnet18_strong")
    >>> path.name, recipe
    ('frskd_cub200_resnet18.py', 'strong')
    """
    path = Path(path)
    if path.exists():
        return path, None
    name = path.name.removesuffix(".py")
    base, _, ending = name.rpartition("_")
    found, plain = find_file(f"configs/{name}.py"), find_file(f"configs/{base}.py")
    if found is None and plain is not None and ending in RECIPES:
        return plain, ending
    return found or path, None


def find_file(name: str) -> Path | None:
    """Return a file of ``configs/`` or ``tools/`` in the checkout or the wheel; None where there is none."""
    package = Path(frskd_plugin.__file__).parent
    return next((folder / name for folder in (package.parent, package / ".mim") if (folder / name).is_file()), None)


def _check_values(config: Config) -> None:
    """Refuse numbers that mmengine would only stumble over, or silently misread, once the training runs."""
    for name, (least, kind) in NUMBERS.items():
        value = _setting(config, name)
        kinds = (int,) if kind == "an int" else (int, float)
        # `not >=` also refuses NaN
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not value >= least):
            raise ValueError(f"{name} must be {kind} >= {least}, got {value!r}")
    level = config.get("log_level", "INFO")
    if not isinstance(level, int) and not isinstance(logging.getLevelName(level), int):
        raise ValueError(f"log_level must be one of DEBUG, INFO, WARNING, ERROR, got {level!r}")
    if not isinstance(config.get("resume", False), (bool, type(None))):
        raise ValueError(f"resume must be True or False, got {config.resume!r}")
    schedulers = config.get("param_scheduler") or []
    for scheduler in schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]:
        if not isinstance(scheduler, Mapping):
            continue  # of several optimizers, by name
        for name in SCHEDULE_NUMBERS & scheduler.keys():
            if isinstance(scheduler[name], bool) or not isinstance(scheduler[name], (int, float, type(None))):
                raise ValueError(f"param_scheduler.{name} must be a number, got {scheduler[name]!r}")
        steps = scheduler.get("milestones", ())
        if not isinstance(steps, (list, tuple)) or not all(isinstance(step, int) for step in steps):
            raise ValueError(f"param_scheduler.milestones must be a list of ints, such as [100,150], got {steps!r}")
    name = _setting(config, "optim_wrapper.optimizer.type")
    with OPTIMIZERS.switch_scope_and_registry(config.get("default_scope")) as registry:
        if isinstance(name, str) and registry.get(name) is None:
            near = difflib.get_close_matches(name, OPTIMIZERS.module_dict, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"optim_wrapper.optimizer.type: there is no optimizer {name!r}{hint}")


def _setting(config: Any, name: str) -> Any:
    """Return a nested setting; None where there is none."""
    for part in name.split("."):
        config = config.get(part) if isinstance(config, (Mapping, Config)) else None
    return config


def _set_speed(config: Config, args: argparse.Namespace) -> None:
    """Set mixed precision, memory format and compilation, the last two by a classifier's settings or others' hooks."""
    if args.amp or args.amp_dtype:
        _enable_amp(config, args.amp_dtype)
    for setting, hook in (("channels_last", "ChannelsLastHook"), ("compile", "CompileHook")):
        if getattr(args, setting) and is_classifier(config):
            config.model[setting] = True
        elif getattr(args, setting):
            config.custom_hooks = [*(config.get("custom_hooks") or []), dict(type=hook)]
    if args.cuda_graph != "off":
        enable_cuda_graph(config, args.cuda_graph)


def enable_cuda_graph(config: Config, choice: str) -> None:
    """Give a classifier that trains by epochs on CUDA the `GraphTrainLoop`, and an optimizer that a graph can capture.

    Any other config is left as it is by 'auto', and refused (ValueError) by 'on'.
    """
    loop = config.get("train_cfg") or {}
    kind = loop.get("type", "EpochBasedTrainLoop" if loop.get("by_epoch", True) else "IterBasedTrainLoop")
    reasons = {
        "CUDA is not available here": not torch.cuda.is_available(),
        "the config's model is no TimmClassifier": not is_classifier(config),
        f"train_cfg.type={kind!r} does not count epochs": kind not in GRAPH_LOOPS,
    }
    if any(reasons.values()):
        if choice == "on":
            found = "; ".join(reason for reason, holds in reasons.items() if holds)
            raise ValueError(f"--cuda-graph on: {found}. Leave it out")
        return
    loop.pop("by_epoch", None)
    loop.update(type="GraphTrainLoop", graph=choice)
    optimizer = (config.get("optim_wrapper") or {}).get("optimizer") or {}
    if not optimizer.keys() & {"fused", "foreach", "capturable", "differentiable"}:
        optimizer.update(FUSED_OPTIMIZERS.get(str(optimizer.get("type")), {}))


def _enable_amp(config: Config, dtype: str | None) -> None:
    """Scale the loss in fp16, or autocast alone in bf16; None takes the device's: bf16 on CPUs."""
    wrapper = config.get("optim_wrapper")
    if not isinstance(wrapper, dict):
        raise ValueError("--amp needs an optim_wrapper in the config, which has none")
    kind = wrapper.get("type", "OptimWrapper")
    if kind in ("AmpOptimWrapper", "AutocastOptimWrapper"):
        print_log(f"--amp: the config already trains with {kind}.", logger="current", level=logging.WARNING)
        return
    if kind != "OptimWrapper":
        raise ValueError(f"--amp needs optim_wrapper.type='OptimWrapper' in the config, got {kind!r}")
    cuda = torch.cuda.is_available()
    if dtype == "fp16" and not cuda:
        raise ValueError("--amp-dtype fp16 needs CUDA, which is not available here; use --amp-dtype bf16")
    if dtype == "fp16" or (dtype is None and cuda):
        wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic")
    else:
        wrapper.update(type="AutocastOptimWrapper", dtype="bfloat16")


def _set_randomness(config: Config, args: argparse.Namespace) -> None:
    randomness = dict(config.get("randomness") or {})
    if args.seed is not None:
        randomness["seed"] = args.seed
    if args.deterministic:
        randomness["deterministic"] = True
        # Read by cuBLAS when it is first used; without it torch refuses deterministic matrix products on CUDA.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    config.randomness = {"seed": None, **randomness}


def _set_resume(config: Config, explicit: bool) -> None:
    """Choose the checkpoint to go on from; one of another method or recipe is refused."""
    config.resume = True
    if explicit:  # --cfg-options load_from=FILE names it, as in mmseg
        return
    state = resume_state(config.work_dir)
    if state is None:
        config.resume = False  # the config's own load_from is what the run starts from
        return
    path, meta = state
    if is_classifier(config) and isinstance(meta.get("cfg"), str):
        trained = Config(parse_config(meta["cfg"], str(path)))
        kinds = {"method": (method_name(trained), method_name(config))}
        if "recipe" in trained:  # not in what version 0.1 wrote
            kinds["recipe"] = (trained.recipe, config.recipe)
        for kind, (before, now) in kinds.items():
            if before != now:
                raise ValueError(
                    f"--resume: {path} was trained with the {kind} {before!r}, and this run is to train with {now!r}: "
                    f"give another --work-dir, or --overwrite in place of --resume to start again in this one"
                )
    config.load_from = str(path)
    # The data order is made before mmengine reads the seed from the checkpoint.
    if config.randomness["seed"] is None:
        config.randomness["seed"] = meta.get("seed")
