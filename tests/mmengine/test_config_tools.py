from __future__ import annotations

import pytest
from mmengine.config import Config

from frskd_plugin.mmengine.config_tools import check_version, explained_build, set_data_root
from frskd_plugin.version import __version__


@pytest.mark.parametrize("version", ["0.0.1", __version__])
def test_configs_of_this_or_an_earlier_version_are_read(version: str) -> None:
    check_version(Config(dict(frskd_plugin_version=version)))
    check_version(Config(dict()))


@pytest.mark.parametrize("version", ["99", "9.0", "1000.0.0rc1", __version__ + ".1"])
def test_later_versions_are_refused(version: str) -> None:
    with pytest.raises(ValueError, match=f"is for frskd_plugin {version} or later, but {__version__} is installed"):
        check_version(Config(dict(frskd_plugin_version=version)))


def test_data_root_is_set_at_every_depth() -> None:
    config = Config(dict(data_root="a", loader=dict(dataset=dict(datasets=[dict(data_root="b"), dict(other="c")]))))
    assert set_data_root(config, "new") == 2
    assert config.data_root == "new" and config.loader.dataset.datasets[0].data_root == "new"


def test_a_metrics_file_moves_with_the_data_root() -> None:
    config = Config(
        dict(
            loader=dict(dataset=dict(data_root="data/coco", ann_file="annotations/val.json")),
            metric=dict(ann_file="data/coco/annotations/val.json"),
            other=[dict(ann_file="elsewhere/val.json"), dict(ann_file=None), dict(data_root="", ann_file="val.json")],
        )
    )
    assert set_data_root(config, "/new") == 2
    assert config.metric.ann_file == "/new/annotations/val.json"
    assert config.loader.dataset.to_dict() == dict(data_root="/new", ann_file="annotations/val.json")
    assert [item.ann_file for item in config.other] == ["elsewhere/val.json", None, "val.json"]


def test_operators_that_are_missing_are_named_with_the_cure() -> None:
    with pytest.raises(ImportError, match="config a.py: mmdetection needs an mmcv with compiled operators.*test-mmdet"):
        with explained_build("a.py"):
            raise ModuleNotFoundError("No module named 'mmcv._ext'")


@pytest.mark.parametrize("error", [TypeError("unsupported operand"), KeyError("img_path"), ImportError("libGL.so.1")])
def test_other_errors_pass_through(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, explained_build("a.py"):
        raise error
    assert raised.value is error
