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

# Old module -> new module. A package that is gone has a line of its own only where one module took its place.
MOVED = {
    "frskd_plugin.timm.cifar_classifier": "frskd_plugin.timm.cifar_networks",
    "frskd_plugin.timm.cifar_resnet": "frskd_plugin.timm.cifar_networks",
    "frskd_plugin.timm.cifar_wrn": "frskd_plugin.timm.cifar_networks",
    "frskd_plugin.timm.cifar_wrn_published": "frskd_plugin.timm.cifar_networks",
    "frskd_plugin.core.early_gradient": "frskd_plugin.core.immediate_gradient",
    "frskd_plugin.core.forward_cost": "frskd_plugin.core.dry_run",
    "frskd_plugin.core.listening": "frskd_plugin.core.dry_run",
    "frskd_plugin.core.bifpnc_layer": "frskd_plugin.core.self_teacher_neck",
    "frskd_plugin.core.fusion": "frskd_plugin.core.blocks",
    "frskd_plugin.core.resize": "frskd_plugin.core.blocks",
    "frskd_plugin.data.archives": "frskd_plugin.commands.published_archives",
    "frskd_plugin.data.published_layouts": "frskd_plugin.commands.published_archives",
    "frskd_plugin.data.prepare": "frskd_plugin.commands.prepare_data",
    "frskd_plugin.data.voc_lists": "frskd_plugin.commands.prepare_voc",
    "frskd_plugin.data.drawn_scenes": "frskd_plugin.commands.make_drawn_voc",
    "frskd_plugin.data.catalog": "frskd_plugin.data.image_folder",
    "frskd_plugin.data.transforms": "frskd_plugin.data.image_folder",
    "frskd_plugin.data.plain_pickle": "frskd_plugin.data.cifar100",
    "frskd_plugin.mmdet.operators": "frskd_plugin.mmdet",
    "frskd_plugin.mmdet.servable": "frskd_plugin.mmdet.dense_head",
    "frskd_plugin.mmdet.class_logits": "frskd_plugin.mmdet.dense_head",
    "frskd_plugin.mmseg.effdet_seg_head": "frskd_plugin.mmseg.segmentor",
    "frskd_plugin.mmseg.self_taught": "frskd_plugin.mmseg.segmentor",
    "frskd_plugin.mmseg.cascade_segmentor": "frskd_plugin.mmseg.segmentor",
    "frskd_plugin.mmseg.feature_list": "frskd_plugin.mmseg.student_outputs",
    "frskd_plugin.mmseg.semantic_logits": "frskd_plugin.mmseg.student_outputs",
    "frskd_plugin.mmseg.early_losses": "frskd_plugin.mmseg.student_outputs",
    "frskd_plugin.mmseg.dataset_files": "frskd_plugin.mmseg.data",
    "frskd_plugin.mmseg.voc": "frskd_plugin.mmseg.data",
    "frskd_plugin.mmseg.camvid": "frskd_plugin.mmseg.data",
    "frskd_plugin.mmseg.checked_loading": "frskd_plugin.mmseg.data",
    "frskd_plugin.mmseg.self_teacher_iou_metric": "frskd_plugin.mmseg.data",
    "frskd_plugin.core.binary_soft_label": "frskd_plugin.core.soft_label",
    "frskd_plugin.core.resized_soft_label": "frskd_plugin.core.soft_label",
    "frskd_plugin.benchmark.classification": "frskd_plugin.commands.training_step",
    "frskd_plugin.benchmark.command": "frskd_plugin.commands.benchmark",
    "frskd_plugin.benchmark.cost": "frskd_plugin.commands.training_step",
    "frskd_plugin.benchmark.data_paths": "frskd_plugin.commands.benchmark",
    "frskd_plugin.benchmark.options": "frskd_plugin.commands.arguments",
    "frskd_plugin.benchmark.peak_memory": "frskd_plugin.commands.training_step",
    "frskd_plugin.benchmark.random_batch": "frskd_plugin.check",
    "frskd_plugin.benchmark.segmentation": "frskd_plugin.commands.training_step",
    "frskd_plugin.benchmark.segmentation_data": "frskd_plugin.commands.benchmark",
    "frskd_plugin.benchmark.step": "frskd_plugin.commands.benchmark",
    "frskd_plugin.benchmark.timing": "frskd_plugin.commands.training_step",
    "frskd_plugin.benchmark.train": "frskd_plugin.commands.benchmark",
    "frskd_plugin.benchmark.training_step": "frskd_plugin.commands.training_step",
    "frskd_plugin.coverage.command": "frskd_plugin.commands.support",
    "frskd_plugin.coverage.family_command": "frskd_plugin.commands.support",
    "frskd_plugin.doctor": "frskd_plugin.check",
    "frskd_plugin.doctor.__main__": "frskd_plugin.commands.check",
    "frskd_plugin.doctor.command": "frskd_plugin.commands.check",
    "frskd_plugin.doctor.build": "frskd_plugin.check",
    "frskd_plugin.doctor.describe": "frskd_plugin.check",
    "frskd_plugin.doctor.examination": "frskd_plugin.check",
    "frskd_plugin.doctor.gradients": "frskd_plugin.check",
    "frskd_plugin.doctor.random_batch": "frskd_plugin.check",
    "frskd_plugin.doctor.report": "frskd_plugin.check_report",
    "frskd_plugin.deploy.check": "frskd_plugin.export",
    "frskd_plugin.deploy.export": "frskd_plugin.export",
    "frskd_plugin.deploy.formats": "frskd_plugin.export",
    "frskd_plugin.deploy.networks": "frskd_plugin.export",
    "frskd_plugin.deploy.student": "frskd_plugin.export",
    "frskd_plugin.deploy.weights": "frskd_plugin.export",
    "frskd_plugin.methods.preactivations": "frskd_plugin.core.preactivations",
    "frskd_plugin.core.overhaul": "frskd_plugin.core.feature_losses",
    "frskd_plugin.core.hint": "frskd_plugin.core.feature_losses",
    "frskd_plugin.core.attention": "frskd_plugin.core.feature_losses",
    "frskd_plugin.methods.teacher_width": "frskd_plugin.methods.frskd",
    "frskd_plugin.methods.last_stage": "frskd_plugin.methods.one",
    "frskd_plugin.methods.prediction_store": "frskd_plugin.methods.ps_kd",
    "frskd_plugin.methods.rotation": "frskd_plugin.methods.sla_sd",
    "frskd_plugin.mmengine.command_line": "frskd_plugin.commands.config",
    "frskd_plugin.deploy.command": "frskd_plugin.commands.export",
    "frskd_plugin.commands.export_model": "frskd_plugin.commands.export",
    "frskd_plugin.commands.export_student": "frskd_plugin.commands.export",
    "frskd_plugin.timm.cifar_cfg": "frskd_plugin.timm.cifar_networks",
    "frskd_plugin.timm.create": "frskd_plugin.timm.feature_extractor",
    "frskd_plugin.timm.distilled_model": "frskd_plugin.timm.wrap",
    "frskd_plugin.timm.feature_indices": "frskd_plugin.timm.probe",
    "frskd_plugin.timm.wrn_settings": "frskd_plugin.timm.cifar_networks",
    "frskd_plugin.mmseg.frskdify_command": "frskd_plugin.commands.convert",
    "frskd_plugin.report.__main__": "frskd_plugin.commands.report",
    "frskd_plugin.report.charts": "frskd_plugin.commands.report_charts",
    "frskd_plugin.report.command": "frskd_plugin.commands.report",
    "frskd_plugin.report.facts": "frskd_plugin.commands.report_facts",
    "frskd_plugin.report.pictures": "frskd_plugin.commands.report_facts",
    "frskd_plugin.report.run_logs": "frskd_plugin.commands.report_logs",
    "frskd_plugin.report.scores": "frskd_plugin.commands.report_logs",
    "frskd_plugin.report.text_log": "frskd_plugin.commands.report_logs",
    "frskd_plugin.reproduce.command": "frskd_plugin.commands.reproduce",
    "frskd_plugin.reproduce.cost": "frskd_plugin.commands.reproduce_cost",
    "frskd_plugin.reproduce.estimate": "frskd_plugin.commands.reproduce_cost",
    "frskd_plugin.reproduce.figure": "frskd_plugin.commands.reproduce_text",
    "frskd_plugin.reproduce.paper": "frskd_plugin.commands.reproduce_plan",
    "frskd_plugin.reproduce.plan": "frskd_plugin.commands.reproduce_plan",
    "frskd_plugin.reproduce.records": "frskd_plugin.commands.reproduce_runs",
    "frskd_plugin.reproduce.report": "frskd_plugin.commands.reproduce_text",
    "frskd_plugin.reproduce.session": "frskd_plugin.commands.reproduce",
    "frskd_plugin.reproduce.sizes": "frskd_plugin.commands.reproduce_cost",
    "frskd_plugin.reproduce.tables": "frskd_plugin.commands.reproduce_plan",
    "frskd_plugin.reproduce.trainer": "frskd_plugin.commands.reproduce_runs",
    "frskd_plugin.mmengine.attention_maps": "frskd_plugin.mmengine.attention",
    "frskd_plugin.mmengine.attention_hook": "frskd_plugin.mmengine.attention",
    "frskd_plugin.mmengine.classifier_attention_hook": "frskd_plugin.mmengine.attention",
    "frskd_plugin.mmengine.random_state": "frskd_plugin.mmengine.seeding",
    "frskd_plugin.mmengine.seeded_sampler": "frskd_plugin.mmengine.seeding",
    "frskd_plugin.mmengine.seeded_dataset": "frskd_plugin.mmengine.seeding",
    "frskd_plugin.mmengine.step_seed_hook": "frskd_plugin.mmengine.seeding",
    "frskd_plugin.mmengine.method_dataset": "frskd_plugin.mmengine.method_data",
    "frskd_plugin.mmengine.batch_samplers": "frskd_plugin.mmengine.method_data",
    "frskd_plugin.data.batch_orders": "frskd_plugin.mmengine.method_data",
    "frskd_plugin.mmengine.trained_network": "frskd_plugin.commands.attention_maps",
    "frskd_plugin.mmengine.attention_picture": "frskd_plugin.commands.attention_maps",
    "frskd_plugin.mmengine.image_preprocessor": "frskd_plugin.mmengine.classifier",
    "frskd_plugin.mmengine.top_k_accuracy_metric": "frskd_plugin.mmengine.classifier",
    "frskd_plugin.mmengine.autocast_optim_wrapper": "frskd_plugin.mmengine.optim",
    "frskd_plugin.mmengine.optim_constructor": "frskd_plugin.mmengine.optim",
    "frskd_plugin.mmengine.stack_check": "frskd_plugin.mmengine.registration",
    "frskd_plugin.mmengine.mmcv_operators": "frskd_plugin.mmengine.registration",
    "frskd_plugin.mmengine.method_progress_hook": "frskd_plugin.mmengine.hooks",
    "frskd_plugin.mmengine.distill_warmup_hook": "frskd_plugin.mmengine.hooks",
    "frskd_plugin.mmengine.self_teacher_validation_hook": "frskd_plugin.mmengine.hooks",
    "frskd_plugin.mmengine.best_and_last_hook": "frskd_plugin.mmengine.hooks",
    "frskd_plugin.mmengine.sync_statistics_hook": "frskd_plugin.mmengine.hooks",
    "frskd_plugin.mmengine.channels_last_hook": "frskd_plugin.mmengine.hooks",
    "frskd_plugin.mmengine.compile_hook": "frskd_plugin.mmengine.hooks",
    "frskd_plugin.mmengine.atomic_write": "frskd_plugin.mmengine.checkpoint_hook",
    "frskd_plugin.mmengine.atomic_checkpoint_hook": "frskd_plugin.mmengine.checkpoint_hook",
    "frskd_plugin.mmengine.safe_loading": "frskd_plugin.mmengine.resume",
    "frskd_plugin.mmengine.json_log": "frskd_plugin.commands.json_log",
    "frskd_plugin.mmengine.without_pretrained": "frskd_plugin.mmengine.config_tools",
}


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import finder for the old names in `MOVED`, and for the packages that held them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if fullname in MOVED:
            return importlib.util.spec_from_loader(fullname, self, is_package=_held_modules(fullname))
        if fullname.startswith("frskd_plugin.") and _held_modules(fullname) and not _exists(fullname, path):
            return importlib.util.spec_from_loader(fullname, self, is_package=True)
        return None

    def get_code(self, fullname: str) -> CodeType:
        """Run the command that took the place of a package's ``__main__``, for ``python -m frskd_plugin.OLD``."""
        source = f"import sys\nfrom frskd_plugin.commands import run\nsys.exit(run({_command(fullname)!r}))"
        return compile(source, f"<{fullname}>", "exec")

    def exec_module(self, module: ModuleType) -> None:
        """Put the new module in the old one's place.

        A package stays, for its modules, and hands out the new names; so does a command, whose ``main`` returns an
        exit status as it did.
        """
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
