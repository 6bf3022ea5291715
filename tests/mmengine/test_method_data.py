"""What methods ask of the data arrives: views, orders, indices, progress; and configs are changed no further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmengine.dataset.sampler
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from torch.nn import functional as F

from frskd_plugin.methods import DataNeeds, registry
from frskd_plugin.methods.baseline import Baseline
from frskd_plugin.mmengine.method_data import (
    ClassPairBatchSampler,
    MethodDataset,
    OverlapBatchSampler,
    class_partners,
    labels_of,
    provide_method_data,
    set_method,
)
from frskd_plugin.mmengine.seeding import DrawnIndex, SeededSampler
from tests.helpers.tiny_classification import tiny_config, write_cifar, write_image_folder

SIDE, PADDING = 32, 4
SEED, NEW = 3, 8  # the runner's seed; images that are new in a batch
CROP = [dict(type="RandomCrop", size=SIDE, padding=PADDING), dict(type="RandomHorizontalFlip")]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    # 130 images of 100 classes, so some are alone in theirs; 20 images of 4 classes
    return {
        "tensor": write_cifar(folder / "cifar", train=130),
        "folder": write_image_folder(folder / "folders", per_class=5),
    }


def config_of(roots: dict[str, Path], kind: str, method: str, **settings: Any) -> Config:
    """A config of one of the two kinds of data: whole batches of tensors, samples of image folders."""
    if kind == "tensor":
        config = tiny_config(roots["tensor"], "baseline_cifar100_wrn_16_2")
    else:
        config = tiny_config(roots["folder"], "baseline_cub200_resnet18", model__student=dict(_delete_=True))
        config.train_dataloader.merge(dict(num_workers=0, persistent_workers=False))
        config.train_dataloader.dataset.dataset.transforms = CROP
    config.model.method = dict(name=method, **settings)
    config.train_dataloader.batch_size = NEW
    provide_method_data(config)
    return config


def batches_of(config: Config, epoch: int) -> list[dict[str, torch.Tensor]]:
    loader = Runner.build_dataloader(config.train_dataloader, seed=SEED)
    (loader.sampler if hasattr(loader.sampler, "set_epoch") else loader.batch_sampler.sampler).set_epoch(epoch)
    return list(loader)


def source_images(roots: dict[str, Path], kind: str, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """The images [N, 3, H, W] and labels as they lie on disk, in the order of the data set."""
    if kind == "folder":
        files = sorted((roots["folder"] / "train").glob("*/*.png"))
        images = [torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files]
        return torch.stack(images), torch.tensor([int(file.parent.name[-1]) for file in files])
    dataset = config.train_dataloader.dataset.dataset
    loader = dict(dataset=dict(dataset, augment=False), batch_size=200, collate_fn=dict(type="take_batch"))
    (batch,) = Runner.build_dataloader(dict(loader, sampler=dict(type="DefaultSampler", shuffle=False)))
    return batch["inputs"], batch["targets"]


def is_crop(view: torch.Tensor, image: torch.Tensor) -> bool:
    """Whether the view [3, 32, 32] is any crop of the padded image, mirrored or not."""
    windows = F.pad(image, [PADDING] * 4).unfold(1, SIDE, 1).unfold(2, SIDE, 1)  # [3, tops, lefts, 32, 32]
    return any((windows == v[:, None, None]).flatten(3).all(3).all(0).any() for v in (view, view.flip(2)))


def ask_for(monkeypatch: pytest.MonkeyPatch, **needs: Any) -> str:
    """The name of a method that asks for these."""
    cls = type("Asking", (Baseline,), {"needs": DataNeeds(**needs)})
    monkeypatch.setitem(registry._METHODS, "asking", cls)
    return "asking"


@pytest.mark.parametrize("order", ["any", "class_pairs", "overlap"])
@pytest.mark.parametrize("kind", ["tensor", "folder"])
def test_a_batch_is_what_was_asked_for(
    kind: str, order: str, roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(roots, kind, ask_for(monkeypatch, views=2, order=order, index=True))
    images, labels = source_images(roots, kind, config)
    batches = batches_of(config, epoch=1)
    for batch in batches:
        assert batch["index"].dtype == batch["targets"].dtype == torch.int64
        assert batch["inputs"].dtype == torch.uint8 and batch["inputs"].shape[1:] == (2, 3, SIDE, SIDE)
        assert torch.equal(batch["targets"], labels[batch["index"]])
    sample = batches[0]
    for index, views in zip(sample["index"], sample["inputs"], strict=True):
        assert all(is_crop(view, images[index]) for view in views)
        assert not is_crop(views[0], images[index - 1])
    assert (sample["inputs"][:, 0] != sample["inputs"][:, 1]).flatten(1).any(1).float().mean() > 0.8
    new = new_images(order, batches, labels)
    assert sorted(new[: len(images)]) == list(range(len(images))) and len(new) < len(images) + NEW

    # the same again, as after a resume; for folders in worker processes
    if kind == "folder":
        config.train_dataloader.num_workers = 2
    for first, second in zip(batches, batches_of(config, epoch=1), strict=True):
        assert all(torch.equal(first[key], second[key]) for key in ("inputs", "targets", "index"))
    assert not torch.equal(batches_of(config, epoch=2)[0]["index"], batches[0]["index"])


def new_images(order: str, batches: list[dict[str, torch.Tensor]], labels: torch.Tensor) -> list[int]:
    """Checks the order; the images that are new in each batch."""
    if order == "any":
        return torch.cat([batch["index"] for batch in batches]).tolist()
    halves = [batch["index"].chunk(2) for batch in batches]
    if order == "class_pairs":
        image, partner = (torch.cat(side) for side in zip(*halves, strict=True))
        alone = torch.tensor([(labels == labels[i]).sum() == 1 for i in image])
        assert torch.equal(labels[image], labels[partner]) and torch.equal(image == partner, alone)
        return image.tolist()
    for before, batch in zip(batches, batches[1:], strict=False):
        again, known = batch["inputs"].chunk(2)[0], before["inputs"].chunk(2)[1]
        assert torch.equal(batch["index"].chunk(2)[0], before["index"].chunk(2)[1])
        assert (again != known).flatten(1).any(1).float().mean() > 0.8  # augmented anew
    return torch.cat([halves[0][0], *(new for _, new in halves)]).tolist()


def test_partners_follow_from_seed_and_epoch() -> None:
    labels = torch.arange(200) % 10
    first, again, *others = (class_partners(labels, *key) for key in ((1, 2), (1, 2), (1, 3), (2, 2)))
    assert torch.equal(first, again) and not any(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("sampler", [ClassPairBatchSampler, OverlapBatchSampler])
def test_processes_share_the_images(sampler: type, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = type("Labelled", (list,), {"targets": [0, 1] * 4})(range(8))
    shares, new = [], slice(2, 4) if sampler is OverlapBatchSampler else slice(2)
    for rank in range(2):
        monkeypatch.setattr(mmengine.dataset.sampler, "get_dist_info", lambda rank=rank: (rank, 2))
        batches = sampler(SeededSampler(dataset, seed=0), batch_size=2)
        found = [list(map(int, batch)) for batch in batches]
        assert len(found) == len(batches)
        first = found[0][:2] if sampler is OverlapBatchSampler else []
        shares.append(first + [image for batch in found for image in batch[new]])
    assert len(shares[0]) == len(shares[1]) == 4 and sorted(sum(shares, [])) == list(range(8))


def test_plain_indices_draw_from_the_state_as_it_is(roots: dict[str, Path]) -> None:
    config = config_of(roots, "tensor", "ddgsd")
    dataset = Runner.build_dataloader(config.train_dataloader, seed=SEED).dataset
    torch.manual_seed(0)
    views = dataset[5]["inputs"]
    assert views.shape == (2, 3, SIDE, SIDE) and not torch.equal(views[0], views[1])
    drawn = DrawnIndex(5, epoch=0, seed=0)
    assert torch.equal(dataset[drawn]["inputs"][0], dataset.dataset[drawn]["inputs"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ClassPairBatchSampler(torch.utils.data.SequentialSampler([1]), 4), TypeError, "got SequentialSampler"),
        (lambda: OverlapBatchSampler(SeededSampler([1, 2], seed=0), 2), ValueError, "got 2 images: lower batch_size"),
        (lambda: ClassPairBatchSampler(SeededSampler([1, 2], seed=0), 2), ValueError, "list must have them as"),
        (lambda: labels_of(type("Short", (list,), {"targets": [1]})([1, 2])), ValueError, "2 images and 1 labels"),
        (lambda: MethodDataset([], views=0), ValueError, "`views` must be >= 1, got 0"),
        (lambda: MethodDataset(iter_sizes(), views=2)[0], ValueError, r"one size, got \[\[4, 4\], \[5, 5\]\]: end"),
    ],
)
def test_data_that_cannot_give_it(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def iter_sizes() -> Any:
    """A data set whose images have another size each time."""
    sizes = iter((4, 5))
    return type("Sizes", (), {"__getitem__": lambda self, i: {"inputs": torch.zeros(3, *[next(sizes)] * 2)}})()


def test_a_config_changes_no_further_than_needed(roots: dict[str, Path]) -> None:
    plain = tiny_config(roots["tensor"], "baseline_cifar100_wrn_16_2")
    config = Config(plain.to_dict())
    provide_method_data(config)
    assert config.to_dict() == plain.to_dict()
    for name in ("ddgsd", "cs_kd", "dlb", "ps_kd", "ddgsd"):
        set_method(config, name, {})
        provide_method_data(config)
        once = config.to_dict()
        provide_method_data(config)
        assert config.to_dict() == once
    assert config.train_dataloader.dataset.dataset == plain.train_dataloader.dataset
    assert "batch_sampler" not in config.train_dataloader
    set_method(config, "baseline", {})
    provide_method_data(config)
    assert config.to_dict() == plain.to_dict()


def test_own_choices_stay_and_the_hook_joins(roots: dict[str, Path]) -> None:
    config = tiny_config(roots["tensor"], "baseline_cifar100_wrn_16_2")
    config.train_dataloader.batch_sampler = own = dict(type="MyBatchSampler")
    config.custom_hooks = [dict(type="StepSeedHook")]
    set_method(config, "cs_kd", {"weight": 3.0})
    provide_method_data(config)
    assert config.train_dataloader.batch_sampler == own
    assert config.custom_hooks == [dict(type="StepSeedHook"), dict(type="MethodProgressHook")]
    assert config.model.method == dict(name="cs_kd", weight=3.0)


@pytest.mark.parametrize(
    ("settings", "dataset", "expected"),
    [
        ({}, {}, 130),
        ({}, dict(expected_images=130), 130),
        ({}, dict(expected_images=50000), 50000),  # not opened: it ends the run when it is
        ({}, dict(expected_images=130, images_per_class=1), 100),
        (dict(num_samples=7), {}, 7),
    ],
)
def test_ps_kd_knows_the_size_of_the_training_set(
    settings: dict, dataset: dict, expected: int, roots: dict[str, Path]
) -> None:
    config = tiny_config(roots["tensor"], "baseline_cifar100_wrn_16_2")
    config.train_dataloader.dataset.update(dataset)
    set_method(config, "ps_kd", settings)
    provide_method_data(config)
    assert config.model.method.num_samples == expected


def test_methods_are_set_with_the_weights_of_the_data_set() -> None:
    config = Config(dict(model=dict(type="TimmClassifier"), frskd=dict(alpha=1.0, beta=200.0)))
    set_method(config, None, {})
    assert config.model.method == dict(name="baseline")
    set_method(config, "frskd_sla", {"beta": 9.0})
    assert config.model.method == dict(name="frskd_sla", alpha=1.0, beta=9.0)
    set_method(config, "frskd_sla", {"single_pass": True})
    assert config.model.method == dict(name="frskd_sla", alpha=1.0, beta=9.0, single_pass=True)
    set_method(config, "kd", {"teacher.model_name": "resnet34", "teacher.checkpoint": "t.pth"})
    assert config.model.method == dict(name="kd", teacher=dict(model_name="resnet34", checkpoint="t.pth"))
    set_method(config, "ddgsd", {"mu": 1})
    with pytest.raises(ValueError, match="model.method: The method 'ddgsd' has no setting 'mu'"):
        provide_method_data(config)
    config.model.method = dict(alpha=1)
    with pytest.raises(ValueError, match=r"model.method must have a name, such as dict\(name='frskd'\), got"):
        set_method(config, None, {})
