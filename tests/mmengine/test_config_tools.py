from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from frskd_plugin.mmengine.config_tools import check_version, explained_build, read_config, set_data_root
from frskd_plugin.version import __version__


def test_configs_of_this_or_an_earlier_version_are_read_and_later_ones_refused() -> None:
    for settings in (dict(), dict(frskd_plugin_version="0.0.1"), dict(frskd_plugin_version=__version__)):
        check_version(Config(settings))
    for version in ("9.0", "1000.0.0rc1", "0.2.1"):
        with pytest.raises(ValueError, match=f"is for frskd_plugin {version} or later, but {__version__} is installed"):
            check_version(Config(dict(frskd_plugin_version=version)))
    with pytest.raises(ValueError, match="my.py: frskd_plugin_version must be a version, .* got 'newest'"):
        check_version(Config(dict(frskd_plugin_version="newest")), "my.py")


def test_the_reason_why_a_module_of_a_config_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_parts.py").write_text("from math import nothing")
    config = tmp_path / "my.py"
    for module, reason in (
        ("broken_parts", "cannot import name 'nothing'"),
        ("no_parts", "No module named 'no_parts'"),
    ):
        config.write_text(f"custom_imports = dict(imports=['{module}'])")
        with pytest.raises(ImportError, match=f"my.py needs a module that cannot be imported: {reason}.*on PYTHONPATH"):
            read_config(config)


def test_data_root_of_data_sets_is_set_at_every_depth_and_no_other() -> None:
    loader = dict(dataset=dict(datasets=[dict(data_root="data/a"), dict(other="c"), dict(data_root="")]))
    config = Config(dict(data_root="data/a", train_dataloader=loader, teacher=dict(data_root="weights")))
    assert set_data_root(config, "new") == 3
    assert config.data_root == "new" and config.teacher.data_root == "weights"
    assert [d.get("data_root") for d in config.train_dataloader.dataset.datasets] == ["new", None, "new"]
    assert set_data_root(Config(dict(model=dict(data_root="mine"))), "new") == 0


def test_data_sets_of_different_roots_keep_their_places_below_the_shared_folder() -> None:
    years = [dict(data_root=f"data/VOCdevkit/VOC{year}") for year in (2007, 2012)]
    config = Config(dict(train_dataloader=dict(dataset=dict(datasets=years)), val_dataloader=dict(dataset=years[1])))
    assert set_data_root(config, "/mnt/voc") == 3
    roots = [part.data_root for part in config.train_dataloader.dataset.datasets]
    assert roots == ["/mnt/voc/VOC2007", "/mnt/voc/VOC2012"]
    assert config.val_dataloader.dataset.data_root == "/mnt/voc/VOC2012"
    apart = Config(dict(train_dataloader=dict(dataset=dict(datasets=[dict(data_root="a"), dict(data_root="/b")]))))
    with pytest.raises(ValueError, match=r"different folders \(/b, a\).*--cfg-options"):
        set_data_root(apart, "/mnt")


def test_a_metrics_file_moves_with_the_data_root() -> None:
    config = Config(
        dict(
            loader=dict(dataset=dict(data_root="data/coco", ann_file="annotations/val.json")),
            metric=dict(ann_file="data/coco/annotations/val.json"),
            other=[dict(ann_file="elsewhere/val.json"), dict(ann_file=None), dict(data_root="", ann_file="val.json")],
        )
    )
    assert set_data_root(config, "/new") == 1
    assert config.metric.ann_file == "/new/annotations/val.json"
    assert config.loader.dataset.to_dict() == dict(data_root="/new", ann_file="annotations/val.json")
    assert [item.ann_file for item in config.other] == ["elsewhere/val.json", None, "val.json"]


class Fragile(nn.Module):
    """A component with a fault of its own, which no config can mend."""

    def __init__(self, size: int = 1, colour: str = "red") -> None:
        super().__init__()
        nn.Linear(size, size, colour=colour)  # type: ignore[call-arg]


def test_only_keys_of_the_config_are_blamed_on_it() -> None:
    with pytest.raises(ValueError, match="config a.py: .*'sise'.*Check the spelling"), explained_build("a.py"):
        MODELS.build(dict(type=Fragile, sise=3))
    with pytest.raises(TypeError, match="colour"), explained_build("a.py"):
        MODELS.build(dict(type=Fragile, size=3, colour="blue"))
    with pytest.raises(ValueError, match="config a.py: .*Fragyle.*registry"), explained_build("a.py"):
        MODELS.build(dict(type="Fragyle"))
    for error in (
        KeyError("registry of mine"),
        KeyError("img_path"),
        TypeError("unsupported"),
        ImportError("libGL.so"),
    ):
        with pytest.raises(type(error)) as raised, explained_build("a.py"):
            raise error
        assert raised.value is error
    cure = "config a.py: mmdetection needs an mmcv with compiled operators.*test-mmdet"
    with pytest.raises(ImportError, match=cure), explained_build("a.py"):
        raise ModuleNotFoundError("No module named 'mmcv._ext'")
