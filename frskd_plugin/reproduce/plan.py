"""Which trainings a table needs, each with the settings that decide its result and a name that follows from them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

import frskd_plugin
from frskd_plugin.reproduce.tables import BASELINE, TEACHER_OF, Column, Row, Table

IMAGES_PER_CLASS = "images_per_class"
# methods whose weights depend on the data set: the configs hold them under `frskd`, the rest is the same for all
WEIGHTED = ("frskd", "frskd_sla")
FOR_ALL = {"temperature": 4.0, "width": 2}


@dataclass(frozen=True)
class Scale:
    """How a run differs from the paper's; nothing is the paper's own.

    Attributes:
        epochs: instead of the config's; the steps of its schedule move in proportion.
        images_per_class: only the first so many of each class are trained on (CIFAR-100).
        options: further settings of the config, ``key=value``.
        arguments: further arguments of tools/train.py, such as ``--amp``.
    """

    epochs: int | None = None
    images_per_class: int | None = None
    options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    @property
    def is_paper(self) -> bool:
        """Whether the runs are comparable with the paper's numbers."""
        return self == Scale()


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        config: name of the config file, without folder and ending.
        data: name of the data set.
        model: name of the network.
        method: name of the method, None where the config decides (segmentors).
        settings: of the method.
        epochs: in all.
        options: settings of the config, ``key=value``.
        arguments: further arguments of tools/train.py.
        seed: of the run.
        teacher: the run whose network teaches.
    """

    config: str
    data: str
    model: str
    method: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 200
    options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    seed: int = 0
    teacher: Run | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the result, but the seed."""
        return {
            "config": self.config,
            "model": self.model,
            "method": self.method,
            "settings": dict(self.settings),
            "epochs": self.epochs,
            "options": list(self.options),
            "arguments": list(self.arguments),
            "teacher": self.teacher and self.teacher.name,
        }

    @property
    def stem(self) -> str:
        """The name without the seed: for a reader, and eight digits of a checksum of the `identity`."""
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]
        if self.method is None:
            return f"{self.config}_{digest}"
        setup = self.config.removeprefix("baseline_")
        if self.model not in setup:  # a teacher, of the student's config
            setup = f"{self.data}_{self.model}"
        return f"{setup}_{self.method}_{digest}"

    @property
    def name(self) -> str:
        """Of its folder and its record."""
        return f"{self.stem}_seed{self.seed}"


def find_recipe(name: str) -> Path:
    """A file of ``configs/`` or ``tools/``, from the checkout or the wheel.

    Raises:
        FileNotFoundError: it is in neither.
    """
    package = Path(frskd_plugin.__file__).parent
    folders = (package.parent, package / ".mim")
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{name} was not found in {folders[0]} or {folders[1]}: install the package anew.")
    return found


@functools.cache
def read_leaf(config: str) -> Config:
    """A config by its name; not to be changed."""
    return Config.fromfile(find_recipe(f"configs/{config}.py"))


def plan_cell(table: Table, row: Row, column: Column, scale: Scale, seed: int) -> Run:
    """The run behind a cell of a table.

    Raises:
        ValueError: the data set does not know ``images_per_class``.
    """
    if table.is_segmentation:
        config, method, settings = f"{row.method}_{column.data}_{column.model}", None, {}
    else:
        config = "_".join(filter(None, ["baseline", column.data, column.model, row.recipe]))
        method, settings = row.method, method_settings(row, config, scale)
    teacher = plan_teacher(column, scale) if row.has_teacher else None
    if teacher is not None:
        settings = {**settings, "teacher": {"model_name": teacher.model}}
    return Run(
        config,
        column.data,
        column.model,
        method,
        settings,
        scale.epochs or read_leaf(config).train_cfg.max_epochs,
        config_options(config, scale),
        scale.arguments,
        seed,
        teacher,
    )


def plan_teacher(column: Column, scale: Scale) -> Run:
    """The run that makes the pretrained teacher of a data set, one for all seeds: the baseline of a ResNet34."""
    model = TEACHER_OF[column.model]
    config = f"baseline_{column.data}_{column.model}"
    options = (*config_options(config, scale), f"model.student.model_name={model}")
    epochs = scale.epochs or read_leaf(config).train_cfg.max_epochs
    return Run(config, column.data, model, BASELINE.method, {}, epochs, options, scale.arguments)


def plan_table(table: Table, scale: Scale, seeds: Sequence[int]) -> list[Run]:
    """Every run of a table once, seed by seed, teachers before their students.

    Raises:
        ValueError: see `plan_cell`.
    """
    runs: dict[str, Run] = {}
    for seed in seeds:
        for column in table.columns:
            for row in table.rows:
                run = plan_cell(table, row, column, scale, seed)
                for needed in (run.teacher, run):
                    if needed is not None:
                        runs.setdefault(needed.name, needed)
    return list(runs.values())


def paper_epochs(table: Table) -> int:
    """Epochs of the paper's schedule, which all columns of a table share."""
    return plan_cell(table, table.rows[0], table.columns[0], Scale(), seed=0).epochs


def method_settings(row: Row, config: str, scale: Scale) -> dict[str, Any]:
    """A row's settings on the data set of a config; those that count epochs shrink with the schedule."""
    leaf = read_leaf(config)
    weights = {**FOR_ALL, **leaf.frskd} if row.method in WEIGHTED else {}
    if "channels" in row.settings:  # the BiFPN of one width
        weights.pop("width", None)
    share = (scale.epochs or leaf.train_cfg.max_epochs) / leaf.train_cfg.max_epochs
    counted = {key: round(epochs * share) for key, epochs in row.epochs.items()}
    return {**weights, **row.settings, **counted}


def config_options(config: str, scale: Scale) -> tuple[str, ...]:
    """What the scale changes in a config, as ``key=value``.

    Raises:
        ValueError: ``images_per_class`` on a data set that does not know it.
    """
    leaf, options = read_leaf(config), []
    full = leaf.train_cfg.max_epochs
    if scale.epochs is not None and scale.epochs != full:
        options += [f"train_cfg.max_epochs={scale.epochs}", f"param_scheduler.milestones={milestones(leaf, scale)}"]
        for index, hook in enumerate(leaf.custom_hooks):
            if hook["type"] == "DistillWarmupHook":
                begin = round(hook["begin"] * scale.epochs / full)
                options += [f"custom_hooks.{index}.begin={begin}", f"custom_hooks.{index}.end={scale.epochs}"]
    if scale.images_per_class is not None:
        if IMAGES_PER_CLASS not in leaf.train_dataloader.dataset:
            raise ValueError(
                f"--images-per-class: the data set of {config} is always trained on as a whole; leave the option out, "
                "or choose --datasets cifar100."
            )
        options.append(f"train_dataloader.dataset.{IMAGES_PER_CLASS}={scale.images_per_class}")
    return (*options, *scale.options)


def milestones(leaf: Config, scale: Scale) -> str:
    """The epochs after which the learning rate falls, at the same shares of a shorter schedule: '[4,6]'."""
    share = (scale.epochs or leaf.train_cfg.max_epochs) / leaf.train_cfg.max_epochs
    steps = dict.fromkeys(max(1, round(step * share)) for step in leaf.param_scheduler.milestones)
    return f"[{','.join(map(str, steps))}]"
