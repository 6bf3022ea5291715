"""Modules that have moved: their old names still import, with one DeprecationWarning each."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from types import CodeType, ModuleType

# A module and the old ones whose place it took, all below this package. A package that is gone has a name of its own
# only where one module took its place.
_TABLE = """
timm.cifar_networks: timm.cifar_classifier timm.cifar_resnet timm.cifar_wrn timm.cifar_wrn_published timm.cifar_cfg
timm.cifar_networks: timm.wrn_settings
core.immediate_gradient: core.early_gradient
core.dry_run: core.forward_cost core.listening
core.self_teacher_neck: core.bifpnc_layer
core.blocks: core.fusion core.resize
commands.published_archives: data.archives data.published_layouts
commands.prepare_data: data.prepare
commands.prepare_voc: data.voc_lists
commands.make_drawn_voc: data.drawn_scenes
data.image_folder: data.catalog data.transforms
data.cifar100: data.plain_pickle
mmdet: mmdet.operators
mmdet.detector: mmdet.dense_head mmdet.servable mmdet.class_logits
mmseg.convert: mmseg.feature_maps
mmseg.segmentor: mmseg.effdet_seg_head mmseg.self_taught mmseg.cascade_segmentor mmseg.parts
mmseg.heads: mmseg.student_outputs mmseg.teacher_head mmseg.feature_list mmseg.semantic_logits mmseg.early_losses
mmseg.data: mmseg.dataset_files mmseg.voc mmseg.camvid mmseg.checked_loading mmseg.self_teacher_iou_metric
core.soft_label: core.binary_soft_label core.resized_soft_label
commands.training_step: benchmark.classification benchmark.cost benchmark.peak_memory benchmark.segmentation
commands.training_step: benchmark.timing benchmark.training_step
commands.benchmark: benchmark.command benchmark.data_paths benchmark.segmentation_data benchmark.step benchmark.train
commands.arguments: benchmark.options
check: benchmark.random_batch doctor doctor.build doctor.describe doctor.examination doctor.gradients
check: doctor.random_batch
commands.support: coverage.command coverage.family_command
commands.check: doctor.__main__ doctor.command
check_report: doctor.report
export: deploy.check deploy.export deploy.formats deploy.networks deploy.student deploy.weights
core.preactivations: methods.preactivations
core.feature_losses: core.overhaul core.hint core.attention
methods.baseline: methods.label_smoothing
methods.frskd: methods.teacher_width
methods.one: methods.last_stage
methods.ps_kd: methods.prediction_store
methods.sla_sd: methods.rotation
commands.config: mmengine.command_line
commands.runner: commands.run_guard
commands.export: deploy.command commands.export_model commands.export_student
timm.feature_extractor: timm.create
timm.wrap: timm.distilled_model
timm.probe: timm.feature_indices
commands.convert: mmseg.frskdify_command
commands.report: report.__main__ report.command
commands.report_charts: report.charts
commands.report_facts: report.facts report.pictures
commands.report_logs: report.run_logs report.scores report.text_log
commands.reproduce: reproduce.command reproduce.session
commands.reproduce_cost: reproduce.cost reproduce.estimate reproduce.sizes
commands.reproduce_text: reproduce.figure reproduce.report
commands.reproduce_plan: reproduce.paper reproduce.plan reproduce.tables
commands.reproduce_runs: reproduce.records reproduce.trainer
mmengine.attention: mmengine.attention_maps mmengine.attention_hook mmengine.classifier_attention_hook
mmengine.seeding: mmengine.random_state mmengine.seeded_sampler mmengine.seeded_dataset mmengine.step_seed_hook
mmengine.method_data: mmengine.method_dataset mmengine.batch_samplers data.batch_orders
commands.attention_maps: mmengine.trained_network mmengine.attention_picture
mmengine.classifier: mmengine.image_preprocessor mmengine.top_k_accuracy_metric
mmengine.optim: mmengine.autocast_optim_wrapper mmengine.optim_constructor
mmengine.registration: mmengine.stack_check mmengine.mmcv_operators
mmengine.hooks: mmengine.method_progress_hook mmengine.distill_warmup_hook mmengine.self_teacher_validation_hook
mmengine.hooks: mmengine.best_and_last_hook mmengine.sync_statistics_hook mmengine.channels_last_hook
mmengine.hooks: mmengine.compile_hook
mmengine.checkpoint_hook: mmengine.atomic_write mmengine.atomic_checkpoint_hook
mmengine.resume: mmengine.safe_loading
commands.json_log: mmengine.json_log
mmengine.config_tools: mmengine.without_pretrained
"""
MOVED = {
    f"frskd_plugin.{old}": f"frskd_plugin.{new}"
    for new, old_names in (line.split(": ") for line in _TABLE.split("\n") if line)
    for old in old_names.split()
}


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import finder for the old names in `MOVED`, and for the packages that held them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in MOVED:
            return importlib.util.spec_from_loader(fullname, self, is_package=_held_modules(fullname))
        if fullname.startswith("frskd_plugin.") and _held_modules(fullname) and not _exists(fullname, path):
            return importlib.util.spec_from_loader(fullname, self, is_package=True)
        return None

    def get_code(self, fullname: str) -> CodeType:
        """Run the command that took a package's place, for ``python -m frskd_plugin.OLD``."""
        source = f"import sys\nfrom frskd_plugin.commands import run\nsys.exit(run({_command(fullname)!r}))"
        return compile(source, f"<{fullname}>", "exec")

    def exec_module(self, module: ModuleType) -> None:
        """Put the new module in the old one's place; packages and commands stay, and hand out the new names."""
        name = module.__name__
        if name not in MOVED:
            return
        warnings.warn(f"{name} is now {MOVED[name]}; import that", DeprecationWarning, stacklevel=2)
        new = importlib.import_module(MOVED[name])
        if name.endswith(".command"):
            module.__dict__["main"] = partial(importlib.import_module("frskd_plugin.commands").run, _command(name))
        elif not _held_modules(name):
            sys.modules[name] = new
            return
        module.__dict__["__getattr__"] = lambda attribute: getattr(new, attribute)


def _command(name: str) -> str:
    return MOVED[name].rpartition(".")[2]


def _held_modules(name: str) -> bool:
    return any(old.startswith(f"{name}.") for old in MOVED)


def _exists(fullname: str, path: Sequence[str] | None) -> bool:
    """Tell if a package is still there; a folder that holds nothing but caches is none."""
    spec = importlib.machinery.PathFinder.find_spec(fullname, path)
    return spec is not None and spec.origin is not None


def install() -> None:
    """Make the old names importable; a second call changes nothing."""
    # By name: a package that was imported anew has a class of its own.
    if all(type(finder).__qualname__ != MovedModules.__qualname__ for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedModules())
