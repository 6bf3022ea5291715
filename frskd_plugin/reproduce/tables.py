"""The paper's tables as data: what stands in a row, what in a column, and the paper's number in each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from frskd_plugin.reproduce import paper
from frskd_plugin.reproduce.paper import Score

DATA_LABELS = {
    "cifar100": "CIFAR-100",
    "tinyimagenet": "TinyImageNet",
    "cub200": "CUB200",
    "mit67": "MIT67",
    "dogs": "Dogs",
    "stanford40": "Stanford40",
    "imagenet": "ImageNet",
    "voc": "VOC",
}
MODEL_LABELS = {
    "wrn_16_2": "WRN-16-2",
    "resnet18_cifar": "ResNet18",
    "resnet18": "ResNet18",
    "resnet34": "ResNet34",
    "effdet_d0": "EfficientDet-d0",
    "effdet_d1": "EfficientDet-d1",
}
SCORE_LABELS = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "mIoU": "mIoU"}
# the network that teaches in Table 7, for images of each size
TEACHER_OF = {"resnet18_cifar": "resnet34_cifar", "resnet18": "resnet34"}


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
        has_teacher: whether a pretrained network teaches.
    """

    key: str
    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: Mapping[str, int] = field(default_factory=dict)
    recipe: str = ""
    has_teacher: bool = False


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
        """From ``data/model`` or ``data/model/score``."""
        return cls(*name.split("/"))

    @property
    def label(self) -> str:
        """For a reader; top-1 goes without saying."""
        parts = [DATA_LABELS[self.data], MODEL_LABELS[self.model]]
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
    seeds: Sequence[int] = (0, 1, 2)
    notes: Sequence[str] = ()

    @property
    def is_segmentation(self) -> bool:
        """Whether its configs are segmentors, a file for each row."""
        return any(column.data == "voc" for column in self.columns)

    def chosen(
        self,
        datasets: Sequence[str] | None = None,
        models: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
    ) -> Table:
        """The part of it that the names leave; None leaves all.

        Raises:
            ValueError: a name that the table does not have, or nothing is left.
        """
        _check_names("--datasets", datasets, [column.data for column in self.columns], self.name)
        _check_names("--models", models, [column.model for column in self.columns], self.name)
        _check_names("--methods", methods, [row.key for row in self.rows], self.name)
        columns = [c for c in self.columns if c.data in (datasets or [c.data]) and c.model in (models or [c.model])]
        if not columns:
            pairs = ", ".join(dict.fromkeys(f"{c.data} with {c.model}" for c in self.columns))
            raise ValueError(f"{self.name} has none of these data sets with one of these models; it has {pairs}.")
        return replace(self, rows=[r for r in self.rows if r.key in (methods or [r.key])], columns=columns)


def _check_names(option: str, names: Sequence[str] | None, known: Sequence[str], table: str) -> None:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"{option}: {table} has no {', '.join(unknown)}; it has {', '.join(dict.fromkeys(known))}.")


BASELINE = Row("baseline", "Baseline", "baseline")
FRSKD = Row("frskd", "FRSKD", "frskd")


def _self_distillation(class_weight: float) -> list[Row]:
    """The rows of Tables 1 and 2; CS-KD's authors weigh the partners thrice for fine-grained data."""
    return [
        BASELINE,
        Row("one", "ONE", "one", epochs={"rampup_epochs": 80}),
        Row("ddgsd", "DDGSD", "ddgsd"),
        Row("byot", "BYOT", "byot"),
        Row("sad", "SAD", "sad"),
        Row("cs_kd", "CS-KD", "cs_kd", {"weight": class_weight}),
        Row("sla_sd", "SLA-SD", "sla_sd"),
        Row("frskd_f", "FRSKD\\F", "frskd", {"beta": 0.0}),
        FRSKD,
        Row("frskd_sla", "FRSKD+SLA", "frskd_sla"),
    ]


# Table 5: the weights that go with the scale of each loss (reference section 4); the paper gives none
FEATURE_ABLATION = [
    BASELINE,
    Row("frskd_hint", "Fit+SKD", "frskd", {"feature_loss": "hint", "beta": 100.0}),
    Row("frskd_overhaul", "OD+SKD", "frskd", {"feature_loss": "overhaul", "beta": 0.01}),
    FRSKD,
]
STRUCTURES = [
    Row("bifpn_128", "BiFPN, 128 channels", "frskd", {"channels": 128}),
    Row("bifpn_256", "BiFPN, 256 channels", "frskd", {"channels": 256}),
    Row("bifpnc_128", "BiFPNc, 128 channels", "frskd", {"width": 1}),
    Row("bifpnc_256", "BiFPNc, 256 channels", "frskd"),
]
PRETRAINED_TEACHER = [
    BASELINE,
    Row("kd_hint", "FitNet", "kd", {"feature_loss": "hint"}, has_teacher=True),
    Row("kd_attention", "ATT", "kd", {"feature_loss": "attention", "beta": 1000.0}, has_teacher=True),
    Row("kd_overhaul", "Overhaul", "kd", {"feature_loss": "overhaul"}, has_teacher=True),
    FRSKD,
]
MIXED = [
    BASELINE,
    Row("mixup", "Mixup", "baseline", recipe="mixup"),
    Row("frskd_mixup", "FRSKD + Mixup", "frskd", recipe="mixup"),
    Row("cutmix", "CutMix", "baseline", recipe="cutmix"),
    Row("frskd_cutmix", "FRSKD + CutMix", "frskd", recipe="cutmix"),
]
ALPHAS, BETAS = (1, 2, 3), (50, 100, 200, 500)
GRID = [
    Row(f"alpha{a}_beta{b}", f"alpha {a}, beta {b}", "frskd", {"alpha": float(a), "beta": float(b)})
    for a in ALPHAS
    for b in BETAS
]

NO_FEATURE_WEIGHTS = "the paper prints no weight for these feature losses; it is that of `frskd_plugin.methods`."


def _table(name: str, title: str, rows: Sequence[Row], text: str, **settings: Any) -> Table:
    columns = [Column.of(column) for column in paper.column_names(text)]
    scores = {(row, Column.of(column)): score for (row, column), score in paper.read_scores(text).items()}
    return Table(name, title, rows, columns, scores, **settings)


TABLES = {
    table.name: table
    for table in (
        _table(
            "table1",
            "Table 1: self-distillation on CIFAR-100 and TinyImageNet",
            _self_distillation(class_weight=1.0),
            paper.TABLE_1,
            notes=(paper.WIDTH_MISPRINT,),
        ),
        _table(
            "table2",
            "Table 2: self-distillation on fine-grained data",
            _self_distillation(class_weight=3.0),
            paper.TABLE_2,
            notes=(paper.DOGS_MISPRINT, paper.WIDTH_MISPRINT),
        ),
        _table("table3", "Table 3: ImageNet", [BASELINE, FRSKD], paper.TABLE_3, seeds=(0,)),
        _table("table4", "Table 4: semantic segmentation", [BASELINE, FRSKD], paper.TABLE_4, seeds=(0,)),
        _table(
            "table5",
            "Table 5: feature losses inside FRSKD",
            FEATURE_ABLATION,
            paper.TABLE_5,
            notes=(f"Fit+SKD, OD+SKD: {NO_FEATURE_WEIGHTS}", paper.DOGS_MISPRINT),
        ),
        _table("table6", "Table 6: structure of the self-teacher", STRUCTURES, paper.TABLE_6),
        _table(
            "table7",
            "Table 7: FRSKD beside distillation from a pretrained ResNet34",
            PRETRAINED_TEACHER,
            paper.TABLE_7,
            notes=(f"FitNet, Overhaul: {NO_FEATURE_WEIGHTS}", paper.DOGS_MISPRINT),
        ),
        _table("table8", "Table 8: with Mixup and CutMix", MIXED, paper.TABLE_8, notes=(paper.DOGS_MISPRINT,)),
        _table("fig4", "Figure 4: sensitivity to alpha and beta", GRID, paper.FIGURE_4),
    )
}
