"""`TimmClassifier` in mmengine's Runner: what it computes, and that an interrupted run goes on as if it had not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch.nn import functional as F

import frskd_plugin
from frskd_plugin.commands.runner import check_classes
from frskd_plugin.core.schedule import distill_factor
from frskd_plugin.data.cifar100 import load_cifar100
from frskd_plugin.data.tensor_images import TensorImages
from frskd_plugin.mmengine.classifier import ImagePreprocessor, TopKAccuracyMetric, top_k_hits
from frskd_plugin.mmengine.hooks import BestAndLastHook
from frskd_plugin.mmengine.method_data import MethodDataset
from frskd_plugin.mmengine.seeding import SeededDataset
from frskd_plugin.timm.cifar_networks import CIFAR_MEAN, CIFAR_STD
from frskd_plugin.timm.frozen_teacher import FrozenTeacher
from tests.helpers.real_runs import assert_equal, final_weights, scalars, train
from tests.helpers.tiny_classification import tiny_config, write_cifar, write_image_folder

STUDENT = dict(model_name="wrn_16_2", num_classes=5, depth=10, k=1)
FRSKD = dict(name="frskd", alpha=3.0, beta=50.0, width=1)
PS_KD = dict(name="ps_kd", num_samples=6)
CUTMIX = dict(type="CutMix", alpha=1.0)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar(tmp_path_factory.mktemp("cifar"), train=36, test=16)


@pytest.fixture(scope="module")
def finished(cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of an FRSKD run of three epochs, the first of which does not distil."""
    work_dir = tmp_path_factory.mktemp("finished")
    config = tiny_config(cifar)
    config.custom_hooks = [*config.custom_hooks, dict(type="DistillWarmupHook", begin=1)]
    train(config, work_dir)
    return work_dir


def result(work_dir: Path) -> dict[str, Any]:
    return json.loads((work_dir / "result.json").read_text())


def classifier(seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    preprocessor = dict(type="ImagePreprocessor", mean=[100.0] * 3, std=[50.0] * 3)
    return MODELS.build(
        {"type": "TimmClassifier", "student": STUDENT, "method": FRSKD, "data_preprocessor": preprocessor, **settings}
    )


def batch(size: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return dict(
        inputs=torch.randint(256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8),
        targets=torch.arange(size) % 5,
    )


def test_image_folders_with_workers_resume_to_the_uninterrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_image_folder(tmp_path / "folders")
    config = tiny_config(root, "frskd_cub200_resnet18", epochs=2, model__student=dict(STUDENT, _delete_=True))
    config.model.merge(dict(out_indices=(0, 1, 2), input_size=(3, 32, 32), mix=dict(type="Mixup", alpha=0.2)))
    train_set, val_set = config.train_dataloader.dataset.dataset, config.val_dataloader.dataset
    train_set.transforms[0]["size"] = val_set.transforms[1]["size"] = 32
    val_set.transforms[0]["size"] = 36
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.num_workers, loader.persistent_workers = 0, False
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setenv("TINY_STOP_AT_ITER", "3")  # of two epochs of 2 iterations
        train(config, tmp_path / "resumed", train_dataloader__num_workers=2)
    train(config, tmp_path / "resumed", resume=True)
    assert_equal(*(final_weights(tmp_path / name, 2) for name in ("whole", "resumed")))
    whole, resumed = (result(tmp_path / name) for name in ("whole", "resumed"))
    assert whole["history"] == resumed["history"]
    assert set(whole["last"]) == {"epoch", *(f"{kind}top{k}" for kind in ("", "teacher_", "ensemble_") for k in (1, 5))}


def test_scores_equal_an_independent_computation(cifar: Path, finished: Path) -> None:
    config = tiny_config(cifar)
    images, targets, *_ = load_cifar100(cifar, "test")
    images, targets = torch.as_tensor(images).float(), np.asarray(targets)
    mean, std = (torch.tensor(config.model.data_preprocessor[key])[:, None, None] for key in ("mean", "std"))

    weights = final_weights(finished, 3)
    model = frskd_plugin.wrap(timm.create_model("wrn_16_2", num_classes=100, depth=10, k=1), alpha=2, width=1).eval()
    model.load_state_dict({key.removeprefix("network."): value for key, value in weights.items()}, strict=True)
    with torch.no_grad():
        logits = model((images - mean) / std).numpy()
        teacher_logits = model.teacher_logits((images - mean) / std).numpy()

    def percent(values: np.ndarray, k: int) -> float:
        best = np.argsort(-values, axis=1)[:, :k]
        return 100 * float(np.mean([target in row for target, row in zip(targets, best, strict=True)]))

    expected = dict(top1=percent(logits, 1), top5=percent(logits, 5))
    expected |= dict(teacher_top1=percent(teacher_logits, 1), teacher_top5=percent(teacher_logits, 5))
    both = sum(np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (logits, teacher_logits))
    expected |= dict(ensemble_top1=percent(both, 1), ensemble_top5=percent(both, 5))
    assert result(finished)["last"] == pytest.approx(dict(epoch=3, **expected))
    (logged,) = [line for line in scalars(finished) if "top1" in line and line["step"] == 3]
    assert {key: logged[key] for key in expected} == pytest.approx(expected)


def test_result_names_last_and_best_epoch(finished: Path) -> None:
    found = result(finished)
    assert [entry["epoch"] for entry in found["history"]] == [1, 2, 3]
    assert found["last"] == found["history"][-1]
    assert found["best"]["top1"] == max(entry["top1"] for entry in found["history"])
    assert (found["seed"], found["max_epochs"], found["metric"]) == (3, 3, "top1")
    (best,) = finished.glob("best_top1_epoch_*.pth")
    assert best.stem == f"best_top1_epoch_{found['best']['epoch']}"
    steps = [line for line in scalars(finished) if "loss" in line]
    assert len(steps) == 9 and all("train_top1" in line and "top1" not in line for line in steps)
    total = [sum(line[f"loss_{part}"] for part in ("ce", "teacher_ce", "kd", "feat")) for line in steps]
    assert [line["loss"] for line in steps] == pytest.approx(total, rel=1e-5)
    factors = [distill_factor(line["epoch"] - 1, 1, 3) for line in steps]
    assert [line["distill_factor"] for line in steps] == pytest.approx(factors)
    assert all((line["loss_feat"] > 0) == (line["epoch"] > 1) for line in steps)


def test_epoch_that_was_killed_before_its_validation_is_validated_on_resume(
    cifar: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    whole, run = result(tmp_path), json.loads((tmp_path / "run.json").read_text())
    without_last = {**whole, "history": whole["history"][:-1], "last": whole["history"][1]}
    (tmp_path / "result.json").write_text(json.dumps(without_last))
    (tmp_path / "run.json").write_text(json.dumps({**run, "validated": 2}))
    train(tiny_config(cifar), tmp_path, resume=True)
    assert result(tmp_path)["history"] == whole["history"]


def test_new_run_in_an_old_folder_forgets_its_scores_and_the_teacher_is_never_run_where_it_is_not_wanted(
    cifar: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copy(finished / "result.json", tmp_path)
    config = tiny_config(cifar, epochs=1)
    config.custom_hooks[1].enabled = False
    train(config, tmp_path)
    (entry,) = result(tmp_path)["history"]
    assert set(entry) == {"epoch", "top1", "top5"}


def test_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="BestAndLastHook: metric must be one of top1, top5; got 'mIoU'"):
        BestAndLastHook("mIoU").after_val_epoch(SimpleNamespace(_train_loop=object()), {"top1": 1.0, "top5": 2.0})


def test_loss_is_the_total_of_wrap() -> None:
    model = classifier()
    torch.manual_seed(0)
    reference = frskd_plugin.wrap(timm.create_model(**STUDENT), alpha=3.0, beta=50.0, width=1)
    data = batch()
    expected = reference((data["inputs"].float() - 100) / 50, data["targets"])
    terms = model(**model.data_preprocessor(data), mode="loss")
    assert set(terms) == {"loss_ce", "loss_teacher_ce", "loss_kd", "loss_feat", "train_top1"}
    total, logged = model.parse_losses(terms)
    assert torch.equal(total, expected["loss"]) and torch.equal(logged["loss"], expected["loss"])
    correct = expected["output"].argmax(1) == data["targets"]
    assert terms["train_top1"].item() == pytest.approx(100 * correct.float().mean().item())


def test_criterion_of_the_config_and_a_mixed_batch() -> None:
    smoothing = dict(type=torch.nn.CrossEntropyLoss, label_smoothing=0.2)
    model = classifier(method=dict(name="baseline"), criterion=smoothing, mix=CUTMIX)
    data = model.data_preprocessor(batch())
    torch.manual_seed(7)
    terms = model(**data, mode="loss")
    torch.manual_seed(7)
    images, soft = model.mix(data["inputs"], data["targets"], 5)
    expected = F.cross_entropy(model.train().network.student(images), soft, label_smoothing=0.2)
    assert terms["loss_ce"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_inference_is_the_plain_network() -> None:
    model = classifier().eval()
    plain = timm.create_model(**STUDENT).eval()
    plain.load_state_dict(model.network.student.state_dict())
    data = model.data_preprocessor(batch())
    with torch.no_grad():
        expected = plain(data["inputs"])
        assert torch.equal(model(data["inputs"]), expected)
        predictions = model(**data, mode="predict")
        model.predict_self_teacher = True
        both = model(**data, mode="predict")
    assert [set(sample) for sample in predictions] == [{"logits", "target"}] * 4
    assert [set(sample) for sample in both] == [{"logits", "target", "teacher_logits", "ensemble_logits"}] * 4
    for samples in (predictions, both):
        assert torch.equal(torch.stack([sample["logits"] for sample in samples]), expected)
        assert torch.equal(torch.stack([sample["target"] for sample in samples]), data["targets"])
    plain = classifier(method=None).eval()
    plain.predict_self_teacher = True
    assert all(set(sample) == {"logits", "target"} for sample in plain(**data, mode="predict"))


def test_teachers_of_kd_and_one_are_scored_too() -> None:
    teacher = FrozenTeacher(timm.create_model(**STUDENT), input_size=(3, 32, 32), mean=[0.2] * 3, std=[0.1] * 3)
    for method in (dict(name="kd", teacher=teacher), dict(name="one")):
        model = classifier(method=method).eval()
        model.predict_self_teacher = True
        data = model.data_preprocessor(batch())
        with torch.no_grad():
            found = torch.stack([sample["teacher_logits"] for sample in model(**data, mode="predict")])
            torch.testing.assert_close(found, model.network.teacher_logits(data["inputs"]))
            if method["name"] == "kd":  # normalised for the teacher: from 100 and 50 of 255 to 0.2 and 0.1 of 1
                _, expected = teacher((batch()["inputs"] / 255 - 0.2) / 0.1)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_teachers_checkpoint_says_how_its_images_were_normalised(tmp_path: Path) -> None:
    text = "model = dict(data_preprocessor=dict(mean=[51.0, 51.0, 51.0], std=[25.5, 25.5, 25.5]))"
    weights = timm.create_model(**STUDENT).state_dict()
    torch.save({"state_dict": weights, "meta": {"cfg": text}}, tmp_path / "run.pth")
    torch.save(weights, tmp_path / "plain.pth")
    found = []
    for file, said in (("run.pth", {}), ("run.pth", {"mean": [0.5] * 3}), ("plain.pth", {})):
        teacher = dict(**STUDENT, checkpoint=tmp_path / file, **said)
        found.append(classifier(method=dict(name="kd", teacher=teacher)).network.method.teacher.normalisation)
    assert found[0] == ([0.2] * 3, [0.1] * 3)
    assert found[1] == ([0.5] * 3, [0.1] * 3)
    assert found[2] == (CIFAR_MEAN, CIFAR_STD)


def test_student_starts_alike_with_every_method_and_takes_plain_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(**STUDENT).state_dict()
    torch.save(plain, tmp_path / "plain.pth")
    for method in (None, FRSKD):
        model = classifier(method=method)
        model.init_weights()  # as the runner does
        assert_equal(model.network.student.state_dict(), plain)
        model = classifier(seed=5, method=method)
        load_checkpoint(model, str(tmp_path / "plain.pth"), strict=method is None)
        assert_equal(model.network.student.state_dict(), plain)


def test_channels_last_and_compile_change_neither_values_nor_names(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[dict[str, Any]] = []  # what is compiled is the network, whose steps other tests compile
    monkeypatch.setattr(torch, "compile", lambda forward, **options: compiled.append(options) or forward)
    usual = classifier()
    data = usual.data_preprocessor(batch())
    expected = usual(**data, mode="loss")
    model = classifier(channels_last=True, compile=dict(mode="max-autotune"))
    assert compiled == [dict(mode="max-autotune")] and model.state_dict().keys() == usual.state_dict().keys()
    found = model(**data, mode="loss")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    weight = model.network.student.group1.block0.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    classifier(compile=True)
    assert compiled[1:] == [{}]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(student=dict(model_name="wrn_16_3")), ValueError, "has no model 'wrn_16_3'. Did you mean wrn_16_2"),
        (dict(student=dict(num_classes=3)), ValueError, "`student` must have a model_name"),
        (dict(), ValueError, "mode must be 'loss', 'predict' or 'tensor', got 'train'"),
        (dict(method=dict(alpha=1.0)), ValueError, "`method` must have a name, such as dict"),
        (dict(method=dict(name="frsdk")), ValueError, "`method` must be one of .*'frskd'.* got 'frsdk'"),
        (dict(method=dict(name="frskd", gamma=1)), TypeError, "'frskd' has no setting 'gamma'"),
        (dict(student={**STUDENT, "num_classes": 0}), ValueError, "`student.num_classes` .* got 0"),
        *(
            (dict(method=method, mix=CUTMIX), ValueError, f"'{method['name']}' {does}.* which CutMix would .*mix=None")
            for method, does in (
                (dict(name="ddgsd"), "compares images of one label"),
                (dict(name="cs_kd"), "compares images of one label"),
                (PS_KD, "remembers its prediction of each image"),
            )
        ),
    ],
)
def test_bad_settings(settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        classifier(**settings)(torch.zeros(2, 3, 32, 32), mode="train")


def test_labels_without_a_class_are_told_before_training() -> None:
    model = torch.nn.Module()
    model.network = frskd_plugin.wrap(
        timm.create_model("test_resnet", num_classes=3), "baseline", input_size=(3, 32, 32)
    )
    images = TensorImages(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), [0, 1, 2, 2])
    for dataset in (images, SeededDataset(MethodDataset(images))):
        check_classes("train_dataloader", dataset, model)
        model.network.student.reset_classifier(2)
        with pytest.raises(ValueError, match=r"train_dataloader: .* labels 0..2, but model.student.num_classes is 2"):
            check_classes("train_dataloader", dataset, model)
        model.network.student.reset_classifier(3)
    check_classes("train_dataloader", images, torch.nn.Identity())


def test_preprocessor_normalises_bytes() -> None:
    preprocessor = ImagePreprocessor(mean=[0.0, 10.0, 20.0], std=[1.0, 2.0, 4.0])
    data = dict(inputs=torch.full((1, 3, 1, 1), 30, dtype=torch.uint8), targets=torch.tensor([1]))
    out = preprocessor(data, training=True)
    assert out["inputs"].flatten().tolist() == [30.0, 10.0, 2.5] and out["inputs"].dtype is torch.float32
    assert data["inputs"].dtype is torch.uint8 and out["targets"].tolist() == [1]
    assert preprocessor.state_dict() == {}
    views = torch.randint(256, (2, 2, 3, 4, 4), dtype=torch.uint8)
    expected = torch.stack([preprocessor(dict(inputs=views[:, view]))["inputs"] for view in range(2)], dim=1)
    assert torch.equal(preprocessor(dict(inputs=views))["inputs"], expected)
    with pytest.raises(ValueError, match=r"expects uint8 images \[B, 3, H, W\], got \[2, 3, 4, 4\] of torch.float32"):
        preprocessor(dict(inputs=torch.zeros(2, 3, 4, 4)))
    with pytest.raises(ValueError, match="as one tensor .* got list; set collate_fn=dict.type='default_collate'"):
        preprocessor(dict(inputs=[torch.zeros(3, 4, 4)]))
    for std in ([1.0, 1.0], [1.0, 1.0, 0.0]):
        with pytest.raises(ValueError, match="mean and std must have a number for each channel, std above 0"):
            ImagePreprocessor(mean=[0.0] * 3, std=std)


def test_a_method_without_logits_is_named() -> None:
    model = classifier(method=None)
    model.network.method.forward = lambda *_: {"loss_ce": torch.zeros(())}
    with pytest.raises(ValueError, match="The method Baseline returns no `output`"):
        model(**model.data_preprocessor(batch(2)), mode="loss")


def test_index_reaches_the_method_that_asks_for_it_only() -> None:
    data = {**classifier().data_preprocessor(batch(2)), "index": torch.tensor([4, 2])}
    classifier(method=None)(**data, mode="loss")
    model = classifier(method=PS_KD)
    model(**data, mode="loss")
    assert model.network.method.predictions.table.sum(1).nonzero().flatten().tolist() == [2, 4]
    with pytest.raises(ValueError, match="PS-KD needs the place of each of the 2 samples"):
        model(**{**data, "index": None}, mode="loss")


def test_hits_are_those_of_sorting() -> None:
    logits, targets = torch.randn(50, 20), torch.randint(20, (50,))
    order = np.argsort(-logits.numpy(), axis=1)
    expected = [[target in row[:k] for k in (1, 5, 30)] for target, row in zip(targets.numpy(), order, strict=True)]
    assert top_k_hits(logits, targets, (1, 5, 30)).tolist() == expected
    assert all(row[2] for row in expected)
    # any of several labels is a hit
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0], [2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    shares = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.3, 0.7, 0.0]])
    hits = [[True, True], [False, True], [False, False], [False, True]]
    assert top_k_hits(logits, shares, (1, 2)).tolist() == hits
    # one logit is right on its side of zero
    for targets in (torch.tensor([1, 0, 0, 1]), torch.tensor([[1.0], [0.0], [0.0], [1.0]])):
        found = top_k_hits(torch.tensor([[2.0], [-2.0], [3.0], [-3.0]]), targets, (1, 2))
        assert found.tolist() == [[True] * 2] * 2 + [[False] * 2] * 2


def test_metric_counts_each_image_once() -> None:
    metric, logits = TopKAccuracyMetric(), torch.eye(6)
    for targets in ([0, 1, 2, 3, 0, 5], [5, 5]):  # the last two are repeated by a sampler
        pairs = zip(logits, torch.tensor(targets), strict=False)
        metric.process(None, [dict(logits=row, target=target) for row, target in pairs])
    assert metric.evaluate(6) == pytest.approx({"top1": 500 / 6, "top5": 100.0})
    for top_k in ((), (0, 5)):
        with pytest.raises(ValueError, match="top_k must be numbers of 1 or more, got"):
            TopKAccuracyMetric(top_k=top_k)
