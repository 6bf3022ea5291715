"""The paper's tables, read from ``reproduce.json``, and the trainings that each of their cells needs."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from frskd_plugin.commands.config import load_config

_PAPER = json.loads(Path(__file__).with_name("reproduce.json").read_text(encoding="utf-8"))
SCORE_LABELS: dict[str, str] = _PAPER["scores"]
TEACHER_OF: dict[str, str] = _PAPER["teacher_of"]  # the network that teaches in Table 7, for images of each size
IMAGES_PER_CLASS = "images_per_class"
# methods whose weights depend on the data set: the configs hold them under `frskd`, the rest is the same for all
WEIGHTED = ("frskd", "frskd_sla")
FOR_ALL = {"temperature": 4.0, "width": 2}


@dataclass(frozen=True)
class Score:
    """A number of the paper, in percent of the last epoch; ``std`` is None where a single run is reported."""

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class Row:
    """A method with its settings.

    Attributes:
        key: short name, for the command line.
        label: as the paper names it.
        method: name of the method.
        settings: what differs from the method's defaults, or from the data set's own weights of FRSKD.
        epochs: settings that count epochs of the paper's schedule, and shrink with it.
        recipe: end of the config's name: 'mixup', 'cutmix' or nothing.
        has_teacher: a pretrained network teaches.
        ratios: of Table 6, self-teacher over classifier: parameters, FLOPs.
        imports: modules that register the method, where it is a user's own.
    """

    key: str
    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: Mapping[str, int] = field(default_factory=dict)
    recipe: str = ""
    has_teacher: bool = False
    ratios: Sequence[float] = ()
    imports: Sequence[str] = ()


@dataclass(frozen=True)
class Column:
    """A score of a network on a data set.

    >>> Column.of("imagenet/resnet18/top5").label
    'ImageNet, ResNet18, top-5 accuracy'
    """

    data: str
    model: str
    score: str = "top1"

    @classmethod
    def of(cls, name: str) -> Column:
        """Read ``data/model`` or ``data/model/score``."""
        return cls(*name.split("/"))

    @property
    def label(self) -> str:
        """Its title; top-1 goes without saying."""
        parts = [_PAPER["data"][self.data], _PAPER["models"][self.model]]
        return ", ".join(parts + ([] if self.score == "top1" else [SCORE_LABELS[self.score]]))


@dataclass(frozen=True)
class Table:
    """A table, or the grid behind a figure.

    Attributes:
        name: as on the command line.
        title: what it compares.
        rows: its methods.
        columns: its data sets and networks.
        scores: the paper's numbers, (row's key, column) -> number.
        seeds: of its runs, as many as the paper has.
        notes: what a reader has to know.
    """

    name: str
    title: str
    rows: Sequence[Row]
    columns: Sequence[Column]
    scores: Mapping[tuple[str, Column], Score]
    seeds: Sequence[int]
    notes: Sequence[str]

    @property
    def is_segmentation(self) -> bool:
        """Its configs are segmentors, a file for each row."""
        return any(column.data == "voc" for column in self.columns)

    def chosen(
        self,
        datasets: Sequence[str] | None = None,
        models: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
    ) -> Table:
        """Return the part of it that the names leave; None leaves all.

        Raises:
            ValueError: a name that the table does not have, or nothing is left.
        """
        rows, columns = self.rows, self.columns
        for option, names, known in (
            ("--datasets", datasets, [column.data for column in columns]),
            ("--models", models, [column.model for column in columns]),
            ("--methods", methods, [row.key for row in rows]),
        ):
            unknown = [name for name in names or () if name not in known]
            if unknown:
                has = ", ".join(dict.fromkeys(known))
                raise ValueError(f"{option}: {self.name} has no {', '.join(unknown)}; it has {has}.")
        columns = [c for c in columns if c.data in (datasets or [c.data]) and c.model in (models or [c.model])]
        if not columns:
            pairs = ", ".join(dict.fromkeys(f"{c.data} with {c.model}" for c in self.columns))
            raise ValueError(f"{self.name} has none of these data sets with one of these models; it has {pairs}.")
        return replace(self, rows=[row for row in rows if row.key in (methods or [row.key])], columns=columns)


def read_table(name: str, content: Mapping[str, Any]) -> Table:
    """Read a table of ``reproduce.json``.

    Raises:
        ValueError: a row has more or fewer numbers than there are columns.
    """
    columns = [Column.of(column) for column in content["columns"]]
    rows, scores = [], {}
    for row in content["rows"]:
        numbers = row.get("scores", "").split()
        rows.append(Row(**{key: value for key, value in row.items() if key != "scores"}))
        if "scores" in row and len(numbers) != len(columns):
            raise ValueError(
                f"{name}, {row['key']}: {len(numbers)} numbers, expected one for each of {len(columns)} columns"
            )
        for column, number in zip(columns, numbers, strict=False):
            scores[row["key"], column] = Score(*map(float, number.split("±")))
    return Table(name, content["title"], rows, columns, scores, content["seeds"], content["notes"])


TABLES = {name: read_table(name, content) for name, content in _PAPER["tables"].items()}


@dataclass(frozen=True)
class Scale:
    """How a run differs from the paper's; nothing is the paper's own.

    Attributes:
        epochs: instead of the config's; the steps of its schedule move in proportion.
        images_per_class: only the first so many of each class are trained on (CIFAR-100).
        options: further settings of the config, ``key=value``.
        arguments: further arguments of train, such as ``--compile``.
    """

    epochs: int | None = None
    images_per_class: int | None = None
    options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    @property
    def is_paper(self) -> bool:
        """The runs are comparable with the paper's numbers."""
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
        arguments: further arguments of train: precision, compile, memory format.
        seed: of the run.
        teacher: the run whose network teaches.
        device: kind of it, 'cpu' or 'cuda'.
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
    device: str = "cpu"

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the result, but the seed."""
        return {**self.old_identity, "teacher": self.teacher and self.teacher.name, "device": self.device}

    @property
    def old_identity(self) -> dict[str, Any]:
        """As records have it that were written before the device belonged to it."""
        return {
            "config": self.config,
            "model": self.model,
            "method": self.method,
            "settings": dict(self.settings),
            "epochs": self.epochs,
            "options": list(self.options),
            "arguments": list(self.arguments),
            "teacher": self.teacher and f"{self.teacher.old_stem}_seed{self.teacher.seed}",
        }

    @property
    def setup(self) -> str:
        """Data set, network and method."""
        if self.method is None:
            return self.config
        setup = self.config.removeprefix("baseline_")
        if self.model not in setup:  # a teacher, of the student's config
            setup = f"{self.data}_{self.model}"
        return f"{setup}_{self.method}"

    @property
    def stem(self) -> str:
        """The name without the seed: for a reader, and eight digits of a checksum of the `identity`."""
        settings = {
            k: v for k, v in flat(self.settings).items() if FOR_ALL.get(k) != v and not k.startswith("teacher.")
        }
        words = [f"{k}{v:g}" if isinstance(v, (int, float)) else str(v) for k, v in settings.items()]
        words += [argument.lstrip("-") for argument in self.arguments if argument != "--amp-dtype"]
        return "_".join([self.setup, *words, f"{self.epochs}epochs", self.device, checksum(self.identity)])

    @property
    def old_stem(self) -> str:
        """As `old_identity`."""
        return f"{self.setup}_{checksum(self.old_identity)}"

    @property
    def name(self) -> str:
        """Of its folder and its record."""
        return f"{self.stem}_seed{self.seed}"


def checksum(value: Any, digits: int = 8) -> str:
    """Return the first digits of the SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write nested settings with dots.

    >>> flat({"beta": 100.0, "teacher": {"model_name": "resnet34"}})
    {'beta': 100.0, 'teacher.model_name': 'resnet34'}
    """
    found = {}
    for key, value in settings.items():
        nested = {f"{key}.{name}": inner for name, inner in flat(value).items()} if isinstance(value, Mapping) else {}
        found.update(nested or {key: value})
    return found


@functools.cache
def read_leaf(config: str) -> Config:
    """Read a config by its name, with the recipe that ends it; not to be changed."""
    return load_config(config)


def plan_cell(table: Table, row: Row, column: Column, scale: Scale, seed: int, device: str) -> Run:
    """Plan the run behind a cell of a table.

    Raises:
        ValueError: the data set does not know ``images_per_class``.
    """
    if table.is_segmentation:
        config, method, settings = f"{row.method}_{column.data}_{column.model}", None, {}
    else:
        config = "_".join(filter(None, ["baseline", column.data, column.model, row.recipe]))
        method, settings = row.method, method_settings(row, config, scale)
    teacher = plan_teacher(column, scale, device) if row.has_teacher else None
    if teacher is not None:
        settings = {**settings, "teacher": {"model_name": teacher.model}}
    epochs = scale.epochs or read_leaf(config).train_cfg.max_epochs
    arguments = (*(["--import", *row.imports] if row.imports else []), *scale.arguments)
    options = config_options(config, scale)
    return Run(config, column.data, column.model, method, settings, epochs, options, arguments, seed, teacher, device)


def plan_teacher(column: Column, scale: Scale, device: str) -> Run:
    """Plan the run that makes the pretrained teacher of a data set, one for all seeds: the baseline of a ResNet34."""
    model, config = TEACHER_OF[column.model], f"baseline_{column.data}_{column.model}"
    options = (*config_options(config, scale), f"model.student.model_name={model}")
    epochs = scale.epochs or read_leaf(config).train_cfg.max_epochs
    return Run(config, column.data, model, "baseline", {}, epochs, options, scale.arguments, device=device)


def plan_table(table: Table, scale: Scale, seeds: Sequence[int], device: str) -> list[Run]:
    """Plan every run of a table once, seed by seed, teachers before their students.

    Raises:
        ValueError: see `plan_cell`.
    """
    runs: dict[str, Run] = {}
    for seed in seeds:
        for column in table.columns:
            for row in table.rows:
                run = plan_cell(table, row, column, scale, seed, device)
                for needed in (run.teacher, run):
                    if needed is not None:
                        runs.setdefault(needed.name, needed)
    return list(runs.values())


def method_settings(row: Row, config: str, scale: Scale) -> dict[str, Any]:
    """Return a row's settings on the data set of a config; those that count epochs shrink with the schedule."""
    leaf = read_leaf(config)
    weights = {**FOR_ALL, **leaf.frskd} if row.method in WEIGHTED else {}
    if "channels" in row.settings:  # the BiFPN of one width
        weights.pop("width", None)
    share = (scale.epochs or leaf.train_cfg.max_epochs) / leaf.train_cfg.max_epochs
    counted = {key: round(epochs * share) for key, epochs in row.epochs.items()}
    return {**weights, **row.settings, **counted}


def config_options(config: str, scale: Scale) -> tuple[str, ...]:
    """Return what the scale changes in a config, as ``key=value``.

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
    """Write the epochs after which the learning rate falls, at the same shares of a shorter schedule: '[4,6]'."""
    share = (scale.epochs or leaf.train_cfg.max_epochs) / leaf.train_cfg.max_epochs
    steps = dict.fromkeys(max(1, round(step * share)) for step in leaf.param_scheduler.milestones)
    return f"[{','.join(map(str, steps))}]"
