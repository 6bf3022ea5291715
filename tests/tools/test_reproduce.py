"""tools/reproduce.py: tables against the paper, runs that are made, skipped, resumed or fail, and what is written."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from frskd_plugin.commands import reproduce as command
from frskd_plugin.commands import reproduce_cost, reproduce_runs
from frskd_plugin.commands import run as run_command
from frskd_plugin.commands.reproduce import Session
from frskd_plugin.commands.reproduce_cost import StepCost, authors_self_teacher, count, table6_ratios
from frskd_plugin.commands.reproduce_plan import TABLES, Column, Row, Run, Scale, Score, Table, plan_cell, plan_table
from frskd_plugin.commands.reproduce_runs import Store, Trainer, read_history, training_command, write_json
from frskd_plugin.commands.reproduce_text import draw, markdown, points_of, scores_of
from frskd_plugin.methods import registry
from tests.helpers.real_runs import REPOSITORY
from tests.helpers.tiny_classification import write_cifar

COUNTS = json.loads((REPOSITORY / "tests" / "data" / "counts.json").read_text())
PAPER = Scale()
REDUCED = Scale(epochs=8, images_per_class=100)
SMALL = ["table1", "--datasets", "cifar100", "--models", "wrn_16_2", "--no-cost"]
WRN, RESNET18 = Column("cifar100", "wrn_16_2"), Column("cifar100", "resnet18_cifar")

# In place of tools/train.py: scores an epoch after the other, goes on where it was, and dies after epoch `stop`.
FAKE = """
import json, pathlib, sys
folder, epochs, score, stop = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
file = pathlib.Path(folder, "result.json")
history = json.loads(file.read_text())["history"] if file.exists() else []
for epoch in range(len(history) + 1, epochs + 1):
    history.append({"epoch": epoch, "top1": score + epoch, "top5": 90.0})
    file.write_text(json.dumps({"history": history}))
    print("epoch", epoch, flush=True)
    if epoch == stop:
        sys.exit("out of memory")
"""


class FakeTraining:
    """Makes the command lines of fake runs and notes whose they were; `stops` and `scores` go by seed."""

    def __init__(self, store: Store, scores: Sequence[float] = (70.0, 71.0, 72.0)) -> None:
        self.store, self.scores = store, scores
        self.started: list[str] = []
        self.stops: dict[int, int] = {}

    def __call__(self, run: Run, **_: Any) -> list[str]:
        self.started.append(run.name)
        what = (self.store.folder(run), run.epochs, self.scores[run.seed], self.stops.get(run.seed, 0))
        return [sys.executable, "-S", "-c", FAKE, *map(str, what)]


def small_run(seed: int = 0, **changes: Any) -> Run:
    run = Run("baseline_cifar100_wrn_16_2", "cifar100", "wrn_16_2", "baseline", epochs=3, seed=seed)
    return dataclasses.replace(run, **changes)


def cell(table: str | Table, key: str, column: Column, scale: Scale = PAPER, seed: int = 0) -> Run:
    table = TABLES[table] if isinstance(table, str) else table
    (row,) = (row for row in table.rows if row.key == key)
    return plan_cell(table, row, column, scale, seed)


def session(table: str | Table, store: Store, scale: Scale = PAPER, device: str = "cpu") -> Session:
    table = TABLES[table] if isinstance(table, str) else table
    return Session(table, TABLES[table.name], scale, (0,), store, device)


def write_record(store: Store, run: Run, **last: float) -> None:
    write_json(store.record_file(run), {"identity": run.identity, "seed": run.seed, "metric": "top1", "last": last})


def runs_of(table: Table, scale: Scale, seeds: Sequence[int]) -> list[Run]:
    return [run for run, _ in plan_table(table, scale, seeds).values()]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "work", tmp_path / "out")


@pytest.fixture
def fake(store: Store) -> FakeTraining:
    return FakeTraining(store)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def trainer(store: Store, fake: FakeTraining, said: list[str]) -> Trainer:
    return Trainer(store, fake, ["cpu"], jobs=2, say=said.append)


@pytest.fixture
def tool(fake: FakeTraining, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """The command line with fake trainings, in a folder of its own; 2 for an error."""
    monkeypatch.setattr(command, "training_command", fake)
    monkeypatch.chdir(tmp_path)
    folders = ["--work-dir", "work", "--out", "out", "--device", "cpu"]
    return lambda *arguments: run_command("reproduce", [*arguments, *folders])


# --- the tables as data, and their runs ---


@pytest.mark.parametrize(
    ("table", "row", "column", "expected"),
    [
        ("table1", "baseline", "cifar100/wrn_16_2", Score(70.42, 0.08)),
        ("table3", "frskd", "imagenet/resnet34/top5", Score(92.11)),
        ("table4", "frskd", "voc/effdet_d1/mIoU", Score(83.88)),
    ],
)
def test_numbers_are_the_papers(table: str, row: str, column: str, expected: Score) -> None:
    assert TABLES[table].scores[row, Column.of(column)] == expected


def test_every_cell_has_a_number_and_every_number_a_cell() -> None:
    for table in TABLES.values():
        cells = {(row.key, column) for row in table.rows for column in table.columns}
        assert set(table.scores) == (set() if table.name == "fig4" else cells)
        assert all((score.std is None) == (table.name in ("table3", "table4")) for score in table.scores.values())
    row = {"key": "frskd", "label": "", "method": "frskd", "scores": "70.0±0.1"}
    with pytest.raises(ValueError, match="x, frskd: 1 numbers, expected one for each of 2 columns"):
        Table.of("x", {"columns": ["cifar100/wrn_16_2", "cifar100/resnet18_cifar"], "rows": [row]})


def test_names_are_stable() -> None:
    """A changed name would orphan every record that was written before."""
    runs = [cell("table1", key, WRN) for key in ("baseline", "frskd")]
    assert [run.old_stem for run in runs] == ["cifar100_wrn_16_2_baseline_6384650c", "cifar100_wrn_16_2_frskd_b9cdd33f"]
    assert runs[1].name == "cifar100_wrn_16_2_frskd_alpha2_beta100_200epochs_cpu_7b5d1ea6_seed0"
    fast = Scale(8, arguments=("--amp-dtype", "bf16", "--compile"), device="cuda")
    stem = cell("table5", "frskd_hint", RESNET18, fast).stem
    assert stem.startswith("cifar100_resnet18_cifar_frskd_alpha2_beta100_hint_bf16_compile_8epochs_cuda_")


def test_names_tell_all_runs_apart_and_tables_share_equal_ones() -> None:
    named: dict[str, Run] = {}
    for name in ("table1", "table5", "table6", "table7", "table8", "fig4"):
        table = TABLES[name].chosen(datasets=["cifar100"])
        for scale in (PAPER, Scale(device="cuda"), Scale(epochs=8, arguments=("--compile",))):
            for run in runs_of(table, scale, (0, 1)):
                assert named.setdefault(run.name, run) == run
    identities = {json.dumps([run.identity, run.seed], sort_keys=True) for run in named.values()}
    assert len(identities) == len(named)
    assert len({cell(name, "frskd", RESNET18).name for name in ("table1", "table5", "table7")}) == 1
    assert cell("table6", "bifpnc_256", WRN).name == cell("fig4", "alpha2_beta100", WRN).name


def test_records_of_earlier_versions_count_and_those_of_another_device_do_not(store: Store) -> None:
    published = REPOSITORY / "docs" / "results"
    scale = Scale(6, 20, ("train_cfg.val_interval=6",), ("--amp-dtype", "bf16", "--channels-last"), "cuda")
    run, both = cell("table1", "frskd_sla", WRN, scale), Store(store.work_dir, store.out, published)
    assert [record["last"]["top1"] for record in both.records_of(run)] == [5.65, 4.96] and not store.records_of(run)
    write_record(store, run, top1=7.0)
    assert [record["last"]["top1"] for record in both.records_of(run)] == [7.0, 4.96]  # one's own comes first
    assert store.records_of(dataclasses.replace(run, device="cpu")) == []


def test_settings_are_the_papers() -> None:
    common = {"temperature": 4.0, "width": 2}
    for table, key, column, expected in (
        ("table1", "frskd", "cifar100/wrn_16_2", {**common, "alpha": 2.0, "beta": 100.0}),
        ("table1", "frskd_sla", "tinyimagenet/wrn_16_2", {**common, "alpha": 3.0, "beta": 100.0}),
        ("table2", "frskd_f", "cub200/resnet18", {**common, "alpha": 1.0, "beta": 0.0}),
        ("table2", "cs_kd", "dogs/resnet18", {"weight": 3.0}),
        ("table1", "cs_kd", "cifar100/wrn_16_2", {"weight": 1.0}),
        ("table1", "one", "cifar100/wrn_16_2", {"rampup_epochs": 80}),
        ("table5", "frskd_hint", "cub200/resnet18", {**common, "alpha": 1.0, "beta": 100.0, "feature_loss": "hint"}),
        (
            "table6",
            "bifpn_128",
            "cifar100/wrn_16_2",
            {"temperature": 4.0, "alpha": 2.0, "beta": 100.0, "channels": 128},
        ),
        (
            "table7",
            "kd_attention",
            "mit67/resnet18",
            {"feature_loss": "attention", "beta": 1000.0, "teacher": {"model_name": "resnet34"}},
        ),
        ("fig4", "alpha3_beta500", "mit67/resnet18", {**common, "alpha": 3.0, "beta": 500.0}),
    ):
        assert cell(table, key, Column.of(column)).settings == expected


def test_schedules_shrink_in_proportion() -> None:
    assert cell("table1", "one", WRN, Scale(epochs=20)).settings == {"rampup_epochs": 8}
    run = cell("table1", "frskd", WRN, REDUCED)
    schedule = ("train_cfg.max_epochs=8", "param_scheduler.milestones=[4,6]")
    assert (run.epochs, run.options) == (8, (*schedule, "train_dataloader.dataset.images_per_class=100"))
    segmentor = cell("table4", "frskd", Column.of("voc/effdet_d0/mIoU"), Scale(epochs=6))
    assert (segmentor.config, segmentor.method) == ("frskd_voc_effdet_d0", None)
    schedule = ("train_cfg.max_epochs=6", "param_scheduler.milestones=[4]")
    assert segmentor.options == (*schedule, "custom_hooks.2.begin=4", "custom_hooks.2.end=6")
    with pytest.raises(ValueError, match="baseline_cub200_resnet18 is always trained on as a whole"):
        plan_table(TABLES["table2"], REDUCED, (0,))


def test_one_teacher_a_data_set_comes_before_its_students() -> None:
    runs = runs_of(TABLES["table7"].chosen(datasets=["cifar100", "cub200"]), PAPER, (0, 1))
    teachers = {run.teacher.name: run.teacher for run in runs if run.teacher}
    assert [(t.model, t.method, t.seed) for t in teachers.values()] == [
        ("resnet34_cifar", "baseline", 0),
        ("resnet34", "baseline", 0),
    ]
    names = [run.name for run in runs]
    assert all(names.index(run.teacher.name) < names.index(run.name) for run in runs if run.teacher)
    assert len(runs) == 2 * 5 * 2 + 2


def test_command_line_of_a_run(store: Store, tmp_path: Path) -> None:
    run = cell("table7", "kd_hint", RESNET18, Scale(8, None, (), ("--compile",)), 5)
    python, *tool, config = training_command(run, store, tmp_path)[:5]
    assert (python, tool) == (sys.executable, ["-m", "frskd_plugin", "train"])
    assert Path(config) == REPOSITORY / "configs" / "baseline_cifar100_resnet18_cifar.py"
    teacher = store.work_dir / "teachers" / f"{run.teacher.name}.pth"
    assert training_command(run, store, tmp_path)[5:] == [
        *("--data-root", str(tmp_path / "cifar100"), "--work-dir", str(store.work_dir / run.name)),
        *("--seed", "5", "--resume", "--method", "kd", "--method-options", "feature_loss=hint"),
        *("teacher.model_name=resnet34_cifar", f"teacher.checkpoint={teacher}"),
        *("--compile", "--cfg-options", "train_cfg.max_epochs=8", "param_scheduler.milestones=[4,6]"),
    ]
    segmentor = cell("table4", "baseline", Column.of("voc/effdet_d0/mIoU"))
    assert training_command(segmentor, store, tmp_path)[5:] == [
        *(
            "--data-root",
            str(tmp_path / "VOCdevkit"),
            "--work-dir",
            str(store.folder(segmentor)),
            "--seed",
            "0",
            "--resume",
        )
    ]


def test_processes_share_the_devices_and_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    several = Trainer(Store(Path(), Path()), list, ["cuda:0", "cuda:3"], jobs=3, threads=2)
    assert [several.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0", "3", "0"]
    assert several.environment(0)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,GPU-7")  # of those that a scheduler has given
    assert [several.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["4", "GPU-7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    several.devices = ["cpu", "cuda"]
    assert several.environment(0)["CUDA_VISIBLE_DEVICES"] == "" and "CUDA_VISIBLE_DEVICES" not in several.environment(1)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [command.threads_for(jobs) for jobs in (1, 2, 3, 16)] == [None, 4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert command.threads_for(2) is None


# --- what is run, skipped, resumed, and fails ---


def test_done_runs_are_skipped_and_recorded(trainer: Trainer, fake: FakeTraining, store: Store) -> None:
    runs = [small_run(0), small_run(1)]
    assert trainer.train(runs) == {}
    assert sorted(fake.started) == [run.name for run in runs]
    record = json.loads(store.record_file(runs[1]).read_text())
    assert (record["name"], record["seed"], record["identity"]) == (runs[1].name, 1, runs[1].identity)
    assert record["last"] == {"epoch": 3, "top1": 74.0, "top5": 90.0} == record["best"]
    assert [entry["top1"] for entry in record["history"]] == [72.0, 73.0, 74.0]
    assert record["seconds"] >= 0 and {"torch", "timm", "frskd_plugin"} <= set(record["versions"])
    fake.started.clear()
    assert trainer.train([*runs, small_run(2)]) == {}
    assert fake.started == [small_run(2).name]
    # records are all that is needed: the work folder may go
    for file in sorted(store.work_dir.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    assert all(store.is_done(run) for run in runs)


def test_a_record_of_other_settings_does_not_count(trainer: Trainer, fake: FakeTraining, store: Store) -> None:
    run = small_run()
    trainer.train([run])
    record = json.loads(store.record_file(run).read_text())
    record["identity"]["epochs"] = 200
    store.record_file(run).write_text(json.dumps(record))
    (store.folder(run) / "result.json").unlink()
    assert not store.is_done(run)
    trainer.train([run])
    assert fake.started == [run.name] * 2 and store.is_done(run)


def test_a_failed_run_is_reported_and_the_others_go_on(
    trainer: Trainer, fake: FakeTraining, store: Store, said: list[str]
) -> None:
    fake.stops[0] = 2
    failures = trainer.train([small_run(0), small_run(1)])
    assert list(failures) == [small_run(0).name] and store.is_done(small_run(1))
    reason = failures[small_run(0).name]
    assert reason.startswith("status 1; ") and reason.splitlines()[-1].strip() == "out of memory"
    assert not store.record_file(small_run(0)).exists()
    assert said[0] == "0 of 2 runs are done, 2 to go" and "         1 of 2 to go, about 0.0 h at this pace" in said

    fake.stops.clear()  # started again, it goes on after epoch 2
    assert trainer.train([small_run(0), small_run(1)]) == {}
    log = (store.folder(small_run(0)) / "train.log").read_text().splitlines()
    assert log == ["epoch 1", "epoch 2", "out of memory", "epoch 3"]
    assert len(store.read(small_run(0))["history"]) == 3


def test_a_run_that_ended_while_nobody_looked_is_recorded_without_training(
    trainer: Trainer, fake: FakeTraining, store: Store
) -> None:
    trainer.train([small_run()])
    store.record_file(small_run()).unlink()
    trainer.train([small_run()])
    assert len(fake.started) == 1 and store.read(small_run())["last"]["epoch"] == 3


def test_an_unfinished_process_that_ends_well_is_a_failure(store: Store) -> None:
    trainer = Trainer(store, lambda run: [sys.executable, "-S", "-c", "pass"], ["cpu"], say=lambda line: None)
    (reason,) = trainer.train([small_run()]).values()
    assert reason.startswith("it ended before epoch 3 was scored")


def test_stopping_ends_the_processes(store: Store) -> None:
    def stop(run: Run) -> None:
        raise KeyboardInterrupt

    quick, number = FakeTraining(store), store.work_dir / "number"
    code = f"import os, time; open({str(number)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    slow = [sys.executable, "-S", "-c", code]
    trainer = Trainer(store, lambda run: slow if run.seed else quick(run), ["cpu"], 2, None, stop, lambda _: None)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="the same command goes on from here"):
        trainer.train([small_run(1), small_run(0)])
    assert time.monotonic() - started < 50
    assert not number.exists() or not Path(f"/proc/{number.read_text()}").exists()


def test_students_wait_for_their_teacher_and_fail_with_it(
    store: Store, fake: FakeTraining, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(self: Store, run: Run) -> bool:
        self.teacher_file(run).parent.mkdir(exist_ok=True)
        self.teacher_file(run).write_text("weights")
        return True

    monkeypatch.setattr(Store, "_keep_teacher", keep)
    teacher = small_run(model="resnet34_cifar")
    student = small_run(method="kd", teacher=teacher)
    fake.stops[0] = 1
    failures = trainer.train([teacher, student])
    assert fake.started == [teacher.name]
    assert failures[student.name] == f"its teacher {teacher.name} failed"
    fake.stops.clear()
    assert trainer.train([teacher, student]) == {}
    assert fake.started == [teacher.name, teacher.name, student.name]
    assert store.teacher_file(teacher).read_text() == "weights"


def test_a_teacher_that_is_half_trained_again_is_not_kept(
    trainer: Trainer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(model="resnet34_cifar")
    monkeypatch.setattr(reproduce_runs, "export_student", lambda source, target: target.write_text(source.name))
    trainer.train([run])
    assert not store.is_done(run, teaches=True)  # the record is there, the network is not
    for epoch in (1, run.epochs):
        file = store.folder(run) / f"epoch_{epoch}.pth"
        torch.save({"state_dict": {}, "optimizer": {}, "message_hub": {}, "meta": {"epoch": epoch}}, file)
        assert store.is_done(run, teaches=True) is (epoch == run.epochs)
    assert store.teacher_file(run).read_text() == f"epoch_{run.epochs}.pth"


def test_a_segmentors_scores_come_from_its_logs(tmp_path: Path) -> None:
    for start, lines in (
        ("20260101", [{"loss": 1.0, "step": 5}, {"mIoU": 10.0, "step": 1}, {"mIoU": 11.0, "step": 2}]),
        ("20260102", [{"mIoU": 12.0, "aAcc": 50.0, "step": 2}]),
    ):
        file = tmp_path / start / "vis_data" / "scalars.json"
        file.parent.mkdir(parents=True)
        file.write_text("\n".join([*map(json.dumps, lines), '{"mIoU": 20.0, "st']))  # killed, or the disk was full
    assert read_history(tmp_path) == [{"epoch": 1, "mIoU": 10.0}, {"epoch": 2, "mIoU": 12.0, "aAcc": 50.0}]


def test_a_damaged_file_is_named(store: Store) -> None:
    write_record(store, small_run())
    store.record_file(small_run()).write_text('{"seed": ')
    with pytest.raises(ValueError, match="seed0.json is no JSON file .*remove it"):
        store.read(small_run())


# --- what is written ---


def test_markdown(store: Store) -> None:
    table = TABLES["table3"].chosen(models=["resnet18"])
    for seed, top1 in ((0, 69.0), (1, 70.0)):
        write_record(store, cell(table, "baseline", table.columns[0], PAPER, seed), top1=top1, top5=89.0)
    write_record(store, cell(table, "baseline", table.columns[0], Scale(epochs=9), 2), top1=10.0, top5=20.0)
    write_record(store, cell(table, "baseline", table.columns[0], Scale(device="cuda"), 2), top1=10.0, top5=20.0)
    costs = {"resnet18": StepCost(batch=8, plain=0.5, forward=0.1, ratios={"baseline": 1.0, "frskd": 2.0})}
    assert markdown(table, PAPER, scores_of(table, PAPER, store), costs) == (
        "# Table 3: ImageNet\n\n"
        "The paper's schedule: 90 epochs, all training images.\n\n"
        "Last epoch's top-1 accuracy and top-5 accuracy in percent: mean ± standard deviation of the sample, number of "
        "seeds in brackets. –: not run.\n\n"
        "| method | ImageNet, ResNet18 | paper | ImageNet, ResNet18, top-5 accuracy | paper | step, ResNet18 |\n"
        "|---|---|---|---|---|---|\n"
        "| Baseline | 69.50 ± 0.71 (2) | 69.76 | 89.00 ± 0.00 (2) | 89.08 | × 1.00 |\n"
        "| FRSKD | – | 70.17 | – | 89.78 | × 2.00 |\n\n"
        "Step: time of a training step over that of the plain network, random images, steps in turn in one process "
        "(resnet18 8 images a step; data loading and a pretrained teacher's own training not counted).\n"
    )


def test_a_reduced_table_cannot_be_taken_for_the_papers(store: Store) -> None:
    table = TABLES["table1"].chosen(["cifar100"], ["wrn_16_2"], ["frskd"])
    scale = Scale(8, 100, ("train_dataloader.batch_size=64",), ("--amp-dtype", "bf16"))
    write_record(store, cell(table, "frskd", WRN, scale), top1=30.0)
    text = markdown(table, scale, scores_of(table, scale, store), {})
    title, _, conditions, *_ = text.splitlines()
    assert title == "# Table 1: self-distillation on CIFAR-100 and TinyImageNet (reduced runs)"
    assert conditions == (
        "**Not the paper's conditions:** 8 of 200 epochs (learning rate / 10 after 4,6); the first 100 training images "
        "of each class; `train_dataloader.batch_size=64`; `--amp-dtype bf16`. The paper's numbers stand beside for "
        "orientation and are of 200 epochs on all images: compare the rows with each other, not with them."
    )
    assert "| FRSKD | 30.00 (1) | 73.27 ± 0.45 |" in text and "paper (full runs)" in text
    assert "30.00" not in markdown(table, PAPER, scores_of(table, PAPER, store), {})


def test_a_file_keeps_the_columns_of_other_calls(store: Store) -> None:
    whole = TABLES["table5"]
    write_record(store, cell(whole, "baseline", Column("dogs", "resnet18")), top1=60.0)
    write_record(store, cell(whole, "baseline", RESNET18, REDUCED), top1=20.0)
    shown = session(whole.chosen(datasets=["mit67"], methods=["frskd"]), store).shown
    assert [column.data for column in shown.columns] == ["mit67", "dogs"] and shown.rows == whole.rows
    reduced = session(whole.chosen(datasets=["cifar100"]), store, REDUCED)
    assert [column.data for column in reduced.shown.columns] == ["cifar100"]


def test_each_scale_has_a_file_of_its_own(store: Store) -> None:
    scales = [PAPER, REDUCED, Scale(8), Scale(8, None, ("a=1",)), Scale(8, None, ("a=2",)), Scale(8, 100, ("a=1",))]
    stems = [session("table1", store, scale).file_stem for scale in scales]
    assert stems[:3] == ["table1", "table1_8_epochs_100_images", "table1_8_epochs"]
    assert len(set(stems)) == len(stems) and stems[3].startswith("table1_8_epochs_changed_")


def test_figure_4(tmp_path: Path) -> None:
    table = TABLES["fig4"].chosen(datasets=["cifar100"])
    assert sorted((row.settings["alpha"], row.settings["beta"]) for row in table.rows) == [
        (float(a), float(b)) for a in (1, 2, 3) for b in (50, 100, 200, 500)
    ]
    scores = {(row.key, 0): [] for row in table.rows} | {
        ("alpha2_beta50", 0): [70.0, 72.0],
        ("alpha2_beta500", 0): [71.0],
    }
    assert points_of(table, scores, 0) == {2.0: [(50.0, 71.0, pytest.approx(2**0.5)), (500.0, 71.0, 0.0)]}
    draw(table, scores, "three seeds", tmp_path / "plots" / "fig4.png")
    assert (tmp_path / "plots" / "fig4.png").read_bytes().startswith(b"\x89PNG")


# --- Table 6, cost and estimate ---


def test_ratios_are_the_papers_to_two_decimals() -> None:
    ratios = table6_ratios()
    found = {key: (round(authors.params, 2), round(authors.operations, 2)) for key, (authors, _) in ratios.items()}
    assert found == {row.key: tuple(row.ratios) for row in TABLES["table6"].rows} and found["bifpn_256"] == (0.97, 2.38)
    for authors, ours in ratios.values():  # what runs here has the weights of the paper's and fewer operations
        assert ours.params == pytest.approx(authors.params, rel=1e-3) and ours.macs <= authors.macs + 1e-12


def test_counts_are_the_reference_s() -> None:
    classifier = COUNTS["classifiers"]["wrn16x2 (3x32x32, 100 classes)"]
    with torch.device("meta"):
        found = count(timm.create_model("wrn_16_2_published", num_classes=100), torch.empty(1, 3, 32, 32))
        assert (found.macs, found.operations) == (classifier["macs"], classifier["ops_all"])
        for teacher in COUNTS["teachers"][::3]:  # each form, depth and classifier
            feats = [torch.empty(shape) for shape in COUNTS["classifiers"][teacher["classifier"]]["feature_shapes"]]
            form = {"width": teacher["width"]} if teacher["teacher"] == "BiFPNc" else {}
            form |= {"channels": teacher["num_channels"]} if teacher["teacher"] == "BiFPN" else {}
            classes = 1000 if "1000 classes" in teacher["classifier"] else 100
            network = authors_self_teacher([feat.shape[1] for feat in feats], classes, depth=teacher["depth"], **form)
            assert count(network, feats) == tuple(teacher[key] for key in ("params", "macs", "ops_all"))


def test_methods_with_data_of_their_own_take_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce_cost, "CPU_BATCH_SMALL", 2)
    runs = {key: cell("table1", key, WRN) for key in ("ddgsd", "cs_kd", "frskd_sla")}
    cost = reproduce_cost.measure(runs, repeat=1, device="cpu")
    assert cost.batch == 2 and list(cost.ratios) == list(runs)
    assert all(ratio > 0 for ratio in cost.ratios.values()) and cost.forward > 0


def test_estimate() -> None:
    costs = {"resnet18_cifar": StepCost(batch=10, plain=2.0, forward=0.5, ratios={"baseline": 1.0, "frskd": 3.0})}
    run = cell("table1", "frskd", RESNET18, REDUCED)
    # 8 epochs of 100 x 100 images at 3 x 0.2 s, and of 10000 scored at 0.05 s
    estimate = reproduce_cost.estimate_seconds
    assert estimate(run, "frskd", costs) == pytest.approx(8 * (10000 * 0.6 + 10000 * 0.05))
    teacher = Run("baseline_cifar100_resnet18_cifar", "cifar100", "resnet34_cifar", "baseline", epochs=1)
    assert estimate(teacher, "baseline", costs) == pytest.approx(2 * (50000 * 0.2 + 10000 * 0.05))
    assert estimate(small_run(), "baseline", costs) is None


class FakeStep(str):
    """A step that is told by its config."""

    inputs, network = (None,), type("Network", (), {"student": staticmethod(print)})


def test_costs_are_measured_once_and_rows_of_equal_steps_together(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[list[str]] = []

    def medians(steps: Sequence[Any], repeat: int, warmup: int) -> list[float]:
        timed.append([step for step in steps if isinstance(step, str)])
        return [1.0, 0.3, *(1.0 + index for index in range(len(steps) - 2))]

    monkeypatch.setattr(reproduce_cost, "interleaved_medians", medians)
    monkeypatch.setattr(reproduce_cost, "method_step", lambda run, batch, device: FakeStep(run.config))
    grid = TABLES["fig4"].chosen(datasets=["cifar100"], methods=["alpha1_beta50"])
    first, again = (session(grid, store).costs(repeat=1) for _ in range(2))
    wrn = "baseline_cifar100_wrn_16_2"
    assert timed == [[wrn, wrn]] and first == again == session(grid, store).costs(repeat=0)
    assert session(grid, store, device="cuda").costs(repeat=0) == {}
    assert first["wrn_16_2"].ratios == {row.key: 1.0 for row in TABLES["fig4"].rows}
    mixed = session(TABLES["table8"].chosen(datasets=["cifar100"]), store)
    assert mixed.costs(1)["resnet18_cifar"].ratios["frskd_cutmix"] == 2.0
    assert len(timed[1]) == 3  # the plain step, and those of baseline and FRSKD, whatever the recipe


# --- the command line ---


def test_tool_writes_the_table_and_says_what_failed(
    tool: Callable[..., int], fake: FakeTraining, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*SMALL, "--methods", "baseline", "frskd", "--epochs", "4", "--data", ".", "--jobs", "2"]
    fake.stops[2] = 1
    assert tool(*options) == 1
    assert "2 runs failed: cifar100_wrn_16_2_" in capsys.readouterr().out
    text = (store.out / "table1_4_epochs.md").read_text()
    assert "| FRSKD | 74.50 ± 0.71 (2) | 73.27 ± 0.45 |" in text and "| ONE | – | 73.01 ± 0.23 |" in text
    fake.stops.clear()
    assert tool(*options) == 0
    assert "4 of 6 runs are done, 2 to go" in capsys.readouterr().out
    assert "| FRSKD | 75.00 ± 1.00 (3) |" in (store.out / "table1_4_epochs.md").read_text()
    assert not (store.out / "table1.md").exists()


def test_only_publish_writes_outside_the_work_folder(
    fake: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(Path("work_dirs/reproduce"), Path("work_dirs/reproduce/results"))
    monkeypatch.setattr(command, "training_command", FakeTraining(store))
    monkeypatch.setattr(
        command, "measure", lambda runs, repeat, device: StepCost(8, 1.0, 0.3, dict.fromkeys(runs, 1.0))
    )
    monkeypatch.chdir(tmp_path)
    published = Path("docs/results")
    old = dict(cell("table1", "baseline", WRN, Scale(4), 1).old_identity)
    record = {"identity": old, "seed": 1, "metric": "top1", "last": {"epoch": 4, "top1": 60.0}}
    write_json(published / "runs" / f"{cell('table1', 'baseline', WRN, Scale(4)).old_stem}_seed1.json", record)
    before = {file: file.read_bytes() for file in published.rglob("*") if file.is_file()}
    arguments = "--methods baseline --epochs 4 --data . --device cpu --seeds 0 1"
    options = [*SMALL[:-1], *arguments.split()]
    assert command.main(options) == 0
    assert {file: file.read_bytes() for file in published.rglob("*") if file.is_file()} == before
    text = (store.out / "table1_4_epochs.md").read_text()
    assert "| Baseline | 67.00 ± 9.90 (2) | 70.42 ± 0.08 | × 1.00 |" in text  # the published record counts
    assert command.main([*options, "--publish"]) == 0
    assert (published / "table1_4_epochs.md").read_text() == text
    assert len(list((published / "runs").iterdir())) == 2
    assert "table1, wrn_16_2, cpu" in (published / "costs.json").read_text()


def test_dry_run_lists_and_trains_nothing(
    tool: Callable[..., int], fake: FakeTraining, store: Store, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(command, "measure", lambda runs, repeat, device: StepCost(1, 0.01, 0.0, dict.fromkeys(runs, 1)))
    options = [*SMALL[:-1], "--methods", "baseline", "frskd", "--seeds", "0", "--dry-run", "--jobs", "2"]
    assert tool(*options, "--epochs", "36", "--images-per-class", "10") == 0
    *lines, count, total = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("to do  cifar100_wrn_16_2_") for line in lines)
    assert lines[0].endswith("_seed0  about 0.10 h")  # 36 epochs of 1000 images at 10 ms
    assert count == "0 of 2 runs are done, 2 to go"
    assert total.startswith("0.2 h of training, 0.1 h with 2 at a time")
    assert fake.started == [] and not store.work_dir.exists()


def test_a_method_of_the_users_own_joins(
    tool: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "from frskd_plugin.methods import register_method\nfrom frskd_plugin.methods.baseline import Baseline\n"
    (tmp_path / "my_methods.py").write_text(code + "@register_method('mine')\nclass Mine(Baseline): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("frskd_plugin.methods.registry._METHODS", dict(registry._METHODS))
    options = [*SMALL, "--import", "my_methods", "--methods", "baseline", "mine", "--seeds", "0", "--epochs", "4"]
    assert tool(*options, "--data", ".") == 0
    assert "| mine | 74.00 (1) | – |" in capsys.readouterr().out
    table = dataclasses.replace(TABLES["table1"], rows=[Row("mine", "mine", "mine", imports=("my_methods",))])
    run = cell(table, "mine", WRN)
    assert training_command(run, Store(tmp_path, tmp_path), tmp_path)[-4:] == [
        "--method",
        "mine",
        "--import",
        "my_methods",
    ]
    assert tool(*SMALL, "--import", "no_such_module", "--dry-run") == 2
    assert "--import no_such_module: there is no such module in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1"], "--data is missing"),
        (["table1", "--data", "/nowhere"], "--data: /nowhere is not a folder"),
        (["table1", "--dry-run", "--methods", "kd"], "--methods: table1 has no kd; it has baseline, one, "),
        (["table1", "--dry-run", "--datasets", "mnist"], "--datasets: table1 has no mnist; it has cifar100, tiny"),
        (["table3", "--dry-run", "--models", "wrn_16_2"], "--models: table3 has no wrn_16_2; it has resnet18, "),
        (["fig4", "--dry-run", "--datasets", "mit67", "--models", "wrn_16_2"], "fig4 has none of these data sets with"),
        (["table1", "--dry-run", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["table1", "--dry-run", "--device", "cpu", "meta"], "--device: expected devices of one kind, got cpu meta"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("reproduce", arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"frskd reproduce: error: {message}")


def test_table_6_counts_without_data(tool: Callable[..., int], store: Store) -> None:
    assert tool("table6", "--no-cost") == 0
    text = (store.out / "table6.md").read_text()
    assert "| BiFPN, 256 channels | × 0.97 | × 0.97 | × 2.38 | × 2.38 | × 2.35 | × 0.97 | × 2.35 |" in text
    assert "| BiFPNc, 256 channels | – | 73.27 ± 0.45 |" in text


def test_the_papers_own_epochs_are_no_reduction(tool: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    names = []
    for epochs in ([], ["--epochs", "200"]):
        assert tool(*SMALL, "--dry-run", *epochs) == 0
        names.append(capsys.readouterr().out)
    assert names[0] == names[1]


@pytest.mark.slow
def test_real_runs_end_in_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    write_cifar(data / "cifar100", train=20, test=10)
    arguments = [
        *(*SMALL, "--methods", "frskd", "--seeds", "0", "--epochs", "2", "--data", data),
        *("--work-dir", tmp_path / "work", "--out", tmp_path / "out", "--device", "cpu", "--threads", 1),
        *("--cfg-options", "model.student.depth=10", "model.student.k=1", "train_dataloader.batch_size=10"),
        *(f"{split}_dataloader.dataset.expected_images=None" for split in ("train", "val", "test")),
    ]
    assert command.main([*map(str, arguments)]) == 0
    (record,) = (json.loads(file.read_text()) for file in (tmp_path / "out" / "runs").glob("*.json"))
    assert record["identity"]["method"] == "frskd" and "teacher_top1" in record["last"]
    assert [entry["epoch"] for entry in record["history"]] == [1, 2]
    (file,) = (tmp_path / "out").glob("table1_2_epochs_changed_*.md")
    text = file.read_text()
    assert text in capsys.readouterr().out and "`model.student.depth=10`" in text
    assert f"| FRSKD | {record['last']['top1']:.2f} (1) | 73.27 ± 0.45 |" in text
    assert command.main([*map(str, arguments)]) == 0
    assert "1 of 1 runs are done, 0 to go" in capsys.readouterr().out
