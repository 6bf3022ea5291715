"""tools/report.py: the page of real runs, and of hand-made logs with everything that logs can have in them."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from frskd_plugin.report.charts import charts_of, thin
from frskd_plugin.report.command import main, write_report
from frskd_plugin.report.facts import facts_of, read_config_of
from frskd_plugin.report.run_logs import read_run
from frskd_plugin.report.scores import read_result, scores_of
from frskd_plugin.report.style import BACKGROUND, DARK, LIGHT
from tests.helpers.real_runs import train
from tests.helpers.tiny_classification import tiny_config, write_cifar
from tests.helpers.tiny_mmseg import tiny_config as tiny_segmentor

VOID = {"meta", "img", "br", "path", "link", "input"}


class Page(HTMLParser):
    """What a page holds: its tags with their attributes, its text, and the exact values of its tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "data":
            self.tables[-1][-1][-1] = dict(attrs)["value"] or ""

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open[-1:] in (["th"], ["td"]):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def labels(self) -> list[str]:
        return [
            attrs.get("aria-label") or "" for tag, attrs in self.tags if tag == "svg" and attrs.get("role") == "img"
        ]

    def lines(self) -> list[np.ndarray]:
        """The pixels [N, 2] of each line that is drawn in a chart."""
        paths = [attrs["d"] or "" for _, attrs in self.tags if attrs.get("class") == "line"]
        paths = [path[1:].split("L") for path in paths if "H" not in path]  # those of the legends run horizontally
        return [np.array([[float(part) for part in pair.split()] for pair in path]) for path in paths]

    def values(self, title: str) -> list[list[str]]:
        """The rows of the table below the chart with this title."""
        charts = [re.split(r" over \w+s\. ", label)[0] for label in self.labels()]
        return self.tables[2 + charts.index(title)]  # after the scores and the facts


def report(work_dir: Path, *options: object) -> Page:
    out = work_dir.parent / "page" / "report.html"
    assert main([str(work_dir), "-o", str(out), *map(str, options)]) == 0
    return Page(out.read_text(encoding="utf-8"))


def lines_of(work_dir: Path) -> list[dict[str, Any]]:
    (log,) = work_dir.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in log.read_text().splitlines()]


def step(number: int, epoch: int, **values: float) -> dict[str, Any]:
    return {**values, "epoch": epoch, "iter": number, "step": number}


def write_start(work_dir: Path, stamp: str, lines: list[dict[str, Any]], steps: int | None = 4) -> Path:
    """A start of a run as mmengine leaves it: JSON lines, and a text log that says how many steps an epoch has."""
    folder = work_dir / stamp / "vis_data"
    folder.mkdir(parents=True)
    (folder / "scalars.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if steps:
        head = "2026/01/02 03:04:05 - mmengine - INFO - \n    PyTorch: 9.8.7\n    seed: 42\n"
        log = f"{head}2026/01/02 03:05:06 - mmengine - INFO - Epoch(train) [1][1/{steps}]  loss: 1\n"
        (work_dir / stamp / f"{stamp}.log").write_text(log)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FRSKD run of three epochs with a picture of each."""
    root = tmp_path_factory.mktemp("classifier")
    config = tiny_config(write_cifar(root / "cifar"))
    del config.model.method["temperature"]  # FRSKD's default stands in the page all the same
    hook = dict(type="ClassifierAttentionPictureHook", num_images=1, interval=1)
    config.custom_hooks = [h for h in config.custom_hooks if h.type != hook["type"]] + [hook]
    config.visualizer.vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
    train(config, root / "frskd")
    return root / "frskd"


@pytest.fixture(scope="module")
def page(classifier: Path) -> Page:
    return report(classifier)


def test_every_loss_of_the_log_is_in_the_page(classifier: Path, page: Page) -> None:
    steps = [line for line in lines_of(classifier) if "iter" in line]
    assert len(steps) == 12
    for key, title in {
        "loss": "total loss",
        "loss_ce": "student, cross-entropy",
        "loss_teacher_ce": "self-teacher, cross-entropy",
        "loss_kd": "soft labels, times alpha",
        "loss_feat": "feature distillation, times beta",
        "lr": "learning rate",
        "time": "seconds a step",
    }.items():
        expected = [[repr(line["iter"] / 4), repr(float(line[key]))] for line in steps]  # four steps an epoch
        assert page.values(title)[1:] == expected, key


def test_student_and_self_teacher_stand_in_one_chart(classifier: Path, page: Page) -> None:
    scores = [line for line in lines_of(classifier) if "top1" in line]
    expected = [[repr(float(line[key])) for key in ("step", "top1", "teacher_top1")] for line in scores]
    rows = page.values("top-1 accuracy (%)")
    assert rows[0] == ["epoch", "frskd, student", "frskd, self-teacher"] and rows[1:] == expected
    assert len(expected) == 3


def test_last_and_best_are_those_of_the_result(classifier: Path, page: Page) -> None:
    result = json.loads((classifier / "result.json").read_text())
    rows = {(row[1], row[2]): row[3:] for row in page.tables[0][1:]}
    for name in ("last", "best"):
        for key in ("top1", "top5"):
            entry = result[name]
            expected = [f"epoch {entry['epoch']}", repr(entry[key]), repr(entry[f"teacher_{key}"])]
            assert rows[key, name] == expected


def test_facts_of_a_run(classifier: Path, page: Page) -> None:
    facts = dict(page.tables[1][1:])
    config = Config.fromfile(next(classifier.glob("*/vis_data/config.py")), import_custom_modules=False)
    expected = {
        "state": "done, 3 epochs",
        "student": "wrn_16_2",
        "method": "frskd",
        "alpha": str(config.model.method.alpha),
        "beta": str(config.model.method.beta),
        "temperature": "4.0",
        "width": "1",
        "seed": "3",
        "epochs": "3 of 3",
        "batch size per process": "16",
    }
    assert "temperature" not in config.model.method
    assert {key: facts[key] for key in expected} == expected
    assert facts["optimizer"].startswith("SGD, lr 0.1") and facts["MMEngine"] and facts["PyTorch"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", facts["started"])
    times = sorted(line["time"] for line in lines_of(classifier) if "iter" in line)
    median = (times[5] + times[6]) / 2
    assert facts["time per training step"] == f"{median:.3g} s (median of 12 logged values)"


def pictures(page: Page) -> list[tuple[str, bytes]]:
    found = [attrs for tag, attrs in page.tags if tag == "img"]
    prefix = "data:image/png;base64,"
    assert all((attrs["src"] or "").startswith(prefix) for attrs in found)
    return [(attrs["alt"] or "", base64.b64decode((attrs["src"] or "")[len(prefix) :])) for attrs in found]


def test_pictures_of_the_run_stand_by_epoch(classifier: Path, page: Page) -> None:
    found = pictures(page)
    whens = ["epoch 1", "epoch 2", "end of the training"]
    assert [alt.partition(":")[0] for alt, _ in found] == [f"Attention maps, image_0, {when}" for when in whens]
    files = [classifier / "attention" / place / "image_0.png" for place in ("epoch_1", "epoch_2", "")]
    assert [png for _, png in found] == [file.read_bytes() for file in files]


def test_maps_are_drawn_from_the_checkpoints_that_are_left(classifier: Path, tmp_path: Path) -> None:
    image = tmp_path / "bird.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(image)
    ((alt, png),) = pictures(report(classifier, "--images", image))
    assert alt.startswith("Attention maps, bird.png: epoch 1, epoch 2, epoch 3:")  # the best one is one of these
    width, height = Image.open(io.BytesIO(png)).size
    # the image and three blocks of three epochs, students above self-teachers
    assert width / height == pytest.approx((1 + 3 * 3) / (2 * 1.3), rel=0.05)


def test_tensorboard_has_the_same_curves_and_the_pictures(classifier: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (file,) = classifier.glob("*/vis_data/events.out.tfevents.*")
    events = accumulator.EventAccumulator(str(file), size_guidance={"scalars": 0, "images": 0}).Reload()
    lines = lines_of(classifier)
    keys = {key for line in lines for key in line} - {"step"}
    assert {"loss_kd", "loss_feat", "lr", "top1", "teacher_top1"} <= keys == set(events.Tags()["scalars"])
    for key in keys - {"time", "data_time"}:  # of steps and validations, in one curve
        logged = [(line["step"], line[key]) for line in lines if key in line]
        shown = [(event.step, event.value) for event in events.Scalars(key)]
        assert [place for place, _ in shown] == [place for place, _ in logged]
        np.testing.assert_allclose([value for _, value in shown], [value for _, value in logged], rtol=1e-6)
    shown = events.Images("attention_image_0")
    assert [event.step for event in shown] == [1, 2, 3]
    last = Image.open(classifier / "attention" / "image_0.png").convert("RGB")
    assert np.array_equal(Image.open(io.BytesIO(shown[-1].encoded_image_string)), last)


def test_page_is_self_contained(page: Page, classifier: Path) -> None:
    html = (classifier.parent / "page" / "report.html").read_text()
    assert not re.search(r"https?:|//[a-z]", re.sub(r"<pre>.*?</pre>|base64,[^\"]*", "", html, flags=re.DOTALL))
    assert not re.search(r"@import|url\(", html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    addresses = [a[key] or "" for _, a in page.tags for key in ("src", "href", "srcset", "xlink:href") if key in a]
    assert addresses and all(address.startswith("data:image/png;base64,") for address in addresses)
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    (policy,) = [attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_page_is_accessible(page: Page) -> None:
    attributes = {
        tag: [attrs for name, attrs in page.tags if name == tag] for tag in ("html", "img", "th", "svg", "meta")
    }
    assert attributes["html"] == [{"lang": "en"}]
    assert any(attrs.get("name") == "viewport" for attrs in attributes["meta"])
    assert all(attrs["alt"] and attrs["width"] and attrs["height"] for attrs in attributes["img"])
    assert all(attrs["scope"] in ("col", "row") for attrs in attributes["th"])
    assert all(attrs.get("aria-hidden") == "true" or attrs.get("aria-label") for attrs in attributes["svg"])
    assert len([tag for tag, _ in page.tags if tag == "h1"]) == 1


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("theme", "colours"), [("light", LIGHT), ("dark", DARK)])
def test_colours_can_be_read_in_both_themes(theme: str, colours: tuple[str, ...]) -> None:
    for colour in colours:
        low, high = sorted([luminance(colour), luminance(BACKGROUND[theme])])
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_two_runs_stand_in_the_same_charts(classifier: Path, tmp_path: Path) -> None:
    baseline = tmp_path / "baseline"
    write_start(baseline, "20260102_030405", [step(4, 1, loss=2.5, loss_ce=2.5), {"top1": 40.0, "step": 1}])
    page = report(classifier, "--compare", baseline)
    rows = page.values("total loss")
    assert rows[0] == ["epoch", "frskd", "baseline"]
    assert [row[0] for row in rows[1:] if row[2] != "–"] == ["1.0"] and len(rows) == 13
    assert page.values("top-1 accuracy (%)")[0] == ["epoch", "frskd, student", "frskd, self-teacher", "baseline"]
    assert page.tables[1][0] == ["fact", "frskd", "baseline"]
    assert [row[0] for row in page.tables[0][1:]] == ["frskd"] * 4 + ["baseline"] * 2


@pytest.mark.slow
def test_segmentor(data_root: Path, tmp_path: Path) -> None:
    config = tiny_segmentor(data_root, epochs=2, workers=0, batch_size=4, frskd=True)
    config.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    config.val_evaluator.type = "SelfTeacherIoUMetric"
    hooks = [dict(type="SelfTeacherValidationHook"), dict(type="AttentionPictureHook", num_images=1, interval=1)]
    config.custom_hooks += hooks
    train(config, tmp_path / "seg")
    page, lines = report(tmp_path / "seg"), lines_of(tmp_path / "seg")
    scores = [line for line in lines if "mIoU" in line]
    assert page.values("mean intersection over union (%)")[1:] == [
        [repr(float(line[key])) for key in ("step", "mIoU", "self_teacher.mIoU")] for line in scores
    ]
    steps = [line for line in lines if "iter" in line]
    expected = [[repr(line["iter"] / 2), repr(line["self_teacher.loss_feat"])] for line in steps]
    assert page.values("feature distillation, times beta")[1:] == expected
    facts = dict(page.tables[1][1:])
    expected_facts = {
        "method": "frskd",
        "alpha": "1.0",
        "beta": "50.0",
        "temperature": "1.0",
        "width": "1",
        "seed": "3",
    }
    assert {key: facts[key] for key in expected_facts} == expected_facts
    assert facts["student"] == "TinyBackbone, FCNHead"
    best = max(scores, key=lambda line: line["mIoU"])
    rows = {(row[1], row[2]): row[3:] for row in page.tables[0][1:]}
    best_row = [f"epoch {best['step']}", repr(best["mIoU"]), repr(best["self_teacher.mIoU"])]
    assert rows["mIoU", "best"] == best_row and rows["mIoU", "last"][0] == "epoch 2"
    assert [alt.partition(":")[0] for alt, _ in pictures(page)] == [
        "Attention maps, image_0, epoch 1",
        "Attention maps, image_0, end of the training",
    ]


def values(run: Path, key: str = "loss") -> dict[float, float]:
    return {entry.position: entry.values[key] for entry in read_run(run).training if key in entry.values}


def test_resumed_run_is_joined_and_the_later_start_wins(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = [step(2, 1, loss=1.0), step(4, 1, loss=2.0), {"top1": 10.0, "step": 1}]
    first += [step(6, 2, loss=3.0), step(8, 2, loss=4.0), {"top1": 20.0, "step": 2}, step(10, 3, loss=5.0)]
    write_start(run, "20260102_000000", first)
    # goes on from epoch 1, whose validation it makes again
    second = [{"top1": 11.0, "step": 1}, step(7, 2, loss=30.0), step(8, 2, loss=40.0), {"top1": 21.0, "step": 2}]
    write_start(run, "20260103_000000", second)
    assert values(run) == {0.5: 1.0, 1.0: 2.0, 1.75: 30.0, 2.0: 40.0}
    assert [(entry.position, entry.values) for entry in read_run(run).validation] == [
        (1, {"top1": 11.0}),
        (2, {"top1": 21.0}),
    ]
    facts = facts_of(read_run(run), None, {})
    assert facts["starts"] == "2, the last in 20260103_000000" and facts["seed"] == "42" and facts["PyTorch"] == "9.8.7"


def test_start_from_the_beginning_replaces_what_was_there(tmp_path: Path) -> None:
    first = [step(4, 1, loss=1.0), {"top1": 10.0, "step": 1}, step(8, 2, loss=2.0), {"top1": 20.0, "step": 2}]
    again = [step(4, 1, loss=9.0), {"top1": 5.0, "step": 1}]
    write_start(tmp_path / "two", "20260102_000000", first)
    write_start(tmp_path / "two", "20260103_000000", again)
    write_start(tmp_path / "one", "20260102_000000", [*first, *again])  # both within a second: one folder
    for run in (tmp_path / "one", tmp_path / "two"):
        assert values(run) == {1.0: 9.0}
        assert [entry.values for entry in read_run(run).validation] == [{"top1": 5.0}]


def test_steps_that_are_not_counted_in_epochs(tmp_path: Path) -> None:
    without_log = tmp_path / "without_log"
    write_start(without_log, "20260102_000000", [step(4, 1, loss=1.0), {"top1": 1.0, "step": 1}], steps=None)
    run = read_run(without_log)
    assert (run.training_unit, run.validation_unit) == ("iteration", "epoch") and values(without_log) == {4: 1.0}

    by_iteration = tmp_path / "by_iteration"
    lines = [{"loss": n / 10, "iter": n, "step": n} for n in (10, 20, 30)] + [{"mIoU": 5.0, "step": 20}]
    write_start(by_iteration, "20260102_000000", lines, steps=None)
    write_start(by_iteration, "20260103_000000", [{"loss": 7.0, "iter": 30, "step": 30}], steps=None)
    run = read_run(by_iteration)
    assert run.validation_unit == run.training_unit == "iteration"
    assert values(by_iteration) == {10: 1.0, 20: 2.0, 30: 7.0} and run.validation[0].position == 20
    # runs in other units get charts of their own
    charts = charts_of([read_run(without_log), run], ["a", "b"])["Validation scores"]
    assert [(chart.key, chart.unit) for chart in charts] == [("top1", "epoch"), ("mIoU", "iteration")]


def test_run_under_way_without_any_validation(tmp_path: Path) -> None:
    folder = write_start(tmp_path / "run", "20260102_000000", [step(1, 1, loss=3.0), step(2, 1, loss=2.0)])
    (folder / "config.py").write_text("train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=200)\n")
    with open(folder / "scalars.json", "a") as file:
        file.write('{"loss": 1.5, "ep')  # the process is writing
    page = report(tmp_path / "run")
    assert "No validation yet." in page.text and "under way or stopped, at epoch 0.5 of 200" in page.text
    assert [attrs for tag, attrs in page.tags if tag == "img"] == []
    assert page.labels() == ["total loss over epochs. run: from 3 to 2, lowest 2, highest 3."]


def test_run_that_was_stopped_in_its_last_validation(tmp_path: Path) -> None:
    lines = [step(4, 1, loss=3.0), {"top1": 5.0, "step": 1}, step(8, 2, loss=2.0)]
    folder = write_start(tmp_path / "run", "20260102_000000", lines)
    (folder / "config.py").write_text("train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2)\n")
    assert "all 2 epochs are trained, the last validation is missing" in report(tmp_path / "run").text
    with open(folder / "scalars.json", "a") as file:
        file.write('{"top1": 6.0, "step": 2}\n')
    assert "done, 2 epochs" in report(tmp_path / "run").text


def test_values_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    losses = [3.0, math.nan, 2.0, math.inf, -math.inf, 1.0, 1e200]
    lines = [step(n, 1 + (n - 1) // 4, loss=loss, grad_norm=math.nan) for n, loss in enumerate(losses, start=1)]
    lines.append({"top1": math.nan, "step": 1})
    write_start(tmp_path / "run", "20260102_000000", lines)
    page = report(tmp_path / "run")
    labels = {label.partition(" over ")[0]: label for label in page.labels()}
    assert labels["total loss"] == "total loss over epochs. run: from 3 to 1, lowest 1, highest 3."
    assert labels["grad_norm"] == "grad_norm over epochs. run: no finite value."
    assert "run: 4 of 7 values are not finite, first at epoch 0.5." in page.text
    assert [row[1] for row in page.tables[3][1:]] == ["3.0", "nan", "2.0", "inf", "-inf", "1.0", "1e+200"]
    html = (tmp_path / "page" / "report.html").read_text()
    for drawn in re.findall(r' d="([^"]*)"| transform="([^"]*)"', html):
        assert not re.search("nan|inf", "".join(drawn))


def test_curve_lies_where_its_values_are(tmp_path: Path) -> None:
    write_start(tmp_path / "run", "20260102_000000", [{"top1": y, "step": x} for x, y in ((1, 10), (2, 30), (5, 20))])
    page = report(tmp_path / "run")
    (points,) = page.lines()
    # across: 0..5 fills 62..426; up: 10..30 with 5 % of their range on both sides fills 210..12
    across = 62 + np.array([1, 2, 5]) / 5 * (426 - 62)
    up = 210 - (np.array([10, 30, 20]) - 9) / 22 * (210 - 12)
    np.testing.assert_allclose(points, np.stack([across, up], axis=1), atol=0.051)
    assert "run: 30 at 2" in page.text


def test_learning_rate_over_decades_is_logarithmic(tmp_path: Path) -> None:
    lines = [step(4 * n, n, lr=lr, loss=1.0) for n, lr in enumerate((0.1, 0.01, 0.001), start=1)]
    write_start(tmp_path / "run", "20260102_000000", lines)
    page = report(tmp_path / "run")
    assert page.text.count("Logarithmic scale.") == 1
    _, points = page.lines()  # of the loss, and of the learning rate
    ups = points[:, 1]
    assert ups[1] - ups[0] == pytest.approx(ups[2] - ups[1], abs=0.11)
    assert all(tick in page.texts for tick in ("0.1", "0.01", "0.001"))


def test_long_curves_keep_every_peak() -> None:
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in enumerate(rng.normal(size=12345))]
    points[777], points[9000] = (777.0, 50.0), (9000.0, math.nan)
    kept = thin(points, limit=400)
    assert len(kept) <= 410 and set(map(str, kept)) <= set(map(str, points))
    assert kept[0] == points[0] and kept[-1] == points[-1] and points[777] in kept
    assert sum(math.isnan(y) for _, y in kept) == 1
    assert kept == sorted(kept, key=lambda point: point[0]) and thin(kept[:300]) == kept[:300]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>\"&"
    run = tmp_path / hostile.replace("/", "")
    folder = write_start(run, "20260102_000000", [step(4, 1, **{hostile: 1.0}), {hostile: 2.0, "step": 1}])
    (folder / "config.py").write_text(f"note = {hostile!r}\nmodel = dict(type={hostile!r})\n")
    (run / "attention").mkdir()
    Image.new("RGB", (4, 4)).save(run / "attention" / '<b onload=x>".png')
    page = report(run, "--title", hostile)
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert {name for _, attrs in page.tags for name in attrs if name.startswith("on")} == set()
    assert page.texts.count(hostile) >= 2 and any(hostile in label for label in page.labels())


def test_picture_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    write_start(tmp_path / "run", "20260102_000000", [step(4, 1, loss=1.0)])
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole, "png")
    for place, png in (("epoch_10", whole.getvalue()), ("epoch_2", whole.getvalue()), ("", whole.getvalue()[:3000])):
        folder = tmp_path / "run" / "attention" / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.png").write_bytes(png)
    page = report(tmp_path / "run")
    assert [alt.partition(":")[0] for alt, _ in pictures(page)] == [
        "Attention maps, a, epoch 2",
        "Attention maps, a, epoch 10",
    ]
    assert "a.png is left out, because it is no whole PNG file" in page.text


def test_old_result_gives_way_to_the_logs(tmp_path: Path) -> None:
    lines = [step(4, 1, loss=1.0), {"top1": 70.0, "top5": 90.0, "step": 1}, {"top1": 60.0, "top5": 95.0, "step": 2}]
    write_start(tmp_path, "20260102_000000", lines)
    run = read_run(tmp_path)
    old = {"metric": "top5", "last": {"epoch": 200, "top5": 1.0}, "best": {"epoch": 9, "top5": 2.0}}
    (tmp_path / "result.json").write_text(json.dumps(old))
    scores = scores_of(run, read_result(tmp_path))
    assert scores is not None and (scores.metric, scores.last.position, scores.best.position) == ("top5", 2, 2)
    scores = scores_of(run, {})
    assert scores is not None and (scores.metric, scores.best.position) == ("top1", 1)


def errors(tmp_path: Path) -> Iterator[tuple[str, list[Path], dict[str, Any], str]]:
    good = tmp_path / "good"
    write_start(good, "20260102_000000", [step(4, 1, loss=1.0)])
    yield (
        "no folder",
        [tmp_path / "none"],
        {},
        r"none is not a folder; expected the work folder of a run, with \*/vis_data",
    )
    (tmp_path / "bare").mkdir()
    yield "no log", [tmp_path / "bare"], {}, r"bare holds no log; expected .* LocalVisBackend"
    write_start(tmp_path / "empty", "20260102_000000", [])
    yield "no entry", [tmp_path / "empty"], {}, "has no entry in its logs yet .* logs first after"
    for name, line in {"text": "hello", "list": "[1]", "no_step": '{"loss": 1}', "odd": '{"step": "x"}'}.items():
        folder = write_start(tmp_path / name, "20260102_000000", [step(4, 1, loss=1.0)])
        with open(folder / "scalars.json", "a") as file:
            file.write(line + "\n")
        yield name, [tmp_path / name], {}, r"scalars.json, line 2: expected a JSON object with the numbers of a step"
    for name, text in {"result": "{", "short": "{}", "wrong": '{"metric": "a", "last": {}, "best": {}}'}.items():
        write_start(tmp_path / name, "20260102_000000", [step(4, 1, loss=1.0)])
        (tmp_path / name / "result.json").write_text(text)
        yield name, [tmp_path / name], {}, r"result.json is damaged: expected .* metric, last, best"
    folder = write_start(tmp_path / "config", "20260102_000000", [step(4, 1, loss=1.0)])
    (folder / "config.py").write_text("model = dict(\n")
    yield "config", [tmp_path / "config"], {}, r"config.py cannot be read: expected the config that mmengine wrote"
    yield "twice", [good, tmp_path / "x" / ".." / "good"], {}, "good was given 2 times; give each run once"
    yield "many", [good] * 9, {}, "expected 1 to 8 runs, got 9"
    yield "suffix", [good], {"out": tmp_path / "page.png"}, "must be an .html file, got .*page.png"
    yield "no checkpoint", [good], {"images": [tmp_path / "a.png"]}, "holds no checkpoint .* leave --images out"


def test_errors_say_what_is_expected_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, work_dirs, options, text in errors(tmp_path):
        with pytest.raises(ValueError, match=text):
            write_report(work_dirs, **{"out": tmp_path / "page.html", **options})
        assert not (tmp_path / "page.html").exists(), name
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "bare"), "-o", str(tmp_path / "page.html")])
    assert ended.value.code == 2 and re.match("report.py: .*holds no log; expected", capsys.readouterr().err)


def test_missing_image_is_named(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="image .*bird.png not found; expected an image file behind --images"):
        write_report([classifier], tmp_path / "page.html", images=[tmp_path / "bird.png"])


def test_config_of_a_method_of_the_users_own(tmp_path: Path) -> None:
    folder = write_start(tmp_path, "20260102_000000", [step(4, 1, loss=1.0)])
    model = "dict(type='TimmClassifier', student=dict(model_name='resnet18'), method=dict(name='mine', gamma=3))"
    (folder / "config.py").write_text(f"custom_imports = dict(imports=['not_installed'])\nmodel = {model}\n")
    run = read_run(tmp_path)
    facts = facts_of(run, read_config_of(run), {})
    assert (facts["method"], facts["gamma"], facts["student"]) == ("mine", "3", "resnet18")
