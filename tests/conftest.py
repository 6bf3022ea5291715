"""Fixtures that several folders share, and what an older timm leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
from packaging.version import Version

# start of a test's id -> (first timm that it can pass with, why)
NEEDS_TIMM = {
    "tests/timm/test_two_processes.py::test_gradients_equal_the_joined_batch[task]": (
        "1.0.27",
        "it trains a FRSKDTask",
    ),
    "tests/tools/test_support.py::test_the_smallest_image": ("1.0.27", "that timm has another smallest model"),
    "tests/test_readme.py::test_task_example_keeps_student_and_teacher_apart": ("1.0.27", "it shows FRSKDTask"),
    "tests/docs/test_docs.py::test_code_of_the_page_runs[start_timm.md]": ("1.0.27", "it shows FRSKDTask"),
    "tests/docs/test_docs.py::test_sphinx_builds_the_pages_without_a_warning": ("1.0.27", "they show FRSKDTask"),
    "tests/timm/test_maps.py::test_maps_are_those_of_the_networks_own_modules[test_maxvit]": (
        "1.0.27",
        "that timm lacks the model",
    ),
    "tests/methods/test_kd.py::test_norms_are_those_that_make_or_take_the_maps[densenet121]": (
        "1.0.27",
        "DenseNet has no forward_intermediates there",
    ),
    "tests/timm/test_feature_extractor.py::test_maps_of_family[selecsls42]": (
        "1.0.31",
        "SelecSLS has no forward_intermediates there",
    ),
    "tests/timm/test_cifar_networks.py::test_classifier_can_be_replaced_and_metadata_are_timms[resnet18_cifar]": (
        "1.0.29",
        "timm's own ResNet.reset_classifier keeps the dtype only from then on",
    ),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what the installed timm cannot do."""
    installed = Version(timm.__version__)
    for item in items:
        for start, (first, reason) in NEEDS_TIMM.items():
            if installed < Version(first) and item.nodeid.startswith(start):
                item.add_marker(pytest.mark.skip(reason=f"timm {timm.__version__}: {reason}"))


@pytest.fixture(scope="session", autouse=True)
def unformatted_configs() -> Iterator[None]:
    """Leave out yapf, which takes two thirds of a short run: the text of a config says the same without it."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("yapf") is not None:
            patch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda text, **settings: (text, True))
        yield


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of eight small images."""
    from tests.helpers.tiny_mmseg import write_dataset  # needs mmengine, which tests of core and timm do without

    return write_dataset(tmp_path_factory.mktemp("tiny_voc"))
