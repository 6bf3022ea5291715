"""The classification recipes against the numbers of the paper (section 4.1, appendix), written down once more."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, FUNCTIONS, MODELS, init_default_scope

import frskd_plugin.timm  # noqa: F401
from frskd_plugin.commands.config import load_config
from frskd_plugin.data.image_folder import IMAGE_SETS
from frskd_plugin.mmengine.registration import registered_type

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL, LARGE = ("wrn_16_2", "resnet18_cifar"), ("resnet18", "resnet34")

# data set: classes, batch, epochs, milestones, alpha, beta, Mixup's alpha, models
PAPER = {
    "cifar100": (100, 128, 200, [100, 150], 2, 100, 0.2, SMALL),
    "tinyimagenet": (200, 128, 200, [100, 150], 3, 100, 0.2, SMALL),
    "cub200": (200, 32, 200, [100, 150], 1, 200, 0.3, LARGE),
    "mit67": (67, 32, 200, [100, 150], 1, 200, 0.3, LARGE),
    "stanford40": (40, 32, 200, [100, 150], 1, 200, 0.3, LARGE),
    "dogs": (120, 32, 200, [100, 150], 1, 200, 0.3, LARGE),
    "imagenet": (1000, 256, 90, [30, 60], 1, 200, None, LARGE),
}
PAIRS = [(data, model) for data, row in PAPER.items() for model in row[-1]]
# Table 8 has one network a data set, and no ImageNet
MIXED = [(data, SMALL[1] if row[-1] is SMALL else LARGE[0]) for data, row in PAPER.items() if data != "imagenet"]


def load(name: str, recipe: str | None = None) -> Config:
    return load_config(CONFIGS / f"{name}.py", recipe)


def test_leaves() -> None:
    """Every data set and network that the paper names, and no other."""
    found = {path.stem for path in CONFIGS.glob("*.py") if path.stem.split("_")[1] not in ("voc", "camvid", "coco")}
    wanted = {f"{kind}_{data}_{model}" for data, model in PAIRS for kind in ("baseline", "frskd")}
    assert found == {*wanted, "frskd_cifar100_resnet18_cifar_cutmix"}


@pytest.mark.parametrize(("data", "model"), PAIRS)
def test_recipe(data: str, model: str) -> None:
    classes, batch, epochs, milestones, alpha, beta, _, _ = PAPER[data]
    config = load(f"frskd_{data}_{model}")
    train = config.train_dataloader
    assert config.optim_wrapper.optimizer == dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4)
    assert config.param_scheduler == dict(type="MultiStepLR", milestones=milestones, gamma=0.1, by_epoch=True)
    assert config.train_cfg.max_epochs == epochs
    assert train.batch_size == batch and not train.get("drop_last", False)
    assert config.model.student == dict(model_name=model, num_classes=classes, pretrained=False)
    expected = dict(name="frskd", alpha=alpha, beta=beta, temperature=4, width=2, schedule="constant")
    assert config.model.method == expected
    assert config.model.get("mix") is None
    # the numbers of images and classes are those that tools/prepare_data.py checks, so incomplete sets are noticed
    for dataset in (
        train.dataset.get("dataset", train.dataset),
        config.val_dataloader.dataset,
        config.test_dataloader.dataset,
    ):
        assert dataset.data_root == f"data/{data}"
        assert dataset.expected_images == IMAGE_SETS[data].images[dataset.split]
        assert data == "cifar100" or dataset.expected_classes == IMAGE_SETS[data].num_classes


@pytest.mark.parametrize("kind", ["baseline", "frskd"])
@pytest.mark.parametrize(("data", "model"), MIXED)
def test_overlays_change_what_they_say_alone(data: str, model: str, kind: str) -> None:
    usual = load(f"{kind}_{data}_{model}").to_dict()
    mixes = {"mixup": dict(type="Mixup", alpha=PAPER[data][6]), "cutmix": dict(type="CutMix", alpha=1.0)}
    for name, mix in mixes.items():  # Table 8
        mixed = load(f"{kind}_{data}_{model}", name).to_dict()
        assert mixed["model"].pop("mix") == mix
        assert mixed == usual
    strong = load(f"{kind}_{data}_{model}", "strong").to_dict()
    optimizer = strong["optim_wrapper"].pop("optimizer")
    assert optimizer == dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    scheduler = strong.pop("param_scheduler")
    assert scheduler == dict(type="CosineAnnealingLR", T_max=usual["train_cfg"]["max_epochs"], by_epoch=True)
    del usual["optim_wrapper"]["optimizer"], usual["param_scheduler"]
    assert strong == usual


def test_names_of_old_leaves_are_configs_with_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old, leaf = load_config("configs/frskd_dogs_resnet18_mixup.py"), "frskd_cifar100_resnet18_cifar"
    assert old.to_dict() == load("frskd_dogs_resnet18", "mixup").to_dict()
    assert load(f"{leaf}_cutmix").to_dict() == load(leaf, "cutmix").to_dict()
    assert Path(old.filename).name == "frskd_dogs_resnet18.py"
    (tmp_path / "mine.py").write_text("model = dict(type='TimmClassifier')\n")
    for name, recipe, message in (
        ("frskd_dogs_resnet18_mixup", "strong", "--recipe strong: the config is of the recipe mixup already"),
        (CONFIGS / "frskd_voc_fcn_r18.py", "strong", "--recipe strong is for classifiers, and .* trains none"),
        (CONFIGS / "frskd_dogs_resnet18.py", "weak", "--recipe must be one of strong, mixup, cutmix, got 'weak'"),
        ("mine.py", "mixup", "--recipe mixup does not fit mine.py: "),
    ):
        with pytest.raises(ValueError, match=message):
            load_config(name, recipe)


@pytest.mark.parametrize(
    ("data", "model", "channels"),
    [("cifar100", "wrn_16_2", [32, 64, 128]), ("dogs", "resnet18", [64, 128, 256, 512])],
)
def test_named_components_exist_and_the_self_teacher_sees_these_maps(data: str, model: str, channels: list) -> None:
    config = load(f"frskd_{data}_{model}")
    init_default_scope(config.default_scope)
    network = MODELS.build(config.model).network
    assert network.student.num_classes == PAPER[data][0]
    assert list(network.method.self_teacher.neck.in_channels) == channels
    loader = config.val_dataloader
    assert FUNCTIONS.get(loader.collate_fn.type) is not None
    assert registered_type(DATASETS, loader.dataset.type).__name__ == loader.dataset.type


def test_images() -> None:
    """Statistics of normalisation in 0..255, and sizes of the crops."""
    cifar = load("baseline_cifar100_wrn_16_2").model.data_preprocessor
    assert cifar.mean + cifar.std == pytest.approx([129.3105, 124.0575, 112.4295, 68.1615, 65.382, 70.431])
    for name, crop, val in (
        ("tinyimagenet_wrn_16_2", 32, [dict(type="Resize", size=(32, 32))]),
        ("cub200_resnet18", 224, [dict(type="Resize", size=256), dict(type="CenterCrop", size=224)]),
    ):
        config = load(f"baseline_{name}")
        images = config.model.data_preprocessor
        assert images.mean + images.std == [123.675, 116.28, 103.53, 58.395, 57.12, 57.375]
        assert config.train_dataloader.dataset.dataset.transforms[0] == dict(type="RandomResizedCrop", size=crop)
        assert config.val_dataloader.dataset.transforms == val
