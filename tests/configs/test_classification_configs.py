"""The classification recipes against the numbers of the paper (section 4.1, appendix), written down once more."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
from mmengine.config import Config
from mmengine.registry import DATASETS, FUNCTIONS, MODELS, init_default_scope

import frskd_plugin.timm  # noqa: F401
from frskd_plugin.commands.config import load_config
from frskd_plugin.data.image_folder import IMAGE_SETS
from frskd_plugin.mmengine.registration import registered_type

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

# data set: classes, batch, epochs, milestones, alpha, beta, Mixup's alpha, models
PAPER = {
    "cifar100": (100, 128, 200, [100, 150], 2, 100, 0.2, ("wrn_16_2", "resnet18_cifar")),
    "tinyimagenet": (200, 128, 200, [100, 150], 3, 100, 0.2, ("wrn_16_2", "resnet18_cifar")),
    "cub200": (200, 32, 200, [100, 150], 1, 200, 0.3, ("resnet18", "resnet34")),
    "mit67": (67, 32, 200, [100, 150], 1, 200, 0.3, ("resnet18", "resnet34")),
    "stanford40": (40, 32, 200, [100, 150], 1, 200, 0.3, ("resnet18", "resnet34")),
    "dogs": (120, 32, 200, [100, 150], 1, 200, 0.3, ("resnet18", "resnet34")),
    "imagenet": (1000, 256, 90, [30, 60], 1, 200, None, ("resnet18", "resnet34")),
}
# the maps that the self-teacher sees
CHANNELS = {
    "wrn_16_2": [32, 64, 128],
    "resnet18_cifar": [64, 128, 256, 512],
    "resnet18": [64, 128, 256, 512],
    "resnet34": [64, 128, 256, 512],
}
PAIRS = [(data, model) for data, row in PAPER.items() for model in row[-1]]
# Table 8 has one network a data set, and no ImageNet
MIXED = [
    (data, "resnet18_cifar" if "resnet18_cifar" in row[-1] else "resnet18")
    for data, row in PAPER.items()
    if data != "imagenet"
]


def load(name: str, recipe: str | None = None) -> Config:
    return load_config(CONFIGS / f"{name}.py", recipe)


def without(config: dict, *keys: str) -> dict:
    return {key: value for key, value in config.items() if key not in keys}


def test_leaves() -> None:
    """Every data set and network that the paper names, and no other."""
    found = {path.stem for path in CONFIGS.glob("*.py") if path.stem.split("_")[1] not in ("voc", "camvid", "coco")}
    wanted = {f"{kind}_{data}_{model}" for data, model in PAIRS for kind in ("baseline", "frskd")}
    assert found == {*wanted, "frskd_cifar100_resnet18_cifar_cutmix"}


@pytest.mark.parametrize(("data", "model"), PAIRS)
def test_recipe(data: str, model: str) -> None:
    classes, batch, epochs, milestones, alpha, beta, _, _ = PAPER[data]
    config = load(f"frskd_{data}_{model}")
    assert config.optim_wrapper == dict(
        type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4)
    )
    assert config.param_scheduler == dict(type="MultiStepLR", milestones=milestones, gamma=0.1, by_epoch=True)
    assert config.train_cfg == dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=1)
    assert config.train_dataloader.batch_size == batch
    assert not config.train_dataloader.get("drop_last", False)
    assert config.train_dataloader.sampler == dict(type="SeededSampler", shuffle=True)
    assert config.model.student == dict(model_name=model, num_classes=classes, pretrained=False)
    expected = dict(name="frskd", alpha=alpha, beta=beta, temperature=4, width=2, schedule="constant")
    assert config.model.method == expected
    assert config.model.get("mix") is None


@pytest.mark.parametrize(("data", "model"), PAIRS)
def test_strong_recipe_differs_in_the_schedule_alone(data: str, model: str) -> None:
    for kind in ("baseline", "frskd"):
        strong, usual = load(f"{kind}_{data}_{model}", "strong"), load(f"{kind}_{data}_{model}")
        changed = ("optim_wrapper", "param_scheduler")
        assert without(strong.to_dict(), *changed) == without(usual.to_dict(), *changed)
        assert strong.optim_wrapper.optimizer == dict(
            type="SGD", lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        assert strong.param_scheduler == dict(type="CosineAnnealingLR", T_max=usual.train_cfg.max_epochs, by_epoch=True)


@pytest.mark.parametrize(("data", "model"), MIXED)
def test_mixing_is_all_that_table_8_adds(data: str, model: str) -> None:
    for kind in ("baseline", "frskd"):
        usual = load(f"{kind}_{data}_{model}").to_dict()
        for name, expected in (
            ("mixup", dict(type="Mixup", alpha=PAPER[data][6])),
            ("cutmix", dict(type="CutMix", alpha=1.0)),
        ):
            mixed = load(f"{kind}_{data}_{model}", name).to_dict()
            assert mixed["model"].pop("mix") == expected
            assert mixed == usual


def test_names_of_old_leaves_are_configs_with_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old, leaf = load_config("configs/frskd_dogs_resnet18_mixup.py"), "frskd_cifar100_resnet18_cifar"
    assert old.to_dict() == load("frskd_dogs_resnet18", "mixup").to_dict()
    assert load(f"{leaf}_cutmix").to_dict() == load(leaf, "cutmix").to_dict()
    assert Path(old.filename).name == "frskd_dogs_resnet18.py"
    with pytest.raises(ValueError, match="--recipe strong: the config is of the recipe mixup already"):
        load_config("frskd_dogs_resnet18_mixup", "strong")
    with pytest.raises(ValueError, match="--recipe strong is for classifiers, and .*voc_fcn_r18.py trains none"):
        load("frskd_voc_fcn_r18", "strong")
    with pytest.raises(ValueError, match="--recipe must be one of strong, mixup, cutmix, got 'weak'"):
        load("frskd_dogs_resnet18", "weak")
    (tmp_path / "mine.py").write_text("model = dict(type='TimmClassifier')\n")
    with pytest.raises(ValueError, match="--recipe mixup does not fit mine.py: "):
        load_config("mine.py", "mixup")


@pytest.mark.parametrize(("data", "model"), PAIRS)
def test_twins_differ_in_the_method_alone(data: str, model: str) -> None:
    baseline, frskd = load(f"baseline_{data}_{model}").to_dict(), load(f"frskd_{data}_{model}").to_dict()
    assert baseline["model"].pop("method") == dict(name="baseline")
    assert frskd["model"].pop("method")["name"] == "frskd"
    assert baseline == frskd


@pytest.mark.parametrize(("model", "data"), {model: data for data, model in PAIRS}.items())
def test_models_are_built(model: str, data: str) -> None:
    config = load(f"frskd_{data}_{model}")
    init_default_scope(config.default_scope)
    built = MODELS.build(config.model)
    assert built.network.student.num_classes == PAPER[data][0]
    infos = built.network.student.feature_info
    infos = infos if isinstance(infos, list) else infos.info
    assert [infos[i]["num_chs"] for i in built.network.out_indices] == CHANNELS[model]
    assert type(built.network.student) is type(timm.create_model(model))


def test_images() -> None:
    cifar = load("baseline_cifar100_wrn_16_2")
    assert cifar.model.data_preprocessor.mean == pytest.approx([129.3105, 124.0575, 112.4295])
    assert cifar.model.data_preprocessor.std == pytest.approx([68.1615, 65.382, 70.431])
    assert cifar.train_dataloader.dataset.type == "TensorCifar100"
    assert cifar.train_dataloader.num_workers == 0

    tiny = load("baseline_tinyimagenet_wrn_16_2")
    assert [step.type for step in tiny.train_dataloader.dataset.dataset.transforms] == [
        "RandomResizedCrop",
        "RandomHorizontalFlip",
    ]
    assert tiny.train_dataloader.dataset.dataset.transforms[0].size == 32
    assert tiny.val_dataloader.dataset.transforms == [dict(type="Resize", size=(32, 32))]

    birds = load("baseline_cub200_resnet18")
    assert birds.train_dataloader.dataset.type == "SeededDataset"
    assert birds.train_dataloader.dataset.dataset.transforms[0] == dict(type="RandomResizedCrop", size=224)
    assert birds.val_dataloader.dataset.transforms == [
        dict(type="Resize", size=256),
        dict(type="CenterCrop", size=224),
    ]


@pytest.mark.parametrize(("data", "model"), PAIRS)
def test_runtime(data: str, model: str) -> None:
    config = load(f"frskd_{data}_{model}")
    assert config.default_scope == "mmengine"
    assert config.default_hooks.checkpoint == dict(
        type="AtomicCheckpointHook", interval=1, max_keep_ckpts=3, save_best="top1", rule="greater"
    )
    assert [hook.type for hook in config.custom_hooks] == [
        "StepSeedHook",
        "SelfTeacherValidationHook",
        "BestAndLastHook",
        "MethodProgressHook",
        "ClassifierAttentionPictureHook",
    ]
    assert config.val_evaluator == dict(type="TopKAccuracyMetric", top_k=(1, 5))
    assert "TensorboardVisBackend" in [backend.type for backend in config.vis_backends]
    assert config.visualizer.type == "Visualizer"
    roots = [
        config.train_dataloader.dataset.get("dataset", config.train_dataloader.dataset).data_root,
        config.val_dataloader.dataset.data_root,
        config.test_dataloader.dataset.data_root,
    ]
    assert roots == [f"data/{data}"] * 3


@pytest.mark.parametrize("data", PAPER)
def test_incomplete_sets_are_noticed(data: str) -> None:
    """The numbers of classes and images are those that tools/prepare_data.py checks."""
    config, whole = load(f"baseline_{data}_{PAPER[data][-1][0]}"), IMAGE_SETS[data]
    train = config.train_dataloader.dataset
    for dataset in (train.get("dataset", train), config.val_dataloader.dataset, config.test_dataloader.dataset):
        assert dataset.expected_images == whole.images[dataset.split]
        if data != "cifar100":
            assert dataset.expected_classes == whole.num_classes


@pytest.mark.parametrize("name", ["frskd_cifar100_wrn_16_2", "frskd_dogs_resnet18"])
def test_named_components_exist(name: str) -> None:
    config = load(name)
    init_default_scope(config.default_scope)
    loader = config.val_dataloader
    assert FUNCTIONS.get(loader.collate_fn.type) is not None
    assert registered_type(DATASETS, loader.dataset.type).__name__ == loader.dataset.type
