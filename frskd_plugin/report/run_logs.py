"""The values that a run logged, read from the JSON logs of all its starts and joined."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frskd_plugin.mmengine.json_log import LOGS, PLACES, is_number, json_lines
from frskd_plugin.report.text_log import TextLog, read_text_log


@dataclass(frozen=True)
class Entry:
    """What was logged at one moment.

    Attributes:
        position: in the unit of the run: 2.5 epochs are the middle of the third epoch.
        values: name -> value, which need not be finite.
    """

    position: float
    values: dict[str, float]


@dataclass(frozen=True)
class RunLogs:
    """The logs of a run.

    Attributes:
        work_dir: of the run.
        folders: of its starts, oldest first.
        text_logs: one for each of these.
        training: entries of the training steps, by position.
        training_unit: of their positions, 'epoch' or 'iteration'.
        validation: entries of the validations, by position.
        validation_unit: of their positions.
    """

    work_dir: Path
    folders: tuple[Path, ...]
    text_logs: tuple[TextLog, ...]
    training: tuple[Entry, ...]
    training_unit: str
    validation: tuple[Entry, ...]
    validation_unit: str


@dataclass(frozen=True)
class _Line:
    """A line of a JSON log; those of a training step have ``iter``, and ``epoch`` unless the loop has none."""

    content: dict[str, Any]
    start: int

    @property
    def is_training(self) -> bool:
        return "iter" in self.content

    @property
    def step(self) -> float:
        return self.content["step"]

    @property
    def epoch(self) -> float | None:
        return self.content.get("epoch")

    def entry(self, position: float) -> Entry:
        numbers = {key: float(value) for key, value in self.content.items() if is_number(value)}
        return Entry(float(position), {key: value for key, value in numbers.items() if key not in PLACES})


def read_run(work_dir: str | Path) -> RunLogs:
    """Read what a run has logged so far. A later start wins over what earlier ones had done beyond its beginning.

    Raises:
        ValueError: there is no log, nothing in it yet, or one is damaged.
    """
    work_dir = Path(work_dir)
    files = sorted(work_dir.glob(LOGS))
    if not files:
        state = "holds no log" if work_dir.is_dir() else "is not a folder"
        raise ValueError(
            f"{work_dir} {state}; expected the work folder of a run, with {LOGS}, which tools/train.py writes through "
            "the LocalVisBackend of the config's vis_backends"
        )
    training, validation = _join(
        [_Line(content, start) for start, file in enumerate(files) for content in json_lines(file)]
    )
    if not training and not validation:
        raise ValueError(
            f"{work_dir} has no entry in its logs yet ({files[-1]}); a run logs first after "
            "default_hooks.logger.interval steps, or at the end of its first epoch"
        )
    folders = tuple(file.parents[1] for file in files)
    text_logs = tuple(read_text_log(folder) for folder in folders)
    counts_epochs = all(line.epoch is not None for line in training)
    # the text log alone says how many steps an epoch has
    has_steps = counts_epochs and all(text_logs[line.start].steps_per_epoch for line in training)
    return RunLogs(
        work_dir,
        folders,
        text_logs,
        tuple(line.entry(_position(line, text_logs) if has_steps else line.step) for line in training),
        "epoch" if has_steps else "iteration",
        tuple(line.entry(line.step) for line in validation),
        "epoch" if counts_epochs else "iteration",
    )


def position_text(position: float) -> str:
    """A position in words.

    >>> position_text(40000.0), position_text(2.5)
    ('40000', '2.5')
    """
    return f"{position:.2f}".rstrip("0").rstrip(".")


def _position(line: _Line, text_logs: tuple[TextLog, ...]) -> float:
    """In epochs, at the end of the step; counted within its epoch, as a start may have other batches than the last."""
    steps = text_logs[line.start].steps_per_epoch or 1
    return (line.epoch or 1) - 1 + ((line.step - 1) % steps + 1) / steps


def _join(lines: list[_Line]) -> tuple[list[_Line], list[_Line]]:
    """Training and validation, both by position, without what later starts have done again."""
    training: list[_Line] = []
    validation: list[_Line] = []
    for line in lines:
        if not line.is_training:
            validation = [*(other for other in validation if other.step != line.step), line]
            continue
        # two starts in one second share a folder, so a step back begins a new one too
        if training and (line.start != training[-1].start or line.step <= training[-1].step):
            training = [other for other in training if _is_before(other, line)]
            begin = line.step if line.epoch is None else line.epoch
            # what a start validates before its first step belongs to the epoch that it goes on from
            validation = [other for other in validation if other.step < begin]
        training.append(line)
    return training, sorted(validation, key=lambda line: line.step)


def _is_before(line: _Line, first: _Line) -> bool:
    """Whether a training step was there when the start with this first entry began; starts begin with an epoch."""
    if line.epoch is not None and first.epoch is not None:
        return line.epoch < first.epoch
    return line.step < first.step
