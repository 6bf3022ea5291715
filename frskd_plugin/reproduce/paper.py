"""The paper's numbers, as printed: mean and standard deviation of the last epoch in percent.

The first line of a text names the columns, data set/network or data set/network/score, the first word of each other
line the row (`frskd_plugin.reproduce.tables`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """A number of the paper; ``std`` is None where a single run is reported."""

    mean: float
    std: float | None = None


TABLE_1 = """
            cifar100/wrn_16_2 cifar100/resnet18_cifar tinyimagenet/wrn_16_2 tinyimagenet/resnet18_cifar
baseline           70.42±0.08        73.80±0.60            51.05±0.20            54.60±0.33
one                73.01±0.23        76.67±0.66            52.10±0.20            57.53±0.39
ddgsd              71.96±0.05        76.61±0.47            51.07±0.24            56.46±0.24
byot               70.22±0.26        76.68±0.07            50.33±0.03            56.61±0.30
sad                70.31±0.45        74.65±0.33            51.26±0.39            54.45±0.06
cs_kd              71.79±0.68        77.19±0.05            50.08±0.18            56.46±0.10
sla_sd             73.00±0.45        77.52±0.30            50.77±0.33            58.48±0.44
frskd_f            73.12±0.06        77.64±0.12            52.91±0.30            59.50±0.15
frskd              73.27±0.45        77.71±0.14            53.08±0.33            59.61±0.31
frskd_sla          75.43±0.21        82.04±0.16            51.83±0.37            63.58±0.04
"""

TABLE_2 = """
            cub200/resnet18  mit67/resnet18  dogs/resnet18  stanford40/resnet18
baseline      51.72±1.17      55.00±0.97      63.38±0.04      42.97±0.66
one           54.71±0.42      56.77±0.76      65.39±0.59      45.35±0.53
ddgsd         58.49±0.55      59.00±0.77      69.00±0.28      45.81±1.79
byot          58.66±0.51      58.41±0.71      68.82±0.15      48.51±1.02
sad           52.76±0.57      54.48±1.30      63.17±0.56      43.52±0.06
cs_kd         64.34±0.08      57.36±0.37      68.91±0.40      47.23±0.22
sla_sd        56.17±0.71      61.57±1.06      67.30±0.21      54.07±0.38
frskd_f       62.29±1.65      61.32±0.67      69.48±0.84      53.16±0.44
frskd         65.39±0.13      61.74±0.67      70.77±0.20      56.00±1.19
frskd_sla     67.80±1.24      66.04±0.31      72.48±0.34      61.96±0.57
"""

TABLE_3 = """
            imagenet/resnet18/top1 imagenet/resnet18/top5 imagenet/resnet34/top1 imagenet/resnet34/top5
baseline            69.76                  89.08                  73.31                  91.42
frskd               70.17                  89.78                  73.75                  92.11
"""

TABLE_4 = """
            voc/effdet_d0/mIoU  voc/effdet_d1/mIoU
baseline         79.07               81.95
frskd            80.55               83.88
"""

TABLE_5 = """
  cifar100/resnet18_cifar tinyimagenet/resnet18_cifar cub200/resnet18 mit67/resnet18 dogs/resnet18 stanford40/resnet18
baseline            73.80±0.60   54.60±0.33   51.72±1.17   55.00±0.97   63.38±0.04   42.97±0.66
frskd_hint          77.03±0.05   59.06±0.20   61.05±1.05   57.69±0.28   67.50±0.32   51.66±1.32
frskd_overhaul      77.12±0.09   59.14±0.20   57.44±0.92   54.83±2.63   66.51±0.87   49.09±0.47
frskd               77.71±0.14   59.61±0.31   65.39±0.13   61.74±0.67   70.77±0.20   56.00±1.19
"""

TABLE_6 = """
            cifar100/wrn_16_2
bifpn_128      72.64±0.12
bifpn_256      73.54±0.41
bifpnc_128     71.70±0.19
bifpnc_256     73.27±0.45
"""

TABLE_7 = """
  cifar100/resnet18_cifar tinyimagenet/resnet18_cifar cub200/resnet18 mit67/resnet18 dogs/resnet18 stanford40/resnet18
baseline            73.80±0.60   54.60±0.33   51.72±1.17   55.00±0.97   63.38±0.04   42.97±0.66
kd_hint             76.65±0.25   59.38±0.10   58.97±0.07   59.15±0.41   67.18±0.10   46.64±0.24
kd_attention        77.16±0.15   59.83±0.28   59.21±0.34   59.33±0.22   67.54±0.18   47.04±0.17
kd_overhaul         74.59±0.32   59.50±0.09   58.82±0.12   58.81±0.58   66.43±0.08   47.06±0.26
frskd               77.71±0.14   59.61±0.31   65.39±0.13   61.74±0.67   70.77±0.20   56.00±1.19
"""

TABLE_8 = """
  cifar100/resnet18_cifar tinyimagenet/resnet18_cifar cub200/resnet18 mit67/resnet18 dogs/resnet18 stanford40/resnet18
baseline            73.80±0.60   54.60±0.33   51.72±1.17   55.00±0.97   66.38±0.04   42.97±0.66
mixup               76.26±0.41   56.28±0.24   57.60±0.42   56.77±1.45   65.96±0.03   47.15±0.60
frskd_mixup         78.74±0.19   60.30±0.38   67.98±0.58   62.11±0.81   71.64±0.29   56.50±0.36
cutmix              79.23±0.23   58.97±0.29   51.54±1.12   60.87±0.30   67.71±0.14   46.90±0.29
frskd_cutmix        80.49±0.05   61.92±0.11   65.92±0.59   66.19±0.49   72.81±0.23   55.75±0.43
"""

# Table 6: self-teacher over classifier, (parameters, FLOPs)
TABLE_6_RATIOS = {
    "bifpn_128": (0.30, 0.67),
    "bifpn_256": (0.97, 2.38),
    "bifpnc_128": (0.19, 0.21),
    "bifpnc_256": (0.59, 0.68),
}

# the appendix plots Figure 4 without printing its numbers
FIGURE_4 = "cifar100/wrn_16_2 mit67/resnet18"

WIDTH_MISPRINT = (
    "The paper's appendix gives ResNet18's self-teacher 1028 channels at the last level, a misprint: twice 512 is 1024."
)
DOGS_MISPRINT = (
    "The paper prints the baseline on Dogs as 63.38 in Tables 2, 5 and 7 and as 66.38 in Table 8, with the same "
    "deviation: one of the two is a misprint."
)


def column_names(text: str) -> list[str]:
    """The columns of a table's text.

    >>> column_names(TABLE_4)
    ['voc/effdet_d0/mIoU', 'voc/effdet_d1/mIoU']
    """
    return text.strip().splitlines()[0].split()


def read_scores(text: str) -> dict[tuple[str, str], Score]:
    """(row, column) -> the number.

    Raises:
        ValueError: a line has more or fewer numbers than there are columns.

    >>> read_scores(TABLE_1)["frskd", "cifar100/wrn_16_2"]
    Score(mean=73.27, std=0.45)
    """
    columns = column_names(text)
    scores = {}
    for line in text.strip().splitlines()[1:]:
        row, *numbers = line.split()
        if len(numbers) != len(columns):
            raise ValueError(f"row {row!r} has {len(numbers)} numbers, expected one for each of {len(columns)} columns")
        for column, number in zip(columns, numbers, strict=True):
            scores[row, column] = Score(*map(float, number.split("±")))
    return scores
