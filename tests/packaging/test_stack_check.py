"""Which installed packages overwrite each other, told by fake metadata: nothing is installed here."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("mmengine", reason="frskd_plugin.mmengine needs mmengine")

from frskd_plugin.mmengine import registration  # noqa: E402
from frskd_plugin.version import __version__  # noqa: E402

FORKS = {"onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6", "onedl-mmsegmentation": "1.4.2", "opencv-python": "5.0.0"}
ORIGINALS = {"mmengine": "0.10.7", "mmcv": "2.1.0", "mmsegmentation": "1.2.2", "opencv-python-headless": "4.9.0"}


@pytest.fixture
def install(monkeypatch):
    """Makes `importlib.metadata.version` answer from a dict."""

    def install_fakes(versions):
        def version(name):
            if name not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(importlib.metadata, "version", version)

    return install_fakes


@pytest.mark.parametrize("stack", [FORKS, ORIGINALS, {}, {"mmcv-lite": "2.1.0"}])
def test_one_family_is_fine(stack, install):
    install(stack)
    assert registration.installed_versions() == stack
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registration.warn_about_mixed_stacks()


@pytest.mark.parametrize(
    ("first", "second", "import_name"),
    [
        ("mmengine", "onedl-mmengine", "mmengine"),
        ("mmcv", "onedl-mmcv", "mmcv"),
        ("mmcv-lite", "onedl-mmcv", "mmcv"),
        ("mmsegmentation", "onedl-mmsegmentation", "mmseg"),
        ("mmdet", "onedl-mmdetection", "mmdet"),
    ],
)
def test_original_beside_fork(first, second, import_name, install):
    install({first: "1.0", second: "2.0"})
    with pytest.warns(UserWarning) as caught:
        registration.warn_about_mixed_stacks()
    assert [str(w.message) for w in caught] == [
        f"{first} 1.0 and {second} 2.0 both provide `{import_name}` and overwrite each other's files. Keep one: "
        f"`pip uninstall -y {first} {second}`, then `pip install --no-cache-dir {second}==2.0`."
    ]


def test_two_opencvs(install):
    install({**FORKS, "opencv-python-headless": "5.0.1"})
    with pytest.warns(UserWarning, match="Keep one: `pip uninstall -y opencv-python opencv-python-headless`") as caught:
        registration.warn_about_mixed_stacks()
    assert len(caught) == 1
    assert "pip install --no-cache-dir opencv-python==5.0.0" in str(caught[0].message)


def test_each_double_is_named():
    messages = registration.mixed_stacks({**FORKS, **ORIGINALS})
    assert [message.split("`")[1] for message in messages] == ["mmengine", "mmcv", "mmseg", "cv2"]


def test_families_that_do_not_overlap_but_mix():
    messages = registration.mixed_stacks({"mmengine": "0.10.7", "onedl-mmcv": "2.3.6"})
    assert len(messages) == 1
    assert messages[0].startswith(
        "mmengine (original OpenMMLab) and onedl-mmcv (onedl forks) are not made for each other."
    )


def test_the_import_of_the_package_warns(tmp_path: Path):
    """Real metadata of two families on the path: `import frskd_plugin` says so, and goes on."""
    for name in ("mmcv", "onedl_mmcv"):
        folder = tmp_path / f"{name}-9.9.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 9.9\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import frskd_plugin; print(frskd_plugin.__version__)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stderr.count("mmcv 9.9 and onedl-mmcv 9.9 both provide `mmcv`") == 1
    assert done.stdout.strip() == __version__
