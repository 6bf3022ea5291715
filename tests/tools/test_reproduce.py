"""`frskd reproduce`: tables against the paper, runs that are made, skipped, resumed or fail, and what is written."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from matplotlib.axes import Axes

from frskd_plugin.commands import reproduce as command
from frskd_plugin.commands import reproduce_cost, reproduce_runs
from frskd_plugin.commands import run as run_command
from frskd_plugin.commands.reproduce import Session, threads_for
from frskd_plugin.commands.reproduce_cost import authors_self_teacher, count, step_signature, table6_ratios
from frskd_plugin.commands.reproduce_plan import TABLES, Column, Row, Run, Scale, Table, plan_cell, plan_table
from frskd_plugin.commands.reproduce_runs import Store, Trainer, read_history, training_arguments, write_json
from frskd_plugin.commands.side_by_side import PAUSED
from frskd_plugin.methods import registry
from tests.helpers.real_runs import REPOSITORY

COUNTS = json.loads((REPOSITORY / "tests" / "data" / "counts.json").read_text())
PAPER, REDUCED = Scale(), Scale(epochs=8, images_per_class=100)
SMALL = ["table1", "--datasets", "cifar100", "--models", "wrn_16_2"]
WRN, RESNET18, CUB = Column("cifar100", "wrn_16_2"), Column("cifar100", "resnet18_cifar"), Column("cub200", "resnet18")


class FakeTraining:
    """In place of a training: goes on after the epochs that are scored, and stops after an epoch, by seed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.started: list[list[str]] = []
        self.stops: dict[int, int] = {}
        self.last_words = "out of memory"

    def __call__(self, runs: Sequence[Run], *_: Any) -> list[str]:
        self.started.append([run.name for run in runs])
        for run in runs:
            history = read_history(self.store.folder(run))
            for epoch in range(len(history) + 1, self.stops.get(run.seed, run.epochs) + 1):
                history.append({"epoch": epoch, "top1": 70.0 + run.seed + epoch, "top5": 90.0})
            write_json(self.store.folder(run) / "result.json", {"history": history})
        return [sys.executable, "-S", "-c", f"print('hello'); print({self.last_words!r})"]


def cost(batch: int = 1, plain: float = 0.01, **ratios: float) -> dict[str, Any]:
    return {"batch": batch, "plain": plain, "ratios": ratios}


def small_run(seed: int = 0, **changes: Any) -> Run:
    run = Run("baseline_cifar100_wrn_16_2", "cifar100", "wrn_16_2", "baseline", epochs=3, seed=seed)
    return dataclasses.replace(run, **changes)


def cell(table: str | Table, key: str, column: Column = WRN, scale: Scale = PAPER, seed: int = 0) -> Run:
    table = TABLES[table] if isinstance(table, str) else table
    (row,) = (row for row in table.rows if row.key == key)
    return plan_cell(table, row, column, scale, seed)


def session(table: str | Table, store: Store, scale: Scale = PAPER, device: str = "cpu") -> Session:
    table = TABLES[table] if isinstance(table, str) else table
    return Session(table, TABLES[table.name], scale, (0,), store, device)


def write_record(store: Store, run: Run, **last: float) -> None:
    write_json(store.record_file(run), {"identity": run.identity, "seed": run.seed, "metric": "top1", "last": last})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Folders of the command line, called in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return Store(Path("work_dirs/reproduce"), Path("work_dirs/reproduce/results"))


@pytest.fixture
def fake(store: Store, monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    training = FakeTraining(store)
    monkeypatch.setattr(reproduce_runs, "training_process", training)
    monkeypatch.setattr(command, "measure", lambda runs, device: cost(**dict.fromkeys(runs, 1.0)))
    return training


@pytest.fixture
def trainer(store: Store, fake: FakeTraining) -> Trainer:
    return Trainer(store, Path(), ["cpu"])


@pytest.fixture
def tool(fake: FakeTraining, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The command line with fake trainings: its status, and what it printed."""

    def call(*arguments: str) -> tuple[int, str]:
        return run_command("reproduce", [*arguments, "--device", "cpu"]), "".join(capsys.readouterr())

    return call


# --- the tables as data, and their runs ---


def test_every_cell_has_the_papers_number() -> None:
    for table in TABLES.values():
        for row in table.rows:
            assert list(row.scores) == ([] if table.name == "fig4" else table.columns)
            assert all(("±" in score) == (table.name not in ("table3", "table4")) for score in row.scores.values())
    assert TABLES["table1"].rows[0].scores[WRN] == "70.42 ± 0.08"


def test_names_are_stable_and_tell_all_runs_apart() -> None:
    """A changed name would orphan every record that was written before."""
    run = cell("table1", "frskd_f", seed=1)
    assert run.name == "cifar100_wrn_16_2_frskd_alpha2_beta0_200epochs_cpu_670f9bfa_seed1"
    assert run.label == "FRSKD\\F, CIFAR-100, WRN-16-2, seed 1"
    fast = Scale(8, arguments=("--amp-dtype", "bf16", "--compile", "--cuda-graph", "on"), device="cuda")
    name = cell("table5", "frskd_hint", RESNET18, fast).name
    assert name.startswith("cifar100_resnet18_cifar_frskd_alpha2_beta100_hint_bf16_compile_cuda-graph_on_8epochs_cuda_")
    named: dict[str, Run] = {}
    for table in ("table1", "table5", "table6", "table7", "table8", "fig4"):
        for scale in (PAPER, Scale(device="cuda"), Scale(epochs=8, arguments=("--compile",))):
            for run in plan_table(TABLES[table].chosen(datasets=["cifar100"]), scale, (0, 1)):
                assert named.setdefault(run.name, run) == run
    identities = {json.dumps([run.identity, run.seed], sort_keys=True) for run in named.values()}
    assert len(identities) == len(named)
    # tables share their equal runs
    assert len({cell(name, "frskd", RESNET18).name for name in ("table1", "table5", "table7")}) == 1
    assert cell("table6", "bifpnc_256").name == cell("fig4", "alpha2_beta100").name


def test_rows_are_run_in_the_order_of_their_names_or_the_important_ones_first() -> None:
    table = TABLES["table1"]
    assert [row.key for row in table.chosen().rows][:5] == ["baseline", "frskd", "frskd_f", "frskd_sla", "one"]
    runs = plan_table(table.chosen(["cifar100"], ["wrn_16_2"], ["frskd", "baseline"]), PAPER, (1, 0))
    assert [(run.row.key, run.seed) for run in runs] == [(k, seed) for seed in (1, 0) for k in ("frskd", "baseline")]


@pytest.mark.parametrize(
    ("table", "key", "column", "expected"),
    [
        ("table1", "frskd", "cifar100/wrn_16_2", {"width": 2, "alpha": 2.0, "beta": 100.0}),
        ("table1", "frskd_sla", "tinyimagenet/wrn_16_2", {"width": 2, "alpha": 3.0, "beta": 100.0}),
        ("table2", "frskd_f", "cub200/resnet18", {"width": 2, "alpha": 1.0, "beta": 0.0}),
        ("table5", "frskd_hint", "dogs/resnet18", {"width": 2, "alpha": 1.0, "beta": 100.0, "feature_loss": "hint"}),
        ("table6", "bifpn_128", "cifar100/wrn_16_2", {"channels": 128, "alpha": 2.0, "beta": 100.0}),
        ("table2", "cs_kd", "dogs/resnet18", {"weight": 3.0}),
        ("table1", "one", "cifar100/wrn_16_2", {"rampup_epochs": 80}),
        ("table7", "kd_hint", "mit67/resnet18", {"feature_loss": "hint", "teacher": {"model_name": "resnet34"}}),
    ],
)
def test_settings_are_the_papers(table: str, key: str, column: str, expected: dict[str, Any]) -> None:
    run = cell(table, key, Column(*column.split("/")))
    assert run.settings == expected | ({"temperature": 4.0} if run.method in ("frskd", "frskd_sla") else {})


def test_schedules_shrink_in_proportion() -> None:
    assert cell("table1", "one", scale=Scale(epochs=20)).settings == {"rampup_epochs": 8}
    run = cell("table1", "frskd", scale=REDUCED)
    schedule = ("train_cfg.max_epochs=8", "param_scheduler.milestones=[4,6]")
    assert (run.epochs, run.options) == (8, (*schedule, "train_dataloader.dataset.images_per_class=100"))
    segmentor = cell("table4", "frskd", Column("voc", "effdet_d0", "mIoU"), Scale(epochs=6))
    assert (segmentor.config, segmentor.method) == ("frskd_voc_effdet_d0", None)
    schedule = ("train_cfg.max_epochs=6", "param_scheduler.milestones=[4]")
    assert segmentor.options == (*schedule, "custom_hooks.2.begin=4", "custom_hooks.2.end=6")
    with pytest.raises(ValueError, match="baseline_cub200_resnet18 is always trained on as a whole"):
        plan_table(TABLES["table2"], REDUCED, (0,))


def test_one_teacher_a_data_set_comes_before_its_students() -> None:
    runs = plan_table(TABLES["table7"].chosen(datasets=["cifar100", "cub200"]), PAPER, (0, 1))
    names, teachers = [run.name for run in runs], {run.teacher.label: run.teacher for run in runs if run.teacher}
    assert list(teachers) == ["Baseline, CIFAR-100, resnet34_cifar, seed 0", "Baseline, CUB200, ResNet34, seed 0"]
    assert all(names.index(run.teacher.name) < names.index(run.name) for run in runs if run.teacher)
    assert len(runs) == 2 * 5 * 2 + 2


def test_command_line_of_a_run(store: Store) -> None:
    run, data = cell("table7", "kd_hint", RESNET18, Scale(8, None, (), ("--compile",)), 5), Path("data")
    config, *arguments = training_arguments(run, store, data)
    assert Path(config) == REPOSITORY / "configs" / "baseline_cifar100_resnet18_cifar.py"
    teacher = store.work_dir.resolve() / "teachers" / f"{run.teacher.name}.pth"
    assert arguments == [
        *("--data-root", "data/cifar100", "--work-dir", str(store.work_dir / run.name)),
        *("--seed", "5", "--resume", "--method", "kd", "--method-options", "feature_loss=hint"),
        *("teacher.model_name=resnet34_cifar", f"teacher.checkpoint={teacher}"),
        *("--compile", "--cfg-options", "train_cfg.max_epochs=8", "param_scheduler.milestones=[4,6]"),
    ]
    segmentor = cell("table4", "baseline", Column("voc", "effdet_d0", "mIoU"))
    where = ["--data-root", "data/VOCdevkit", "--work-dir", str(store.folder(segmentor))]
    assert training_arguments(segmentor, store, data)[1:] == [*where, "--seed", "0", "--resume"]


def test_processes_share_the_devices_and_the_threads(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def gpus(*devices: str) -> list[str]:
        trainer = Trainer(store, Path(), devices, threads=2)
        assert trainer.environment(0)["OMP_NUM_THREADS"] == "2"
        return [trainer.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus("cuda:0", "cuda:3") == ["0", "3", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,GPU-7")  # of those that a scheduler has given
    assert gpus("cuda:0", "cuda:3") == ["4", "GPU-7", "4"] and gpus("cpu", "cuda") == ["", "4,5,6,GPU-7", ""]
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_for(jobs) for jobs in (1, 2, 3, 16)] == [None, 4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_for(2) is None


# --- what is run, skipped, resumed, and fails ---


def test_done_runs_are_skipped_and_recorded(trainer: Trainer, fake: FakeTraining, store: Store) -> None:
    runs = [small_run(0), small_run(1)]
    trainer.jobs = 2
    assert trainer.train(runs) == {} and fake.started == [[run.name] for run in runs]
    record = store.read(runs[1])
    assert (record["name"], record["seed"], record["identity"]) == (runs[1].name, 1, runs[1].identity)
    assert record["last"] == {"epoch": 3, "top1": 74.0, "top5": 90.0} == record["best"] == record["history"][-1]
    assert record["seconds"] >= 0 and {"torch", "timm", "frskd_plugin"} <= set(record["versions"])
    assert trainer.train([*runs, small_run(2)]) == {} and fake.started[2:] == [[small_run(2).name]]
    store.record_file(runs[0]).unlink()  # it ended while nobody looked: nothing is trained for it
    record["identity"]["epochs"] = 200  # of other settings
    write_json(store.record_file(runs[1]), record)
    (store.folder(runs[1]) / "result.json").unlink()
    assert trainer.train(runs) == {} and fake.started[3:] == [[runs[1].name]]
    for run in runs:  # records are all that is needed
        shutil.rmtree(store.folder(run))
        assert store.is_done(run)


def test_a_failed_run_is_reported_and_goes_on_the_next_time(
    trainer: Trainer, fake: FakeTraining, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (small_run(seed) for seed in range(3))
    trainer.side_by_side, fake.stops = 2, {0: 2}
    failures = trainer.train([first, second, third])
    assert fake.started == [[first.name, second.name], [third.name]]
    assert failures.keys() == {first.label} and not store.record_file(first).exists()
    assert re.fullmatch(r"it ended before epoch 3 .*ends with\s+hello\s+out of memory", failures[first.label], re.S)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"started  {first.label}: {store.log(first)}"
    assert f"finished {second.label}: epoch 3, top1 74.00, top5 90.00" in said
    fake.stops.clear()
    assert trainer.train([first, second]) == {} and len(store.read(first)["history"]) == 3
    assert store.log(first).read_text().splitlines() == ["hello", "out of memory"] * 2  # of both times


def test_runs_that_the_clock_stops_are_no_failures(
    trainer: Trainer, fake: FakeTraining, store: Store, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(reproduce_runs, "TELL_SECONDS", 0.0)
    fake.stops, fake.last_words, runs = {0: 2}, PAUSED, [small_run(0), small_run(1)]
    assert trainer.train(runs) == {}
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert f"{runs[0].label}: epoch 2, top1 72.00, top5 90.00 (of 3 epochs)" in said
    assert f"paused   {runs[0].label}" in said and any(line.startswith("all of them: about ") for line in said)
    assert said[-1] == "the time is up; 2 runs are left, the same command goes on with them"
    trainer.deadline = time.time() - 1
    assert trainer.train(runs) == {} and len(fake.started) == 1
    trainer.deadline, fake.stops = time.time() + 600, {}
    assert trainer.train(runs) == {} and store.is_done(runs[1])


def test_stopping_ends_the_processes(store: Store, fake: FakeTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    slow = [sys.executable, "-S", "-c", "import time; time.sleep(3600)"]
    monkeypatch.setattr(reproduce_runs, "training_process", lambda runs, *_: slow if runs[0].seed else fake(runs))
    start, started = Trainer._start, []
    monkeypatch.setattr(Trainer, "_start", lambda *arguments: started.append(start(*arguments)) or started[-1])
    with pytest.raises(KeyboardInterrupt, match="the same command goes on from here"):
        Trainer(store, Path(), ["cpu"], 2, on_done=stop).train([small_run(1), small_run(0)])
    assert [process.returncode for process in started] == [-signal.SIGTERM, 0]


def test_students_wait_for_their_teacher_and_fail_with_it(
    store: Store, fake: FakeTraining, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce_runs, "export_student", lambda source, target: target.write_text(source.name))
    teacher = small_run(model="resnet34_cifar")
    student = small_run(method="kd", teacher=teacher)
    fake.stops[0] = 1
    failures = trainer.train([teacher, student])
    assert fake.started == [[teacher.name]] and failures[student.label] == f"its teacher failed ({teacher.label})"
    fake.stops.clear()
    trainer.train([teacher])
    assert not store.is_done(teacher, teaches=True)  # the record is there, the network is not
    for epoch in (1, teacher.epochs):  # one that is half trained again is not kept
        file = store.folder(teacher) / f"epoch_{epoch}.pth"
        torch.save({"state_dict": {}, "optimizer": {}, "message_hub": {}, "meta": {"epoch": epoch}}, file)
        assert store.is_done(teacher, teaches=True) is (epoch == teacher.epochs)
    assert store.teacher_file(teacher).read_text() == f"epoch_{teacher.epochs}.pth"
    assert trainer.train([teacher, student]) == {} and fake.started[2:] == [[student.name]]


def test_a_segmentors_scores_come_from_its_logs(tmp_path: Path) -> None:
    for start, lines in (
        ("20260101", [{"loss": 1.0, "step": 5}, {"mIoU": 10.0, "step": 1}, {"mIoU": 11.0, "step": 2}]),
        ("20260102", [{"mIoU": 12.0, "aAcc": 50.0, "step": 2}]),
    ):
        file = tmp_path / start / "vis_data" / "scalars.json"
        file.parent.mkdir(parents=True)
        file.write_text("\n".join([*map(json.dumps, lines), '{"mIoU": 20.0, "st']))  # killed, or the disk was full
    assert read_history(tmp_path) == [{"epoch": 1, "mIoU": 10.0}, {"epoch": 2, "mIoU": 12.0, "aAcc": 50.0}]


def test_a_damaged_file_stops_its_own_run_alone(tool: Callable[..., Any], fake: FakeTraining, store: Store) -> None:
    options = [*SMALL, "--methods", "baseline", "--epochs", "4", "--data", "."]
    first, second, third, *others = (cell("table1", "baseline", scale=Scale(4), seed=seed) for seed in range(6))
    options += ["--seeds", *map(str, range(6))]
    assert tool(*options)[0] == 0
    for run in (second, third, *others[1:]):
        store.record_file(run).unlink()
    store.record_file(first).write_text('{"seed": ')
    write_json(store.record_file(others[0]), {"identity": others[0].identity, "seed": 3})
    (store.folder(second) / "result.json").write_text("[")
    (store.folder(third) / "result.json").unlink()
    (store.folder(others[1]) / "result.json").write_text('{"history": [{"epoch": 4, "loss": 1}]}')
    (store.folder(others[2]) / "result.json").write_text('{"history": [{"epoch": Infinity}]}')
    (store.out / "costs.json").write_text("{")
    fake.started.clear()
    status, printed = tool(*options)
    assert status == 1 and fake.started == [[third.name]] and "| Baseline | 76.00 (1) |" in printed
    assert re.search("FAILED .* seed 0: .*seed0.json is no JSON file .*; remove it", printed)
    assert re.search("FAILED .* seed 1: .*result.json is damaged .*; remove it", printed)
    assert re.search("FAILED .* seed 3: .*seed3.json is damaged: no last; remove it", printed)
    assert re.search("FAILED .* seed 4: .*seed4 has a validation without top1 or mIoU; remove it", printed)
    assert re.search("FAILED .* seed 5: .*result.json is damaged .*; remove it", printed)
    assert re.search("passed over: .*costs.json is no JSON file", printed)
    assert "damaged  Baseline, CIFAR-100, WRN-16-2, seed 0" in printed and "0 of 6 runs are done, 4 to go" in printed


# --- what is written ---


def test_markdown(store: Store) -> None:
    table = TABLES["table3"].chosen(models=["resnet18"])
    for seed, top1 in ((0, 69.0), (1, 70.0)):
        write_record(store, cell(table, "baseline", table.columns[0], PAPER, seed), top1=top1, top5=89.0)
    for scale in (Scale(epochs=9), Scale(device="cuda")):  # other runs, which do not count
        write_record(store, cell(table, "baseline", table.columns[0], scale, 2), top1=10.0, top5=20.0)
    text = session(table, store).write({"resnet18": cost(8, 0.5, baseline=1.0, frskd=2.0)})
    assert text.startswith("# Table 3: ImageNet\n\nThe paper's schedule: 90 epochs, all training images.\n\n")
    assert (
        "| method | ImageNet, ResNet18 | paper | ImageNet, ResNet18, top-5 accuracy | paper | step, ResNet18 |\n"
        "|---|---|---|---|---|---|\n"
        "| Baseline | 69.50 ± 0.71 (2) | 69.76 | 89.00 ± 0.00 (2) | 89.08 | × 1.00 |\n"
        "| FRSKD | – | 70.17 | – | 89.78 | × 2.00 |\n\n"
    ) in text
    assert "resnet18 8 images a step" in text


def test_a_reduced_table_cannot_be_taken_for_the_papers(store: Store) -> None:
    table = TABLES["table1"].chosen(["cifar100"], ["wrn_16_2"])
    scale = Scale(8, 100, ("train_dataloader.batch_size=64",), ("--amp-dtype", "bf16"))
    write_record(store, cell(table, "frskd", WRN, scale), top1=30.0)
    title, _, conditions, *rest = session(table, store, scale).write({}).splitlines()
    assert title == "# Table 1: self-distillation on CIFAR-100 and TinyImageNet (reduced runs)"
    assert conditions.startswith(
        "**Not the paper's conditions:** 8 of 200 epochs (learning rate / 10 after 4,6); the first 100 training images "
        "of each class; `train_dataloader.batch_size=64`; `--amp-dtype bf16`. "
    )
    assert "| FRSKD | 30.00 (1) | 73.27 ± 0.45 |" in rest and "paper (full runs)" in "".join(rest)
    assert "30.00" not in session(table, store).write({})


def test_each_file_keeps_the_columns_of_other_calls_and_has_one_scale(store: Store) -> None:
    def columns(session: Session) -> list[str]:
        return list(dict.fromkeys(column.data for _, column in session.records()))

    whole = TABLES["table5"]
    write_record(store, cell(whole, "baseline", Column("dogs", "resnet18")), top1=60.0)
    write_record(store, cell(whole, "baseline", RESNET18, REDUCED), top1=20.0)
    assert columns(session(whole.chosen(datasets=["mit67"], methods=["frskd"]), store)) == ["mit67", "dogs"]
    assert columns(session(whole.chosen(datasets=["cifar100"]), store, REDUCED)) == ["cifar100"]
    scales = [PAPER, REDUCED, Scale(8), Scale(8, None, ("a=1",)), Scale(8, None, ("a=2",)), Scale(8, 100, ("a=1",))]
    stems = [session("table1", store, scale).file_stem for scale in scales]
    assert stems[:3] == ["table1", "table1_8_epochs_100_images", "table1_8_epochs"]
    assert len(set(stems)) == len(stems) and stems[3].startswith("table1_8_epochs_changed_")


def test_figure_4(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, draw = [], Axes.errorbar

    def errorbar(axis: Axes, *line: Any, label: str, **style: Any) -> Any:
        lines.append((label, *line))
        return draw(axis, *line, label=label, **style)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    for key, seed, top1 in (("alpha2_beta50", 0, 70.0), ("alpha2_beta50", 1, 72.0), ("alpha2_beta500", 0, 71.0)):
        write_record(store, cell("fig4", key, seed=seed), top1=top1)
    text = session(TABLES["fig4"].chosen(datasets=["cifar100"]), store).write({})
    assert "![Figure 4: sensitivity to alpha and beta](fig4.png)" in text
    assert lines == [("alpha 2", [50.0, 500.0], [71.0, 71.0], [pytest.approx(2**0.5), 0.0])]
    assert (store.out / "fig4.png").read_bytes().startswith(b"\x89PNG")


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


def test_steps_of_equal_cost_are_timed_once_and_costs_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods with data of their own, on real networks; the clock is not."""
    timed: list[int] = []

    def medians(turns: Sequence[Any], *_: Any) -> list[float]:
        timed.append(len(turns))
        assert all(turn() > 0 for turn in turns)
        return [0.5, *(1.0 + index for index in range(len(turns) - 1))]

    monkeypatch.setattr(reproduce_cost, "CPU_BATCHES", (2, 2))
    monkeypatch.setattr(reproduce_cost, "interleaved_medians", medians)
    rows = [row for row in TABLES["table1"].rows if row.key in ("ddgsd", "cs_kd")]
    small = dataclasses.replace(TABLES["table1"], rows=rows)
    monkeypatch.setitem(TABLES, "table1", small)
    first, again = (session(small.chosen(["cifar100"], ["wrn_16_2"]), store).costs(True) for _ in range(2))
    assert first == again == {"wrn_16_2": cost(2, 0.5, ddgsd=2.0, cs_kd=4.0)} and timed == [3]
    assert session("table1", store, device="cuda").costs(False) == {}
    write_json(store.out / "costs.json", {"table1, wrn_16_2, cpu": {"ratios": {}}, "table1, resnet18_cifar, cpu": 3})
    assert session("table1", store).costs(False) == {}
    # the weights change nothing but to 0
    assert len({step_signature(run) for run in plan_table(TABLES["fig4"], PAPER, (0,))}) == 1
    assert len({step_signature(cell("table2", key, CUB)) for key in ("frskd", "frskd_f")}) == 2


# --- the command line ---


def test_tool_writes_the_table_and_says_what_failed(
    tool: Callable[..., tuple[int, str]], fake: FakeTraining, store: Store
) -> None:
    options = [*SMALL, "--methods", "baseline", "frskd", "--epochs", "4", "--data", ".", "--jobs", "2", "--no-cost"]
    fake.stops[2] = 1
    status, printed = tool(*options)
    assert status == 1 and "2 runs failed: Baseline, CIFAR-100, WRN-16-2, seed 2; FRSKD, " in printed
    assert printed.startswith("to do  Baseline, CIFAR-100, WRN-16-2, seed 0  work_dirs/reproduce/cifar100_wrn_16_2_bas")
    text = (store.out / "table1_4_epochs.md").read_text()
    assert "| FRSKD | 74.50 ± 0.71 (2) | 73.27 ± 0.45 |" in text and "| ONE | – | 73.01 ± 0.23 |" in text
    fake.stops.clear()
    status, printed = tool(*options)
    assert status == 0 and "4 of 6 runs are done, 2 to go" in printed
    assert "| FRSKD | 75.00 ± 1.00 (3) |" in (store.out / "table1_4_epochs.md").read_text()
    assert not (store.out / "table1.md").exists()


def test_published_records_count_and_only_publish_writes_there(tool: Callable[..., Any], store: Store) -> None:
    published = Path("docs/results")
    run = cell("table1", "baseline", scale=Scale(4), seed=1)
    # of an earlier version, which knew no device
    old = {"identity": {k: v for k, v in run.identity.items() if k != "device"}, "seed": 1}
    write_json(published / "runs" / "cifar100_wrn_16_2_baseline_0_seed1.json", {**old, "last": {"top1": 60.0}})
    options = [*SMALL, "--methods", "baseline", "--epochs", "4", "--data", ".", "--seeds", "0", "1"]
    assert tool(*options)[0] == tool("table6")[0] == 0
    assert len(list(published.rglob("*.*"))) == 1
    text = (store.out / "table1_4_epochs.md").read_text()
    assert "| Baseline | 67.00 ± 9.90 (2) | 70.42 ± 0.08 | × 1.00 |" in text
    table6 = (store.out / "table6.md").read_text()  # counted without data
    assert "| BiFPN, 256 channels | × 0.97 | × 0.97 | × 2.38 | × 2.38 | × 2.35 | × 0.97 | × 2.35 |" in table6
    assert "| BiFPNc, 256 channels | – | 73.27 ± 0.45 |" in table6
    assert tool(*options, "--publish")[0] == 0
    assert (published / "table1_4_epochs.md").read_text() == text and len(list(published.glob("runs/*"))) == 2
    assert "table1, wrn_16_2, cpu" in (published / "costs.json").read_text()
    write_record(store, run, top1=7.0)  # one's own comes first
    records = Store(store.work_dir, store.out, published).records_of(run).values()
    assert [record["last"]["top1"] for record in records] == [74.0, 7.0]
    scale = Scale(6, 20, ("train_cfg.val_interval=6",), ("--amp-dtype", "bf16", "--channels-last"), "cuda")
    ours = Store(Path(), Path(), REPOSITORY / "docs/results").records_of(cell("table1", "frskd_sla", scale=scale))
    assert [record["last"]["top1"] for record in ours.values()] == [5.65, 4.96]


def test_dry_run_lists_and_trains_nothing(tool: Callable[..., Any], fake: FakeTraining, store: Store) -> None:
    options = [*SMALL, "--methods", "baseline", "frskd", "--seeds", "0", "--dry-run", "--side-by-side", "2"]
    status, printed = tool(*options, "--epochs", "36", "--images-per-class", "10")
    first, _, counts, total = printed.splitlines()
    # 36 epochs of 1000 images at 10 ms
    assert status == 0 and first.startswith("to do  Baseline, CIFAR-100, WRN-16-2, seed 0  about 0.10 h  work_dirs/")
    assert counts == "0 of 2 runs are done, 2 to go"
    assert total.startswith("0.2 h of training, 0.1 h with 2 at a time")
    assert fake.started == [] and not list(store.work_dir.glob("*epochs*"))
    # the paper's own epochs are no reduction
    assert tool(*options) == tool(*options, "--epochs", "200")


def test_a_method_of_the_users_own_joins(
    tool: Callable[..., tuple[int, str]], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from frskd_plugin.methods import register_method\nfrom frskd_plugin.methods.baseline import Baseline\n"
    Path("my_methods.py").write_text(code + "@register_method('mine')\nclass Mine(Baseline): pass\n")
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.setattr("frskd_plugin.methods.registry._METHODS", dict(registry._METHODS))
    options = ["--import", "my_methods", "--methods", "mine", "--seeds", "0", "--epochs", "4", "--data", "."]
    status, printed = tool(*SMALL, *options, "--no-cost")
    assert status == 0 and "| mine | 74.00 (1) | – |" in printed
    table = dataclasses.replace(TABLES["table1"], rows=[Row("mine", "mine", "mine", imports=("my_methods",))])
    arguments = training_arguments(cell(table, "mine"), store, Path())
    assert arguments[-4:] == ["--method", "mine", "--import", "my_methods"]
    status, printed = tool(*SMALL, "--import", "no_such_module", "--dry-run")
    assert status == 2 and "--import no_such_module: there is no such module in" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1"], "--data is missing"),
        (["table1", "--data", "/nowhere"], "--data: /nowhere is not a folder"),
        (["table1", "--dry-run", "--methods", "kd"], "--methods: table1 has no kd; it has baseline, frskd, "),
        (["fig4", "--dry-run", "--datasets", "mit67", "--models", "wrn_16_2"], "fig4 has none of these data sets with"),
        (["table1", "--dry-run", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["table1", "--dry-run", "--device", "cpu", "meta"], "--device: expected devices of one kind, got cpu meta"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("reproduce", arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"frskd reproduce: error: {message}")
