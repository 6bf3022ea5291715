"""tools/report.py: the page of real runs, and of hand-made logs with everything that logs can have in them."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from frskd_plugin.commands.report import main, write_report
from frskd_plugin.commands.report_charts import COLOURS, charts_of, thin
from frskd_plugin.commands.report_facts import facts_of
from frskd_plugin.commands.report_logs import read_run, read_text_log, scores_of
from tests.helpers.real_runs import train
from tests.helpers.tiny_classification import tiny_config, write_cifar
from tests.helpers.tiny_mmseg import tiny_config as tiny_segmentor


class Page:
    """Text, images and tables of a page, numbers as exactly as they stand. It has to be well-formed as XML is."""

    def __init__(self, html: str) -> None:
        self.html, self.root = html, ElementTree.fromstring(html)
        self.text = " ".join(" ".join(self.root.itertext()).split())
        for number in self.root.iter("data"):
            number.text = number.attrib["value"]
        tables = self.root.iter("table")
        self.tables = [[["".join(cell.itertext()) for cell in row] for row in table.iter("tr")] for table in tables]

    def images(self, kind: str) -> dict[str, bytes]:
        """Alternative text -> file, of 'png' or 'svg+xml'."""
        parts = [(image.attrib["alt"], *image.attrib["src"].split(";base64,")) for image in self.root.iter("img")]
        return {alt: base64.b64decode(data) for alt, of, data in parts if of == f"data:image/{kind}"}

    def labels(self) -> list[str]:
        return list(self.images("svg+xml"))

    def pictures(self) -> dict[str, bytes]:
        """Image and epoch -> file."""
        return {alt.partition(":")[0].removeprefix("Attention maps, "): png for alt, png in self.images("png").items()}

    def lines(self) -> list[np.ndarray]:
        """The pixels [N, 2] of each line that is drawn in a chart."""
        charts = "".join(svg.decode() for svg in self.images("svg+xml").values())
        paths = re.findall(r'id="curve\d+">\s*<path d="([^"]*)"', charts)
        return [np.array([pair.split()[1:] for pair in path.strip().splitlines()], float) for path in paths]

    def values(self, title: str) -> list[list[str]]:
        """The rows of the table below the chart with this title."""
        charts = [re.split(r" over \w+s\. ", label)[0] for label in self.labels()]
        return self.tables[self.tables.index(self.facts()) + 1 + charts.index(title)]

    def scores(self, run: int = 0) -> dict[str, list[str]]:
        """'top1, best' -> epoch, student's, self-teacher's."""
        return {row[0]: row[1:] for row in self.tables[run][1:]}

    def facts(self) -> list[list[str]]:
        return next(table for table in self.tables if table[0][0] == "fact")


def report(work_dir: Path, *options: object, draw: bool = False) -> Page:
    """Write a page and read it; charts are seldom drawn, which takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        if not draw:
            patch.setattr("frskd_plugin.commands.report.draw", lambda chart: b"")
        main([str(work_dir), *map(str, options)])
    return Page((work_dir / "report.html").read_text(encoding="utf-8"))


def lines_of(work_dir: Path) -> list[dict[str, Any]]:
    (log,) = work_dir.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in log.read_text().splitlines()]


def step(number: int, epoch: int, **values: float) -> dict[str, Any]:
    return {**values, "epoch": epoch, "iter": number, "step": number}


def write_start(
    work_dir: Path,
    *lines: dict[str, Any] | str,
    stamp: str = "20260102_000000",
    steps: int | None = 4,
    config: str | None = None,
) -> Path:
    """A start of a run as mmengine leaves it: JSON lines, and a text log that says how many steps an epoch has."""
    folder = work_dir / stamp / "vis_data"
    folder.mkdir(parents=True)
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "scalars.json").write_text(text)
    if steps:
        head = "2026/01/02 03:04:05 - mmengine - INFO - \n    PyTorch: 9.8.7\n    seed: 42\n"
        log = f"{head}2026/01/02 03:05:06 - mmengine - INFO - Epoch(train) [1][1/{steps}]  loss: 1\n"
        (work_dir / stamp / f"{stamp}.log").write_text(log)
    if config is not None:
        (folder / "config.py").write_text(config)
    return folder


# --- pages of real runs ---


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FRSKD run of two epochs with a picture of each."""
    root = tmp_path_factory.mktemp("classifier")
    config = tiny_config(write_cifar(root / "cifar"))
    hook = dict(type="ClassifierAttentionPictureHook", num_images=1, interval=1)
    config.custom_hooks = [h for h in config.custom_hooks if h.type != hook["type"]] + [hook]
    train(config, root / "frskd", train_cfg__max_epochs=2)
    return root / "frskd"


@pytest.fixture(scope="module")
def page(classifier: Path) -> Page:
    return report(classifier, draw=True)


def test_page_shows_what_the_run_logged(classifier: Path, page: Page) -> None:
    steps = [line for line in lines_of(classifier) if "iter" in line]
    assert len(steps) == 8
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
    keys = ("step", "top1", "teacher_top1")
    scores = [[repr(float(line[key])) for key in keys] for line in lines_of(classifier) if "top1" in line]
    assert page.values("top-1 accuracy (%)") == [["epoch", "frskd, student", "frskd, self-teacher"], *scores]
    result = json.loads((classifier / "result.json").read_text())
    for name in ("last", "best"):
        entry = result[name]
        for key in ("top1", "top5"):
            expected = [str(entry["epoch"]), repr(entry[key]), repr(entry[f"teacher_{key}"])]
            assert page.scores()[f"{key}, {name}"] == expected
        headline = f"{entry['top1']:.2f} self-teacher {entry['teacher_top1']:.2f}, epoch {entry['epoch']}"
        assert f"{name} top1 {headline}" in page.text


def test_facts_and_pictures_of_a_run(classifier: Path, page: Page) -> None:
    facts = dict(page.facts()[1:])
    expected = {"state": "done, 2 epochs", "student": "wrn_16_2", "method": "frskd", "temperature": "4.0", "width": "1"}
    expected |= {"seed": "3", "epochs": "2 of 2", "batch size per process": "16"}
    assert expected.items() <= facts.items()
    assert facts["optimizer"].startswith("SGD, lr 0.1") and facts["MMEngine"] and facts["PyTorch"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", facts["started"])
    times = sorted(line["time"] for line in lines_of(classifier) if "iter" in line)
    assert facts["time per training step"] == f"{(times[3] + times[4]) / 2:.3g} s (median of 8 logged values)"
    files = {"epoch 1": "epoch_1/image_0.png", "end of the training": "image_0.png"}
    pictures = [(f"image_0, {when}", (classifier / "attention" / file).read_bytes()) for when, file in files.items()]
    assert list(page.pictures().items()) == pictures


def test_maps_are_drawn_from_the_checkpoints_that_are_left(classifier: Path, tmp_path: Path) -> None:
    run, image = tmp_path / "run", tmp_path / "bird.png"
    write_start(run, step(4, 1, loss=1.0))
    for name, source in (("epoch_1", "epoch_1"), ("epoch_2", "epoch_2"), ("best_top1_epoch_2", "epoch_2")):
        shutil.copyfile(classifier / f"{source}.pth", run / f"{name}.pth")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(image)
    page = report(run, "--images", image)
    (png,) = page.pictures().values()
    assert "bird.png: epoch 1, epoch 2" in page.text
    width, height = Image.open(io.BytesIO(png)).size
    # the image and three blocks of two epochs, students above self-teachers
    assert width / height == pytest.approx((1 + 3 * 2) / (2 * 1.3), rel=0.05)
    with pytest.raises(FileNotFoundError, match="image .*cat.png not found; expected an image file behind --images"):
        write_report([run], tmp_path / "page.html", images=[tmp_path / "cat.png"])


def test_page_is_self_contained_and_accessible(page: Page) -> None:
    html = re.sub(r"<pre>.*?</pre>|base64,[^\"]*", "", page.html, flags=re.DOTALL)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    elements = list(page.root.iter())
    tags = [element.tag for element in elements]
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(tags)
    addresses = [value for element in elements for key, value in element.items() if key in ("src", "href", "srcset")]
    assert addresses and all(re.match(r"data:image/(png|svg\+xml);base64,", address) for address in addresses)
    (policy,) = (element.attrib["content"] for element in elements if "http-equiv" in element.attrib)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert all(element.attrib["scope"] in ("col", "row") for element in elements if element.tag == "th")
    assert tags.count("h1") == 1 and page.root.attrib == {"lang": "en"}
    for colour in COLOURS:  # can be read on white
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        assert 1.05 / (np.dot(linear, [0.2126, 0.7152, 0.0722]) + 0.05) >= 4.5


def test_two_runs_stand_in_the_same_charts(tmp_path: Path) -> None:
    frskd, baseline = tmp_path / "frskd", tmp_path / "baseline"
    both = {"top1": 50.0, "teacher_top1": 60.0, "step": 1}
    write_start(frskd, step(2, 1, loss=3.5), step(4, 1, loss=3.0), both)
    write_start(baseline, step(4, 1, loss=2.5), {"top1": 40.0, "step": 1})
    page = report(frskd, "--compare", baseline)
    assert page.values("total loss") == [["epoch", "frskd", "baseline"], ["0.5", "3.5", "–"], ["1.0", "3.0", "2.5"]]
    assert page.values("top-1 accuracy (%)")[0] == ["epoch", "frskd, student", "frskd, self-teacher", "baseline"]
    assert page.facts()[0] == ["fact", "frskd", "baseline"]
    assert page.scores(1) == {"top1, last": ["1", "40.0", "–"], "top1, best": ["1", "40.0", "–"]}


@pytest.mark.slow
def test_segmentor(data_root: Path, tmp_path: Path) -> None:
    config = tiny_segmentor(data_root, epochs=1, workers=0, batch_size=4, frskd=True)
    config.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    config.val_evaluator.type = "SelfTeacherIoUMetric"
    config.custom_hooks += [dict(type="SelfTeacherValidationHook")]
    train(config, tmp_path / "seg")
    page, (*steps, scores) = report(tmp_path / "seg"), lines_of(tmp_path / "seg")
    values = [repr(float(scores[key])) for key in ("step", "mIoU", "self_teacher.mIoU")]
    assert page.values("mean intersection over union (%)")[1:] == [values]
    assert page.scores()["mIoU, best"] == ["1", *values[1:]]
    expected = [[repr(line["iter"] / 2), repr(line["self_teacher.loss_feat"])] for line in steps]
    assert page.values("feature distillation, times beta")[1:] == expected
    facts = {"method": "frskd", "alpha": "1.0", "beta": "50.0", "temperature": "1.0", "width": "1", "seed": "3"}
    assert (facts | {"student": "TinyBackbone, FCNHead"}).items() <= dict(page.facts()[1:]).items()
    # IoU of each class, whose mean is the logged one, of both networks
    (classes,) = (table for table in page.tables if table[0][0] == "class")
    assert classes[0] == ["class", "student", "self-teacher"] and len(classes) == 1 + 4
    for column, key in ((1, "mIoU"), (2, "self_teacher.mIoU")):
        assert np.nanmean([float(row[column]) for row in classes[1:]]) == pytest.approx(scores[key], abs=0.02)


# --- logs with everything that can be in them ---


def points(run: Path, key: str) -> dict[float, float]:
    """Position -> value."""
    logs = read_run(run)
    series = (logs.training | logs.validation)[key]
    return dict(zip(series.positions.tolist(), series.values.tolist(), strict=True))


def test_resumed_run_is_joined_and_the_later_start_wins(tmp_path: Path) -> None:
    first = [step(2, 1, loss=1.0), step(4, 1, loss=2.0), {"top1": 10.0, "step": 1}]
    first += [step(6, 2, loss=3.0), step(8, 2, loss=4.0), {"top1": 20.0, "step": 2}, step(10, 3, loss=5.0)]
    write_start(tmp_path, *first)
    # goes on from epoch 1, whose validation it makes again
    second = [{"top1": 11.0, "step": 1}, step(7, 2, loss=30.0), step(8, 2, loss=40.0), {"top1": 21.0, "step": 2}]
    write_start(tmp_path, *second, stamp="20260103_000000")
    assert points(tmp_path, "loss") == {0.5: 1.0, 1.0: 2.0, 1.75: 30.0, 2.0: 40.0}
    assert points(tmp_path, "top1") == {1: 11.0, 2: 21.0}
    facts = facts_of(read_run(tmp_path), {})
    assert facts["starts"] == "2, the last in 20260103_000000" and facts["seed"] == "42" and facts["PyTorch"] == "9.8.7"


def test_start_from_the_beginning_replaces_what_was_there(tmp_path: Path) -> None:
    first = [step(4, 1, loss=1.0), {"top1": 10.0, "step": 1}, step(8, 2, loss=2.0), {"top1": 20.0, "step": 2}]
    again = [step(4, 1, loss=9.0), {"top1": 5.0, "step": 1}]
    write_start(tmp_path / "two", *first)
    write_start(tmp_path / "two", *again, stamp="20260103_000000")
    write_start(tmp_path / "one", *first, *again)  # both within a second: one folder
    for run in (tmp_path / "one", tmp_path / "two"):
        assert points(run, "loss") == {1.0: 9.0} and points(run, "top1") == {1: 5.0}


def test_steps_that_are_not_counted_in_epochs(tmp_path: Path) -> None:
    without_log, by_iteration = tmp_path / "without_log", tmp_path / "by_iteration"
    write_start(without_log, step(4, 1, loss=1.0), {"top1": 1.0, "step": 1}, steps=None)
    run = read_run(without_log)
    assert (run.training_unit, run.validation_unit) == ("iteration", "epoch")
    assert points(without_log, "loss") == {4: 1.0}

    lines = [{"loss": n / 10, "iter": n, "step": n} for n in (10, 20, 30)]
    write_start(by_iteration, *lines, {"mIoU": 5.0, "step": 20}, steps=None)
    write_start(by_iteration, {"loss": 7.0, "iter": 30, "step": 30}, stamp="20260103_000000", steps=None)
    run = read_run(by_iteration)
    assert run.validation_unit == run.training_unit == "iteration"
    assert points(by_iteration, "loss") == {10: 1.0, 20: 2.0, 30: 7.0} and points(by_iteration, "mIoU") == {20: 5.0}
    # runs in other units get charts of their own
    charts = charts_of([read_run(without_log), run], ["a", "b"])["Validation scores"]
    assert [(chart.key, chart.unit) for chart in charts] == [("top1", "epoch"), ("mIoU", "iteration")]


def test_state_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    lines: list[dict[str, Any] | str] = [step(1, 1, loss=3.0), step(2, 1, loss=2.0)]
    config = "train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2)\n"

    def page(*more: dict[str, Any] | str) -> Page:
        shutil.rmtree(run, ignore_errors=True)
        write_start(run, *lines, *more, config=config)
        return report(run)

    first = page('{"loss": 1.5, "ep')  # the process is writing
    assert "No validation yet." in first.text and "under way or stopped, at epoch 0.5 of 2" in first.text
    assert first.labels() == ["total loss over epochs. run: from 3 to 2, lowest 2, highest 3."] and not first.pictures()
    lines += [{"top1": 5.0, "step": 1}, step(8, 2, loss=2.0)]
    assert "all 2 epochs are trained, the last validation is missing" in page().text
    assert "done, 2 epochs" in page({"top1": 6.0, "step": 2}).text


def test_values_that_have_no_place_leave_a_gap(tmp_path: Path) -> None:
    texts = ["3.0", "NaN", "2.0", "Infinity", "-1e999", "1.0", "1e200", f"1{'0' * 400}", f"-1{'0' * 5000}", "5e-324"]
    lines = [
        f'{{"loss": {text}, "lr": {text}, "grad_norm": NaN, "epoch": {(n + 3) // 4}, "iter": {n}, "step": {n}}}\n'
        for n, text in enumerate(texts, start=1)
    ]
    write_start(tmp_path / "run", *lines, {"top1": math.nan, "step": 1})
    page = report(tmp_path / "run", draw=True)
    labels = {label.partition(" over ")[0]: label for label in page.labels()}
    assert labels["total loss"] == "total loss over epochs. run: from 3 to 4.941e-324, lowest 4.941e-324, highest 3."
    assert labels["grad_norm"] == "grad_norm over epochs. run: no finite value."
    assert "run: 6 of 10 values are not finite, first at epoch 0.5." in page.text
    assert [row[1] for row in page.values("total loss")[1:]] == [repr(float(text)) for text in texts]
    assert not any(re.search(rb' d="[^"]*(nan|inf)', svg) for svg in page.images("svg+xml").values())


def test_curve_lies_where_its_values_are(tmp_path: Path) -> None:
    scores = [{"top1": y, "step": x} for x, y in ((1, 10), (2, 30), (5, 20))]
    rates = [step(4 * n, n, lr=lr) for n, lr in enumerate((0.1, 0.01, 0.001), start=1)]
    write_start(tmp_path / "run", *scores, *rates)
    page = report(tmp_path / "run", draw=True)
    points, of_rates = page.lines()
    across, up = points[:, 0], -points[:, 1]
    np.testing.assert_allclose((across - across[0]) / (across[2] - across[0]), [0, 1 / 4, 1], atol=1e-4)
    np.testing.assert_allclose((up - up[0]) / (up[1] - up[0]), [0, 1, 1 / 2], atol=1e-4)
    # a learning rate over decades is logarithmic
    assert page.text.count("Logarithmic scale.") == 1 and np.diff(of_rates[:, 1], n=2) == pytest.approx(0, abs=0.01)
    (chart,) = (svg.decode() for label, svg in page.images("svg+xml").items() if label.startswith("learning rate"))
    assert {">0.1<", ">0.01<", ">0.001<"} <= set(re.findall(">[0-9.]+<", chart))


def test_long_curves_keep_every_peak() -> None:
    y = np.random.default_rng(0).normal(size=12345)
    y[777], y[9000] = 50.0, math.nan
    kept = thin(y, limit=400)
    assert len(kept) <= 410 and {0, 777, 9000, 12344} <= set(kept) and np.all(np.diff(kept) > 0)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>\"&$^"
    run = tmp_path / hostile.replace("/", "")
    config = f"note = {hostile!r}\nmodel = dict(type={hostile!r})\n"
    write_start(run, step(4, 1, **{hostile: 1.0}), {hostile: 2.0, "step": 1}, config=config)
    (run / "attention").mkdir()
    Image.new("RGB", (4, 4)).save(run / "attention" / '<b onload=x>".png')
    page = report(run, "--title", hostile, draw=True)
    elements = list(page.root.iter())
    assert not {"script", "b"} & {element.tag for element in elements}
    assert not any(name.startswith("on") for element in elements for name in element.attrib)
    assert page.text.count(hostile) >= 2 and any(hostile in label for label in page.labels())


def test_picture_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    write_start(tmp_path, step(4, 1, loss=1.0))
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole, "png")
    for place, size in (("epoch_10", None), ("epoch_2", None), ("", 3000)):
        folder = tmp_path / "attention" / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.png").write_bytes(whole.getvalue()[:size])
    page = report(tmp_path)
    assert list(page.pictures()) == ["a, epoch 2", "a, epoch 10"]
    assert "a.png is left out, because it is no whole PNG file" in page.text


def test_best_is_by_the_metric_of_the_result(tmp_path: Path) -> None:
    lines = [{"top1": 70.0, "top5": 90.0, "step": 1}, {"top1": 60.0, "top5": 95.0, "step": 2}]
    write_start(tmp_path, step(4, 1, loss=1.0), *lines)
    for text, metric, best in (("{", "top1", 1), ("[]", "top1", 1), ('{"metric": "top5"}', "top5", 2)):
        (tmp_path / "result.json").write_text(text)
        scores = scores_of(read_run(tmp_path))
        assert scores is not None and scores.last == {"epoch": 2, "top1": 60.0, "top5": 95.0}
        assert (scores.metric, scores.best["epoch"]) == (metric, best)


def test_a_metric_may_have_a_prefix_and_a_student_lie_in_the_folder(tmp_path: Path) -> None:
    write_start(tmp_path, step(4, 1, loss=1.0), {"road/aAcc": 70.0, "road/mIoU": 20.0, "step": 1})
    for name in ("frskd_my_fcn.py", "student.pth", "student.py"):  # the last two by `frskd export`
        (tmp_path / name).write_text("")
    run = read_run(tmp_path)
    scores = scores_of(run)
    assert scores is not None and scores.metric == "road/mIoU"
    assert facts_of(run, {})["config"] == "frskd_my_fcn"


def test_class_scores_are_those_of_the_last_validation(tmp_path: Path) -> None:
    head = "2026/01/02 03:04:05 - mmengine - INFO - "
    table = head + "\n+--+\n| Class | IoU | Acc |\n+--+\n| traffic light | {} | 7.0 |\n+--+\n"
    validation = head + "Epoch(val) [{}][2/2]    aAcc: 1  mIoU: 2\n"
    text = table.format(1.5) + table.format(2.5) + validation.format(1)
    text += table.format(3.5) + table.format("nan") + validation.format(2)
    (tmp_path / f"{tmp_path.name}.log").write_text(text + table.format(9.9))  # the last one is under way
    log = read_text_log(tmp_path)
    assert (log.class_iou, log.class_epoch) == ({"traffic light": ["3.5", "nan"]}, 2)


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        ("import sys; sys.exit(0)\n", None),
        ("model = dict(type=open('ran', 'w'))\n", None),
        ("a = [" * 9999, None),
        (
            "custom_imports = dict(imports=['not_installed'])\n"
            "model = dict(type='TimmClassifier', student=dict(model_name='r18'), method=dict(name='mine', gamma=3))\n",
            {"method": "mine", "gamma": "3", "student": "r18"},
        ),
        ("model = 3\noptim_wrapper = [1]\ntrain_cfg = 'x'\ntrain_dataloader = dict(batch_size=None)\n", {}),
        ("model = dict(backbone=[], decode_head=1, self_teacher=dict(loss_distill=2, neck=[]))\n", {"method": "frskd"}),
    ],
    ids=range(6),
)
def test_config_is_read_and_never_run(
    config: str, facts: dict[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_start(tmp_path, step(4, 1, loss=1.0), config=config)
    page = report(tmp_path)
    left_out = re.search("config.py (holds|cannot be read as a config).*; its facts are left out", page.text)
    assert bool(left_out) == (facts is None) and (facts or {}).items() <= dict(page.facts()[1:]).items()
    assert not Path("ran").exists()


LINES = ("hello", "[1]", "[" * 200000, '{"loss": 1}', '{"step": "x"}', '{"step": NaN}', f'{{"step": 1{"0" * 400}}}')


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_damaged_logs_are_named(line: str, tmp_path: Path) -> None:
    write_start(tmp_path, step(4, 1, loss=1.0), line + "\n")
    with pytest.raises(ValueError, match=r"scalars.json, line 2: expected a JSON object with the numbers of a step"):
        write_report([tmp_path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"work_dirs": ["none"]}, r"none is not a folder; expected the work folder of a run, with \*/vis_data"),
        ({"work_dirs": ["bare"]}, r"bare holds no log; expected .* LocalVisBackend"),
        ({"work_dirs": ["empty"]}, "has no entry in its logs yet .* logs first after"),
        ({"work_dirs": ["good", "x/../good"]}, "good was given 2 times; give each run once"),
        ({"work_dirs": ["good"] * 9}, "expected 1 to 8 runs, got 9"),
        ({"out": Path("page.png")}, "must be an .html file, got .*page.png"),
        ({"images": [Path("a.png")]}, "holds no checkpoint .* leave --images out"),
    ],
)
def test_errors_say_what_is_expected_where(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bare").mkdir()
    write_start(Path("good"), step(4, 1, loss=1.0))
    write_start(Path("empty"))
    settings: dict[str, Any] = {"work_dirs": ["good"], "out": Path("page.html"), **options}
    with pytest.raises(ValueError, match=message):
        write_report([Path(work_dir) for work_dir in settings.pop("work_dirs")], **settings)
    assert not Path("page.html").exists()


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"a report needs matplotlib and jinja2.*frskd_plugin\[report\]"):
        write_report([tmp_path], tmp_path / "page.html")
