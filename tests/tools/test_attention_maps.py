"""tools/attention_maps.py: the maps against their formula, the layout of the picture, and what it refuses."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

import frskd_plugin.mmengine  # noqa: F401
from frskd_plugin.commands.attention_maps import TrainedNetwork, attention_picture, in_order
from frskd_plugin.mmengine.attention import Panel, attention_panels, draw_grid
from tests.helpers.real_runs import command
from tests.helpers.tiny_classification import tiny_config, write_image_folder
from tests.helpers.tiny_mmseg import tiny_config as tiny_segmentor


def save_checkpoint(config: Config, path: Path, epoch: int) -> Path:
    """What a training would leave behind after some epochs: weights drawn from the epoch, and the config."""
    torch.manual_seed(epoch)
    with DefaultScope.overwrite_default_scope(config.get("default_scope")):
        model = MODELS.build(config.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"epoch": epoch, "iter": 10 * epoch, "cfg": config.pretty_text}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("images"), per_class=1) / "test"


@pytest.fixture(scope="module")
def frskd(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Epochs 10 and 2 of an FRSKD run of WRN-10-1."""
    folder = tmp_path_factory.mktemp("runs") / "frskd"
    config = tiny_config(folder)
    return [save_checkpoint(config, folder / f"epoch_{epoch}.pth", epoch) for epoch in (10, 2)]


def independent_map(feat: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Mean of squares over the channels, bilinear by hand at half-pixel centres, stretched to 0..1, in float64."""

    def widen(rows: np.ndarray, width: int) -> np.ndarray:
        places = (np.arange(width) + 0.5) * rows.shape[1] / width - 0.5
        return np.array([np.interp(places, np.arange(len(row)), row) for row in rows])

    large = widen(widen((feat[0].double().numpy() ** 2).mean(0), size[1]).T, size[0]).T
    return (large - large.min()) / (large.max() - large.min())


def grid(figure) -> tuple[int, int]:
    return figure.axes[0].get_subplotspec().get_gridspec().get_geometry()


def titles(figure) -> list[str]:
    return [axis.get_title().replace("\n", ", ") for axis in figure.axes]


def test_maps_follow_the_formula() -> None:
    torch.manual_seed(0)
    feats = [torch.randn(1, 5, 4, 6), torch.randn(1, 8, 2, 3) * 100]
    for feat, panel in zip(feats, attention_panels(feats, (8, 12)), strict=True):
        np.testing.assert_allclose(panel, independent_map(feat, (8, 12)), atol=1e-5)
    # of a padded image it is cut before it is stretched
    feat = torch.tensor([[[[1.0, 2.0, 9.0], [3.0, 1.0, 9.0], [9.0, 9.0, 9.0]]]])
    (panel,) = attention_panels([feat], (2, 2), padded_size=(3, 3))
    np.testing.assert_allclose(panel, [[0, 3 / 8], [1, 0]], atol=1e-6)
    (flat,) = attention_panels([torch.full((1, 3, 5, 7), 0.3)], (33, 41))
    assert flat.max() == 0  # and no noise


def test_grid_lays_maps_over_images_row_by_row() -> None:
    white = np.full((8, 8, 3), 255, np.uint8)
    cold, hot = (np.full((8, 8), value) for value in (0.0, 1.0))
    figure = draw_grid(
        [[Panel("image", white), Panel("a", white, hot), Panel("b", white, cold)], [None, Panel("c", white * 0, hot)]]
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    assert pixels.shape[:2] == (2 * 230, 3 * 200)
    red, blue, blank = np.array([127.5, 0, 0]), np.array([0, 0, 127.5]), np.full(3, 255)  # the ends of 'jet'
    expected = [[blank, 0.55 * red + 0.45 * 255, 0.55 * blue + 0.45 * 255], [blank, 0.55 * red, blank]]
    np.testing.assert_allclose(pixels[[125, 355]][:, [100, 300, 500]], expected, atol=2)


def test_two_epochs_stand_side_by_side(frskd: list[Path], images: Path) -> None:
    networks = in_order([TrainedNetwork(path) for path in frskd])
    image = images / "class_1" / "0.png"
    figure = attention_picture(networks, image)
    assert grid(figure) == (2, 7)
    blocks = [(epoch, block) for epoch in (2, 10) for block in (1, 2, 3)]
    assert titles(figure) == [
        "image",
        *(f"epoch {epoch}, block {block}, student" for epoch, block in blocks),
        "",
        *(f"epoch {epoch}, block {block}, self-teacher" for epoch, block in blocks),
    ]
    pixels = np.asarray(Image.open(image))  # this config's test images are taken as they are
    assert np.array_equal(figure.axes[0].images[0].get_array(), pixels)
    for number, network in enumerate(networks):
        assert not network.model.training
        inputs = network.model.data_preprocessor(dict(inputs=torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]))
        with torch.no_grad():
            feats, _ = network.model.network.student_forward(inputs["inputs"])
            refined_feats, _ = network.model.network.method.self_teacher(feats)
        for row, maps in enumerate((feats, refined_feats)):
            for level, feat in enumerate(maps):
                axis = figure.axes[7 * row + 1 + 3 * number + level]
                assert np.array_equal(axis.images[0].get_array(), pixels)
                expected = independent_map(feat, pixels.shape[:2])
                np.testing.assert_allclose(axis.images[1].get_array(), expected, atol=1e-4)


def test_test_transforms_prepare_the_image(images: Path, tmp_path: Path) -> None:
    transforms = [dict(type="Resize", size=24), dict(type="CenterCrop", size=16)]
    config = tiny_config(tmp_path, "frskd_mit67_resnet18")
    config.merge_from_dict({"model.student": dict(_delete_=True, model_name="wrn_16_2", depth=10, k=1)})
    config.merge_from_dict({"model.out_indices": [0, 1, 2], "test_dataloader.dataset.transforms": transforms})
    path = images / "class_1" / "0.png"
    maps = TrainedNetwork(save_checkpoint(config, tmp_path / "epoch_1.pth", 1)).maps_of(path)
    resized = Image.open(path).resize((28, 24), Image.Resampling.BILINEAR)  # it is 48x40
    assert np.array_equal(maps.image, np.asarray(resized)[4:20, 6:22])
    assert [tuple(feat.shape[-2:]) for feat in maps.feats] == [(16, 16), (8, 8), (4, 4)]


def test_baseline_has_the_students_row_alone(frskd: list[Path], images: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "baseline_cifar100_wrn_16_2")
    config.model.method = dict(name="byot")  # with weights of its own that only training needs
    baseline = TrainedNetwork(save_checkpoint(config, tmp_path / "byot" / "epoch_1.pth", 1))
    image = images / "class_0" / "0.png"
    figure = attention_picture([baseline], image)
    assert grid(figure) == (1, 4) and titles(figure)[1] == "epoch 1, block 1, student"

    figure = attention_picture([baseline, TrainedNetwork(frskd[0])], image)
    assert grid(figure) == (2, 7) and titles(figure)[1] == "byot, epoch 1, block 1, student"
    assert titles(figure)[7:] == ["", "", "", "", *(f"frskd, epoch 10, block {i}, self-teacher" for i in (1, 2, 3))]


def test_nothing_is_loaded_but_the_checkpoint(images: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "baseline_cifar100_wrn_16_2")
    path = save_checkpoint(config, tmp_path / "epoch_1.pth", 1)
    checkpoint = torch.load(path, weights_only=True)
    teacher = dict(model_name="wrn_16_2", checkpoint="gone.pth")  # the file was there when the training began
    config.model.method = dict(name="kd", teacher=teacher, alpha=2.0)
    config.model.student.pretrained = True  # timm has no weights to load for it, and raises where it is asked to
    checkpoint["meta"]["cfg"] = config.pretty_text
    torch.save(checkpoint, path)
    assert TrainedNetwork(path).maps_of(images / "class_0" / "0.png").refined_feats is None


def test_preactivation_maps_are_drawn_behind_their_relu(images: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config.model.method.update(feature_loss="overhaul", beta=0.01)
    maps = TrainedNetwork(save_checkpoint(config, tmp_path / "epoch_1.pth", 1)).maps_of(images / "class_0" / "0.png")
    assert maps.refined_feats is not None
    assert all(feat.min() == 0 and feat.max() > 0 for feat in maps.refined_feats)


def test_plain_segmentor_of_four_bands(data_root: Path, tmp_path: Path) -> None:
    config = tiny_segmentor(data_root)
    config.model.backbone.in_channels = 4
    config.model.data_preprocessor.update(mean=None, std=None, bgr_to_rgb=False)
    config.test_dataloader.dataset.pipeline[0] = dict(type="LoadImageFromFile", color_type="unchanged")
    network = TrainedNetwork(save_checkpoint(config, tmp_path / "epoch_1.pth", 1))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "bands.png")
    figure = attention_picture([network], tmp_path / "bands.png")
    assert titles(figure) == ["image", "epoch 1, level 0, student", "epoch 1, level 1, student"]
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), pixels[..., :3])


def test_segmentor(data_root: Path, tmp_path: Path) -> None:
    config = tiny_segmentor(data_root, frskd=True)
    config.model.data_preprocessor.test_cfg = dict(size_divisor=24)  # 32 pixels become 48
    checkpoint, image = save_checkpoint(config, tmp_path / "epoch_3.pth", 3), data_root / "JPEGImages" / "image_0.jpg"
    assert command("attention_maps", checkpoint, image, "-o", tmp_path).returncode == 0
    assert Image.open(tmp_path / "image_0.png").size == (3 * 200, 2 * 260)

    network = TrainedNetwork(checkpoint)
    figure = attention_picture([network], image)
    names = [f"epoch 3, level {level}, {name}" for name in ("student", "self-teacher") for level in (0, 1)]
    assert titles(figure) == ["image", *names[:2], "", *names[2:]]
    shown = figure.axes[0].images[0].get_array()
    assert np.abs(shown.astype(int) - np.asarray(Image.open(image))).mean() < 3  # two decoders of JPEG
    inputs = torch.zeros(1, 3, 48, 48)
    inputs[..., :32, :32] = (torch.from_numpy(shown.copy()).permute(2, 0, 1).float() - 120) / 60
    with torch.no_grad():
        feats = network.model.extract_feat(inputs)
        rows = [feats, network.model.self_teacher.neck(feats)]
    for row, maps in enumerate(rows):
        for level, expected in enumerate(attention_panels(maps, (32, 32), (48, 48))):
            found = figure.axes[3 * row + 1 + level].images[1].get_array()
            np.testing.assert_allclose(found, expected, atol=1e-4)


def test_command_line_writes_a_picture_for_each_image(
    frskd: list[Path], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mmcv", "mmseg"):  # importing them fails, as where they are not installed: a classifier needs neither
        monkeypatch.setitem(sys.modules, name, None)
    paths = [images / name / "0.png" for name in ("class_0", "class_1")]
    done = command("attention_maps", frskd[0], *paths, "-o", tmp_path / "out")
    written = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in written] == ["class_0_0.png", "class_1_0.png"]  # both images are called 0.png
    assert str(written[1]) in done.stdout
    assert Image.open(written[0]).size == (4 * 240, 2 * 260)  # the images are 48x40


@pytest.fixture(scope="module")
def odd_files(frskd: list[Path], images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of one name, and files that are no image and no checkpoint of ours."""
    folder, image = tmp_path_factory.mktemp("odd"), (images / "class_0" / "0.png").read_bytes()
    for name in ("0.png", "a/b/0.png", "c/b/0.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image)
    (folder / "broken.png").write_bytes(image[:60])
    checkpoint = torch.load(frskd[0], weights_only=True)
    weights, meta = checkpoint["state_dict"], checkpoint["meta"]
    for name, content in {
        "frskd": checkpoint,
        "foreign": {"weights": weights},
        "no_config": {"state_dict": weights, "meta": {}},
        "detector": {"state_dict": weights, "meta": {"cfg": "model = dict(type='RetinaNet')"}},
        "other": {"state_dict": {"backbone.weight": torch.zeros(1)}, "meta": meta},
        "shape": {"state_dict": {**weights, next(iter(weights)): torch.zeros(1)}, "meta": meta},
    }.items():
        torch.save(content, folder / f"{name}.pth")
    return folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("0.png", "no checkpoint: give one or more .pth files"),
        ("frskd.pth", "no image: give one or more image files"),
        ("missing.pth 0.png", "checkpoint missing.pth not found"),
        ("frskd.pth missing.png", "image missing.png not found"),
        ("frskd.pth broken.png", "image broken.png cannot be decoded"),
        ("foreign.pth 0.png", "foreign.pth is not a checkpoint of mmengine: it has no 'state_dict'"),
        ("no_config.pth 0.png", r"no_config.pth does not hold the config it was trained with \(meta\['cfg'\]\)"),
        ("detector.pth 0.png", "detector.pth is of a model of type 'RetinaNet'; expected a checkpoint of"),
        ("other.pth 0.png", "other.pth does not fit the network: .* are missing"),
        ("shape.pth 0.png", "shape.pth does not fit the network: size mismatch for"),
        ("frskd.pth 0.png -o .", "the picture of 0.png would replace the image 0.png; give another folder"),
        ("frskd.pth a/b/0.png c/b/0.png", "several images would become .*b_0.png"),
    ],
)
def test_mistakes_end_in_one_line(files: str, message: str, odd_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(odd_files)
    done = command("attention_maps", *files.split())
    assert done.returncode == 2 and re.search(message, done.stderr.splitlines()[-1]), done.stderr


def test_image_of_a_size_that_the_network_cannot_take_is_refused(images: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "baseline_cifar100_wrn_16_2")
    student = dict(_delete_=True, model_name="vit_tiny_patch16_224", img_size=32, num_classes=4, depth=4)
    config.merge_from_dict({"model.student": student, "model.input_size": [3, 32, 32]})
    config.model.out_indices = None
    network = TrainedNetwork(save_checkpoint(config, tmp_path / "epoch_1.pth", 1))
    with pytest.raises(ValueError, match="0.png, prepared to 40x48 pixels, does not fit the network: Input height"):
        network.maps_of(images / "class_0" / "0.png")
