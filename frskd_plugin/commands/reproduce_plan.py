"""The paper's tables, read from ``reproduce.json``, and the trainings that each of their cells needs."""

from __future__ import annotations

import functools
import hashlib
import itertools
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
    """A method with its settings."""

    key: str  # short name, for the command line
    label: str  # as the paper names it
    method: str
    # differences to the method's defaults, or to the data set's own weights of FRSKD
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: Mapping[str, int] = field(default_factory=dict)  # settings that shrink with the paper's schedule
    recipe: str = ""  # 'mixup', 'cutmix' or nothing
    has_teacher: bool = False  # a pretrained network teaches
    ratios: Sequence[float] = ()  # of Table 6, self-teacher over classifier: parameters, FLOPs
    imports: Sequence[str] = ()  # modules that register the method, where it is a user's own


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
    """A table, or the grid behind a figure."""

    name: str  # as on the command line
    title: str
    rows: Sequence[Row]
    columns: Sequence[Column]
    scores: Mapping[tuple[str, Column], Score]  # the paper's numbers, by row's key and column
    seeds: Sequence[int]  # as many as the paper has
    notes: Sequence[str]  # what a reader has to know

    @classmethod
    def of(cls, name: str, content: Mapping[str, Any]) -> Table:
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
        return cls(name, content["title"], rows, columns, scores, content["seeds"], content["notes"])

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
        datasets = known_names(f"--datasets: {self.name}", datasets, [column.data for column in self.columns])
        models = known_names(f"--models: {self.name}", models, [column.model for column in self.columns])
        methods = known_names(f"--methods: {self.name}", methods, [row.key for row in self.rows])
        columns = [column for column in self.columns if column.data in datasets and column.model in models]
        if not columns:
            pairs = ", ".join(dict.fromkeys(f"{c.data} with {c.model}" for c in self.columns))
            raise ValueError(f"{self.name} has none of these data sets with one of these models; it has {pairs}.")
        return replace(self, rows=[row for row in self.rows if row.key in methods], columns=columns)


def known_names(place: str, names: Sequence[str] | None, known: Sequence[str]) -> Sequence[str]:
    """Return the names, all that are known for None.

    Raises:
        ValueError: one is not known.
    """
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"{place} has no {', '.join(unknown)}; it has {', '.join(dict.fromkeys(known))}.")
    return known if names is None else names


TABLES = {name: Table.of(name, content) for name, content in _PAPER["tables"].items()}


@dataclass(frozen=True)
class Scale:
    """Differences of a run to the paper's, and the kind of device, 'cpu' or 'cuda'."""

    epochs: int | None = None  # in place of the config's; the steps of its schedule move in proportion
    images_per_class: int | None = None  # only the first so many of each class are trained on (CIFAR-100)
    options: tuple[str, ...] = ()  # further settings of the config, ``key=value``
    arguments: tuple[str, ...] = ()  # further arguments of train: precision, compile, memory format
    device: str = "cpu"

    @property
    def is_paper(self) -> bool:
        """The runs are comparable with the paper's numbers."""
        return self == Scale(device=self.device)

    def epochs_of(self, config: str) -> int:
        """Return the epochs of a run of a config."""
        return self.epochs or read_leaf(config).train_cfg.max_epochs

    def share_of(self, config: str) -> float:
        """Return them over those of the config."""
        return self.epochs_of(config) / read_leaf(config).train_cfg.max_epochs


@dataclass(frozen=True)
class Run:
    """A training."""

    config: str  # name of the config file, without folder and ending
    data: str
    model: str
    method: str | None  # None where the config decides (segmentors)
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the method
    epochs: int = 200
    options: tuple[str, ...] = ()  # settings of the config, ``key=value``
    arguments: tuple[str, ...] = ()  # further arguments of train
    seed: int = 0
    teacher: Run | None = None  # the run whose network teaches
    device: str = "cpu"  # kind of it

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
        """Return the name of its folder and its record."""
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


def plan_cell(table: Table, row: Row, column: Column, scale: Scale, seed: int = 0) -> Run:
    """Plan the run behind a cell of a table.

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
    arguments = (*(["--import", *row.imports] if row.imports else []), *scale.arguments)
    epochs, options = scale.epochs_of(config), config_options(config, scale)
    where = (config, column.data, column.model)
    return Run(*where, method, settings, epochs, options, arguments, seed, teacher, scale.device)


def plan_teacher(column: Column, scale: Scale) -> Run:
    """Plan the run that makes the pretrained teacher of a data set, one for all seeds: the baseline of a ResNet34."""
    model, config = TEACHER_OF[column.model], f"baseline_{column.data}_{column.model}"
    options = (*config_options(config, scale), f"model.student.model_name={model}")
    epochs = scale.epochs_of(config)
    return Run(config, column.data, model, "baseline", {}, epochs, options, scale.arguments, device=scale.device)


def plan_table(table: Table, scale: Scale, seeds: Sequence[int]) -> dict[str, tuple[Run, str]]:
    """Plan every run of a table once, seed by seed, teachers before their students.

    Returns:
        name -> the run, and the key of its row, 'baseline' for a teacher.

    Raises:
        ValueError: see `plan_cell`.
    """
    runs: dict[str, tuple[Run, str]] = {}
    for seed, column, row in itertools.product(seeds, table.columns, table.rows):
        run = plan_cell(table, row, column, scale, seed)
        if run.teacher is not None:
            runs.setdefault(run.teacher.name, (run.teacher, "baseline"))
        runs.setdefault(run.name, (run, row.key))
    return runs


def method_settings(row: Row, config: str, scale: Scale) -> dict[str, Any]:
    """Return a row's settings on the data set of a config; those that count epochs shrink with the schedule."""
    weights = {**FOR_ALL, **read_leaf(config).frskd} if row.method in WEIGHTED else {}
    if "channels" in row.settings:  # the BiFPN of one width
        weights.pop("width", None)
    counted = {key: round(epochs * scale.share_of(config)) for key, epochs in row.epochs.items()}
    return {**weights, **row.settings, **counted}


def config_options(config: str, scale: Scale) -> tuple[str, ...]:
    """Return what the scale changes in a config, as ``key=value``.

    Raises:
        ValueError: ``images_per_class`` on a data set that does not know it.
    """
    leaf, options = read_leaf(config), []
    if scale.share_of(config) != 1:
        milestones = ",".join(map(str, milestones_of(config, scale)))
        options += [f"train_cfg.max_epochs={scale.epochs}", f"param_scheduler.milestones=[{milestones}]"]
        for index, hook in enumerate(leaf.custom_hooks):
            if hook["type"] == "DistillWarmupHook":
                begin = round(hook["begin"] * scale.share_of(config))
                options += [f"custom_hooks.{index}.begin={begin}", f"custom_hooks.{index}.end={scale.epochs}"]
    if scale.images_per_class is not None:
        if IMAGES_PER_CLASS not in leaf.train_dataloader.dataset:
            raise ValueError(
                f"--images-per-class: the data set of {config} is always trained on as a whole; leave the option out, "
                "or choose --datasets cifar100."
            )
        options.append(f"train_dataloader.dataset.{IMAGES_PER_CLASS}={scale.images_per_class}")
    return (*options, *scale.options)


def milestones_of(config: str, scale: Scale) -> list[int]:
    """Return the epochs after which the learning rate falls, at the same shares of a shorter schedule."""
    steps = read_leaf(config).param_scheduler.milestones
    return list(dict.fromkeys(max(1, round(step * scale.share_of(config))) for step in steps))
