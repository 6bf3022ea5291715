"""The table of stacks on which the tests run, and what of the tests cannot run on one of them, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
FORKS = ("onedl-mmengine", "onedl-mmcv", "onedl-mmsegmentation")


@dataclass(frozen=True)
class LeftOut:
    """Tests that a row does not run.

    Args:
        tests: a file or folder, or the id of a test or class as pytest writes it.
        reason: why they cannot pass there.
    """

    tests: str
    reason: str


@dataclass(frozen=True)
class Row:
    """One stack.

    Args:
        name: as on the command line; ``NAME.txt`` beside this file has its pins.
        meaning: what the row shows.
        layered: its pins are laid over the main environment instead of installed with all that they need.
        hides: distributions of the main environment that the layer replaces.
        compiles: a requirement whose compiled operators are built for the row's torch.
        left_out: tests that the row does not run.
    """

    name: str
    meaning: str
    layered: bool = False
    hides: tuple[str, ...] = ()
    compiles: str | None = None
    left_out: tuple[LeftOut, ...] = ()

    @property
    def pins(self) -> Path | None:
        """The requirements file of the row; None for the main environment, which constraints.txt pins."""
        return None if self.name == "main" else FOLDER / f"{self.name}.txt"


TASK = "timm.task came with timm 1.0.23, and FRSKDTask needs the state API of 1.0.27"
MODELS = "that timm lacks the model, or its forward_intermediates, and wrap says so"
META = "that timm builds few models on the meta device, so coverage cannot see which is the smallest"
MAPS = "tests/timm/test_maps.py::test_maps_equal_those_of_features_only"
COVERAGE = "tests/tools/test_coverage_timm.py"
OLD_TIMM = (
    LeftOut("frskd_plugin/timm/task.py", TASK),
    LeftOut("tests/timm/test_task.py", TASK),
    LeftOut("tests/timm/test_two_processes.py::test_gradients_equal_the_joined_batch", TASK),
    LeftOut("tests/test_readme.py::test_task_example_keeps_student_and_teacher_apart", TASK),
    LeftOut("tests/docs/test_docs.py::test_code_of_the_page_runs[start_timm.md]", TASK),
    LeftOut("tests/docs/test_docs.py::test_sphinx_builds_the_pages_without_a_warning", TASK),
    *(LeftOut(f"{MAPS}[{name}]", MODELS) for name in ("test_nfnet", "densenet121", "test_coatnet", "test_maxvit")),
    LeftOut(
        "tests/timm/test_maps.py::test_levels_go_from_high_to_low_resolution_whatever_the_order_of_the_network", MODELS
    ),
    LeftOut(f"{COVERAGE}::test_families_as_classifiers_and_as_backbones", META),
    LeftOut(f"{COVERAGE}::test_a_module_that_fails_is_told_and_the_rest_goes_on", META),
    LeftOut(f"{COVERAGE}::test_the_smallest_model_has_the_fewest_parameters", META),
    LeftOut(
        "tests/data_tools/test_mixing.py::test_box_of_timm_is_a_pixel_larger_where_its_size_is_odd[0.6-1]",
        "the box of that timm has the published size, as ours",
    ),
    LeftOut(
        "tests/timm/test_cifar_networks.py::test_classifier_can_be_replaced[resnet18_cifar]",
        "timm's own ResNet.reset_classifier keeps the dtype from timm 1.0.29 on",
    ),
    LeftOut(
        "tests/timm/test_feature_extractor.py::test_checkpoint_cannot_run_code",
        "the file is refused there too, in torch's words instead of those of newer timm",
    ),
)


ROWS = (
    Row("main", "the versions of constraints.txt, in the environment of `make env`"),
    Row("newest", "the newest torch with the forks"),
    Row(
        "oldest_timm",
        "the oldest timm that setup.cfg allows, else as main",
        layered=True,
        hides=("timm",),
        left_out=OLD_TIMM,
    ),
    Row(
        "originals",
        "the original OpenMMLab packages, mmcv with compiled operators, else as main",
        layered=True,
        hides=FORKS,
        compiles="mmcv==2.1.0",
    ),
)


def choose(names: list[str]) -> list[Row]:
    """The rows of the given names in the order of the table; all of them where none is named.

    Raises:
        ValueError: a name that the table does not have.
    """
    known = [row.name for row in ROWS]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no row is named {', '.join(unknown)}: expected some of {', '.join(known)}")
    return [row for row in ROWS if not names or row.name in names]
