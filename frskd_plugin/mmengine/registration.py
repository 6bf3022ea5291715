"""Registers every component by name in mmengine's root registries, without importing what it is made of.

A name in a root registry is seen from mmseg and mmdet alike. The class behind a name is imported when a config first
builds it, so ``import frskd_plugin`` never pays for ``mmseg.models``.
"""

from __future__ import annotations

import importlib

from mmengine import registry

# registry of mmengine -> {name in configs: module that defines it}
COMPONENTS: dict[str, dict[str, str]] = {
    "MODELS": {
        "TimmClassifier": "frskd_plugin.mmengine.classifier",
        "ImagePreprocessor": "frskd_plugin.mmengine.image_preprocessor",
        "TimmFeatureExtractor": "frskd_plugin.timm.feature_extractor",
        "BiFPN": "frskd_plugin.core.bifpn",
        "SelfTeacherNeck": "frskd_plugin.core.self_teacher_neck",
        "FRSKDLoss": "frskd_plugin.core.frskd_loss",
        "FRSKDHead": "frskd_plugin.mmseg.frskd_head",
        "FRSKDEncoderDecoder": "frskd_plugin.mmseg.segmentor",
        "FRSKDCascadeEncoderDecoder": "frskd_plugin.mmseg.cascade_segmentor",
        "EffDetSegHead": "frskd_plugin.mmseg.effdet_seg_head",
        "FRSKDDenseHead": "frskd_plugin.mmdet.dense_head",
        "FRSKDSingleStage": "frskd_plugin.mmdet.detector",
    },
    "HOOKS": {
        "DistillWarmupHook": "frskd_plugin.mmengine.distill_warmup_hook",
        "AtomicCheckpointHook": "frskd_plugin.mmengine.atomic_checkpoint_hook",
        "StepSeedHook": "frskd_plugin.mmengine.step_seed_hook",
        "CompileHook": "frskd_plugin.mmengine.compile_hook",
        "ChannelsLastHook": "frskd_plugin.mmengine.channels_last_hook",
        "MethodProgressHook": "frskd_plugin.mmengine.method_progress_hook",
        "SyncStatisticsHook": "frskd_plugin.mmengine.sync_statistics_hook",
        "SelfTeacherValidationHook": "frskd_plugin.mmengine.self_teacher_validation_hook",
        "BestAndLastHook": "frskd_plugin.mmengine.best_and_last_hook",
        "FiniteLossHook": "frskd_plugin.mmengine.safety_hooks",
        "WeightsFitHook": "frskd_plugin.mmengine.safety_hooks",
        "AttentionPictureHook": "frskd_plugin.mmseg.attention_picture_hook",
        "ClassifierAttentionPictureHook": "frskd_plugin.mmengine.classifier_attention_hook",
    },
    "DATASETS": {
        "SeededDataset": "frskd_plugin.mmengine.seeded_dataset",
        "MethodDataset": "frskd_plugin.mmengine.method_dataset",
        "ImageFolderDataset": "frskd_plugin.data.image_folder",
        "Cifar100Dataset": "frskd_plugin.data.cifar100",
        "TensorCifar100": "frskd_plugin.data.tensor_images",
        "CamVidDataset": "frskd_plugin.mmseg.camvid",
        "CheckedPascalVOCDataset": "frskd_plugin.mmseg.voc",
    },
    "DATA_SAMPLERS": {
        "SeededSampler": "frskd_plugin.mmengine.seeded_sampler",
        "SeededInfiniteSampler": "frskd_plugin.mmengine.seeded_sampler",
        "ClassPairBatchSampler": "frskd_plugin.mmengine.batch_samplers",
        "OverlapBatchSampler": "frskd_plugin.mmengine.batch_samplers",
    },
    "TRANSFORMS": {
        "LoadCheckedImage": "frskd_plugin.mmseg.checked_loading",
        "LoadCheckedAnnotations": "frskd_plugin.mmseg.checked_loading",
        "Mixup": "frskd_plugin.data.mixing",
        "CutMix": "frskd_plugin.data.mixing",
    },
    "FUNCTIONS": {
        "take_batch": "frskd_plugin.data.tensor_images",
    },
    "METRICS": {
        "TopKAccuracyMetric": "frskd_plugin.mmengine.top_k_accuracy_metric",
        "SelfTeacherIoUMetric": "frskd_plugin.mmseg.self_teacher_iou_metric",
    },
    "OPTIM_WRAPPERS": {
        "AutocastOptimWrapper": "frskd_plugin.mmengine.autocast_optim_wrapper",
    },
    "OPTIM_WRAPPER_CONSTRUCTORS": {
        "SelfTeacherOptimWrapperConstructor": "frskd_plugin.mmengine.optim_constructor",
    },
}


class LazyComponent:
    """Stands in a registry for the class ``module.name`` and imports it when it is first built.

    Args:
        module: module that defines the class.
        name: name of the class.

    Raises:
        ImportError: at the first use, with the real reason, where the module cannot be imported.
    """

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.__name__ = name

    def load(self) -> type:
        """The class itself."""
        try:
            return getattr(importlib.import_module(self.module), self.__name__)
        except ImportError as error:
            raise ImportError(
                f"{self.__name__} of frskd_plugin cannot be built: importing {self.module} failed with: {error}"
            ) from error

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.load()(*args, **kwargs)


def registered_type(registry_: registry.Registry, kind: str | type) -> type | None:
    """The class behind a ``type`` of a config, or None where the registry has no such name."""
    found = registry_.get(kind) if isinstance(kind, str) else kind
    return found.load() if isinstance(found, LazyComponent) else found


def register_all() -> None:
    """Put every component of `COMPONENTS` into its root registry; names that are there already stay."""
    for registry_name, components in COMPONENTS.items():
        root = getattr(registry, registry_name)
        for name, module in components.items():
            if name not in root.module_dict:
                root.register_module(name=name, module=LazyComponent(module, name))
