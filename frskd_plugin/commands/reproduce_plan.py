"""The paper's tables, read from ``reproduce.json``, and the trainings that each of their cells needs."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from frskd_plugin.commands.config import load_config

PAPER = json.loads(Path(__file__).with_name("reproduce.json").read_text(encoding="utf-8"))
WEIGHTED = ("frskd", "frskd_sla")  # methods whose alpha and beta are the data set's: its config has them as `frskd`
FOR_ALL = {"temperature": 4.0, "width": 2}  # their other settings
FIRST = ("baseline", "frskd", "frskd_f", "frskd_sla")  # rows that are run before the others


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
    scores: Mapping[Column, str] = field(default_factory=dict)  # the paper's numbers, as '73.27 ± 0.45'


class Column(NamedTuple):
    """A score of a network on a data set.

    >>> Column("imagenet", "resnet18", "top5").label
    'ImageNet, ResNet18, top-5 accuracy'
    """

    data: str
    model: str
    score: str = "top1"

    @property
    def label(self) -> str:
        """Title of the column; top-1 goes without saying."""
        parts = [PAPER["data"][self.data], PAPER["models"][self.model]]
        return ", ".join(parts + ([] if self.score == "top1" else [PAPER["scores"][self.score]]))


@dataclass(frozen=True)
class Table:
    """A table, or the grid behind a figure."""

    name: str  # as on the command line
    title: str
    rows: Sequence[Row]
    columns: Sequence[Column]
    seeds: Sequence[int]  # as many as the paper has
    notes: Sequence[str]  # what a reader has to know

    @property
    def is_segmentation(self) -> bool:
        """Tell whether its configs are segmentors, a file for each row."""
        return any(column.data == "voc" for column in self.columns)

    def chosen(
        self,
        datasets: Sequence[str] | None = None,
        models: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
    ) -> Table:
        """Return the part of it that the names leave; None leaves all. Rows come in the order of ``methods``.

        Raises:
            ValueError: a name that the table does not have, or nothing is left.
        """
        rows = {row.key: row for row in self.rows}
        known = {
            "--datasets": (datasets, [column.data for column in self.columns]),
            "--models": (models, [column.model for column in self.columns]),
            "--methods": (methods, [*(key for key in FIRST if key in rows), *rows]),
        }
        for option, (names, has) in known.items():
            if unknown := ", ".join(name for name in names or () if name not in has):
                raise ValueError(f"{option}: {self.name} has no {unknown}; it has {', '.join(dict.fromkeys(has))}.")
        datasets, models, methods = (has if names is None else names for names, has in known.values())
        columns = [column for column in self.columns if column.data in datasets and column.model in models]
        if not columns:
            pairs = ", ".join(dict.fromkeys(f"{c.data} with {c.model}" for c in self.columns))
            raise ValueError(f"{self.name} has none of these data sets with one of these models; it has {pairs}.")
        return replace(self, rows=[rows[key] for key in dict.fromkeys(methods)], columns=columns)


def _read_table(name: str, content: Mapping[str, Any]) -> Table:
    columns = [Column(*column.split("/")) for column in content["columns"]]
    rows = []
    for row in content["rows"]:
        numbers = [number.replace("±", " ± ") for number in row.get("scores", "").split()]
        rows.append(Row(**{**row, "scores": dict(zip(columns, numbers, strict=bool(numbers)))}))
    return Table(name, content["title"], rows, columns, content["seeds"], content["notes"])


TABLES = {name: _read_table(name, content) for name, content in PAPER["tables"].items()}


@dataclass(frozen=True)
class Scale:
    """Differences of a run to the paper's, and the kind of device, 'cpu' or 'cuda'."""

    epochs: int | None = None  # in place of the config's; the steps of its schedule move in proportion
    images_per_class: int | None = None  # only the first so many of each class are trained on (CIFAR-100)
    options: tuple[str, ...] = ()  # further settings of the config, ``key=value``
    arguments: tuple[str, ...] = ()  # further arguments of train: precision, compile, CUDA graph, memory format
    device: str = "cpu"

    @property
    def is_paper(self) -> bool:
        """Tell whether the runs are comparable with the paper's numbers."""
        return self == Scale(device=self.device)

    def epochs_of(self, config: str) -> int:
        """Return the epochs of a run of a config."""
        return self.epochs or read_leaf(config).train_cfg.max_epochs

    def shrink(self, config: str, epochs: int) -> int:
        """Return an epoch of a config's schedule in proportion."""
        return round(epochs * (self.epochs_of(config) / read_leaf(config).train_cfg.max_epochs))

    def milestones(self, config: str) -> list[int]:
        """Return the epochs after which the learning rate falls, at the same shares of a shorter schedule."""
        steps = read_leaf(config).param_scheduler.milestones
        return list(dict.fromkeys(max(1, self.shrink(config, step)) for step in steps))

    def config_options(self, config: str) -> tuple[str, ...]:
        """Return what it changes in a config, as ``key=value``.

        Raises:
            ValueError: ``images_per_class`` on a data set that does not know it.
        """
        leaf, options = read_leaf(config), []
        if self.epochs_of(config) != leaf.train_cfg.max_epochs:
            milestones = ",".join(map(str, self.milestones(config)))
            options += [f"train_cfg.max_epochs={self.epochs}", f"param_scheduler.milestones=[{milestones}]"]
            for index, hook in enumerate(leaf.custom_hooks):
                if hook["type"] == "DistillWarmupHook":
                    begin = self.shrink(config, hook["begin"])
                    options += [f"custom_hooks.{index}.begin={begin}", f"custom_hooks.{index}.end={self.epochs}"]
        if self.images_per_class is not None:
            if "images_per_class" not in leaf.train_dataloader.dataset:
                raise ValueError(
                    f"--images-per-class: the data set of {config} is always trained on as a whole; leave the option "
                    "out, or choose --datasets cifar100."
                )
            options.append(f"train_dataloader.dataset.images_per_class={self.images_per_class}")
        return (*options, *self.options)


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
    row: Row = field(default=Row("baseline", "Baseline", "baseline"), compare=False)  # whose cell it fills first

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the result but the seed, as JSON has it."""
        decides = {name: value for name, value in vars(self).items() if name not in ("data", "seed", "row")}
        return json.loads(json.dumps(decides | {"teacher": self.teacher and self.teacher.name}))

    def is_of(self, identity: Mapping[str, Any]) -> bool:
        """Tell whether a record's identity is this run's; those of earlier versions have no device and fit any."""
        ignored = () if "device" in identity else ("device", "teacher")
        return all(identity.get(key) == value for key, value in self.identity.items() if key not in ignored)

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
    def name(self) -> str:
        """Name of its folder and record: words for a reader, eight digits of a checksum of the `identity`, the seed."""
        settings = {
            k: v for k, v in flat(self.settings).items() if FOR_ALL.get(k) != v and not k.startswith("teacher.")
        }
        words = [f"{k}{v:g}" if isinstance(v, (int, float)) else str(v) for k, v in settings.items()]
        words += [argument.lstrip("-") for argument in self.arguments if argument != "--amp-dtype"]
        parts = [self.setup, *words, f"{self.epochs}epochs", self.device, checksum(self.identity), f"seed{self.seed}"]
        return "_".join(parts)

    @property
    def label(self) -> str:
        """Name for people.

        >>> Run("baseline_cifar100_wrn_16_2", "cifar100", "wrn_16_2", "baseline", seed=1).label
        'Baseline, CIFAR-100, WRN-16-2, seed 1'
        """
        model = PAPER["models"].get(self.model, self.model)
        return f"{self.row.label}, {PAPER['data'][self.data]}, {model}, seed {self.seed}"


def checksum(value: Any, digits: int = 8) -> str:
    """Return the first digits of the SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write settings with dots, which may be nested once.

    >>> flat({"beta": 100.0, "teacher": {"model_name": "resnet34"}})
    {'beta': 100.0, 'teacher.model_name': 'resnet34'}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= {f"{key}.{name}": v for name, v in value.items()} if isinstance(value, Mapping) else {key: value}
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
    settings: dict[str, Any] = {}
    if table.is_segmentation:
        config, method = f"{row.method}_{column.data}_{column.model}", None
    else:
        config, method = "_".join(filter(None, ["baseline", column.data, column.model, row.recipe])), row.method
        if method in WEIGHTED:
            settings = {**FOR_ALL, **read_leaf(config).frskd}
        if "channels" in row.settings:  # the BiFPN of one width
            settings.pop("width", None)
        settings |= {**row.settings, **{key: scale.shrink(config, epochs) for key, epochs in row.epochs.items()}}
    epochs, options, teacher = scale.epochs_of(config), scale.config_options(config), None
    if row.has_teacher:  # the baseline of a ResNet34, one for all seeds
        name = PAPER["teacher_of"][column.model]
        settings["teacher"] = {"model_name": name}
        larger = (*options, f"model.student.model_name={name}")
        teacher = Run(config, column.data, name, "baseline", {}, epochs, larger, scale.arguments, device=scale.device)
    arguments = (*(["--import", *row.imports] if row.imports else []), *scale.arguments)
    where = (config, column.data, column.model)
    return Run(*where, method, settings, epochs, options, arguments, seed, teacher, scale.device, row)


def plan_table(table: Table, scale: Scale, seeds: Sequence[int]) -> list[Run]:
    """Plan every run of a table once, seed by seed, a column after the other, teachers before their students.

    Raises:
        ValueError: see `plan_cell`.
    """
    runs: dict[str, Run] = {}
    for seed, column, row in itertools.product(seeds, table.columns, table.rows):
        run = plan_cell(table, row, column, scale, seed)
        for needed in filter(None, (run.teacher, run)):
            runs.setdefault(needed.name, needed)
    return list(runs.values())
