"""Register every component by name in mmengine's root registries, without importing what it is made of.

A name in a root registry is seen from mmseg and mmdet alike. The class behind a name is imported when a config first
builds it, so ``import frskd_plugin`` never pays for ``mmseg.models``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import warnings
from collections.abc import Mapping

from mmengine import registry

from frskd_plugin.version import __version__

# registry of mmengine -> {name in configs: module that defines it}
COMPONENTS: dict[str, dict[str, str]] = {
    "MODELS": {
        "TimmClassifier": "frskd_plugin.mmengine.classifier",
        "ImagePreprocessor": "frskd_plugin.mmengine.classifier",
        "TimmFeatureExtractor": "frskd_plugin.timm.feature_extractor",
        "BiFPN": "frskd_plugin.core.bifpn",
        "SelfTeacherNeck": "frskd_plugin.core.self_teacher_neck",
        "FRSKDLoss": "frskd_plugin.core.frskd_loss",
        "FRSKDHead": "frskd_plugin.mmseg.frskd_head",
        "FRSKDEncoderDecoder": "frskd_plugin.mmseg.segmentor",
        "FRSKDCascadeEncoderDecoder": "frskd_plugin.mmseg.segmentor",
        "EffDetSegHead": "frskd_plugin.mmseg.segmentor",
        "FRSKDDenseHead": "frskd_plugin.mmdet.dense_head",
        "FRSKDSingleStage": "frskd_plugin.mmdet.detector",
    },
    "HOOKS": {
        "DistillWarmupHook": "frskd_plugin.mmengine.hooks",
        "AtomicCheckpointHook": "frskd_plugin.mmengine.checkpoint_hook",
        "StepSeedHook": "frskd_plugin.mmengine.seeding",
        "CompileHook": "frskd_plugin.mmengine.hooks",
        "ChannelsLastHook": "frskd_plugin.mmengine.hooks",
        "MethodProgressHook": "frskd_plugin.mmengine.hooks",
        "SyncStatisticsHook": "frskd_plugin.mmengine.hooks",
        "SelfTeacherValidationHook": "frskd_plugin.mmengine.hooks",
        "BestAndLastHook": "frskd_plugin.mmengine.hooks",
        "DeferredInfoHook": "frskd_plugin.mmengine.deferred_log",
        "DeferredTimerHook": "frskd_plugin.mmengine.deferred_log",
        "FiniteLossHook": "frskd_plugin.mmengine.safety_hooks",
        "WeightsFitHook": "frskd_plugin.mmengine.safety_hooks",
        "AttentionPictureHook": "frskd_plugin.mmseg.attention_picture_hook",
        "ClassifierAttentionPictureHook": "frskd_plugin.mmengine.attention",
    },
    "LOOPS": {
        "GraphTrainLoop": "frskd_plugin.mmengine.graph_loop",
    },
    "DATASETS": {
        "SeededDataset": "frskd_plugin.mmengine.seeding",
        "MethodDataset": "frskd_plugin.mmengine.method_data",
        "ImageFolderDataset": "frskd_plugin.data.image_folder",
        "Cifar100Dataset": "frskd_plugin.data.cifar100",
        "TensorCifar100": "frskd_plugin.data.tensor_images",
        "CamVidDataset": "frskd_plugin.mmseg.data",
        "CheckedPascalVOCDataset": "frskd_plugin.mmseg.data",
    },
    "DATA_SAMPLERS": {
        "SeededSampler": "frskd_plugin.mmengine.seeding",
        "SeededInfiniteSampler": "frskd_plugin.mmengine.seeding",
        "ClassPairBatchSampler": "frskd_plugin.mmengine.method_data",
        "OverlapBatchSampler": "frskd_plugin.mmengine.method_data",
    },
    "TRANSFORMS": {
        "LoadCheckedImage": "frskd_plugin.mmseg.data",
        "LoadCheckedAnnotations": "frskd_plugin.mmseg.data",
        "Mixup": "frskd_plugin.data.mixing",
        "CutMix": "frskd_plugin.data.mixing",
    },
    "FUNCTIONS": {
        "take_batch": "frskd_plugin.data.tensor_images",
    },
    "METRICS": {
        "TopKAccuracyMetric": "frskd_plugin.mmengine.classifier",
        "SelfTeacherIoUMetric": "frskd_plugin.mmseg.data",
    },
    "OPTIM_WRAPPERS": {
        "AutocastOptimWrapper": "frskd_plugin.mmengine.optim",
    },
    "OPTIM_WRAPPER_CONSTRUCTORS": {
        "SelfTeacherOptimWrapperConstructor": "frskd_plugin.mmengine.optim",
    },
}


class LazyComponent:
    """Stand-in for the class ``module.name`` in a registry, which imports it when it is first built."""

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.__name__ = name

    def load(self) -> type:
        """Return the class itself; an `ImportError` has the real reason where the module cannot be imported."""
        try:
            return getattr(importlib.import_module(self.module), self.__name__)
        except ImportError as error:
            raise ImportError(
                f"{self.__name__} of frskd_plugin cannot be built: importing {self.module} failed with: {error}"
            ) from error

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.load()(*args, **kwargs)


def registered_type(registry_: registry.Registry, kind: str | type) -> type | None:
    """Return the class behind a ``type`` of a config, or None where the registry has no such name."""
    found = registry_.get(kind) if isinstance(kind, str) else kind
    return found.load() if isinstance(found, LazyComponent) else found


def register_all() -> None:
    """Put every component of `COMPONENTS` into its root registry; names that are there already stay."""
    for registry_name, components in COMPONENTS.items():
        root = getattr(registry, registry_name)
        for name, module in components.items():
            if name not in root.module_dict:
                root.register_module(name=name, module=LazyComponent(module, name))


# Import name -> distributions that provide it; pip installs one over the other without a word, and the mixture of both
# fails with errors that name neither.
PROVIDERS: dict[str, tuple[str, ...]] = {
    "mmengine": ("mmengine", "mmengine-lite", "onedl-mmengine"),
    "mmcv": ("mmcv", "mmcv-lite", "mmcv-full", "onedl-mmcv"),
    "mmseg": ("mmsegmentation", "onedl-mmsegmentation"),
    "mmdet": ("mmdet", "onedl-mmdetection"),
    "cv2": (
        "opencv-python",
        "opencv-python-headless",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    ),
}


def installed_versions() -> dict[str, str]:
    """Return the version of each installed distribution of `PROVIDERS`, by name."""
    found = {}
    for name in (name for names in PROVIDERS.values() for name in names):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    # the torn rest of a removed package has no version
    return {name: version for name, version in found.items() if version}


def versions_text() -> str:
    """List the versions of this package, timm and OpenMMLab for a log; mmengine's own logs have torch's."""
    import timm

    versions = {"frskd_plugin": __version__, "timm": timm.__version__, **installed_versions()}
    return "Packages:\n" + "\n".join(f"    {name}: {version}" for name, version in versions.items())


def mixed_stacks(installed: Mapping[str, str]) -> list[str]:
    """Return messages about distributions that must not be installed together, with the commands that mend it."""
    messages = []
    for import_name, providers in PROVIDERS.items():
        found = [name for name in providers if name in installed]
        if len(found) < 2:
            continue
        listed = " and ".join(f"{name} {installed[name]}" for name in found)
        # the forks and opencv-python are what the tested set has; `uninstall` of one tears files out of the other
        keep = found[-1] if import_name != "cv2" else found[0]
        messages.append(
            f"{listed} both provide `{import_name}` and overwrite each other's files. Keep one: "
            f"`pip uninstall -y {' '.join(found)}`, then `pip install --no-cache-dir {keep}=={installed[keep]}`."
        )
    doubled = any("`cv2`" not in message for message in messages)
    return messages if doubled else messages + _mixed_families(installed)


def _mixed_families(installed: Mapping[str, str]) -> list[str]:
    """Return a message where, say, the original mmengine serves a fork of mmseg: it imports, and fails much later."""
    names = [name for key, providers in PROVIDERS.items() if key != "cv2" for name in providers if name in installed]
    forks = [name for name in names if name.startswith("onedl-")]
    originals = [name for name in names if name not in forks]
    text = (
        f"{', '.join(originals)} (original OpenMMLab) and {', '.join(forks)} (onedl forks) are not made for each "
        f"other. Use one family: `pip uninstall -y {' '.join(originals)}`, then install their forks (or the reverse)."
    )
    return [text] if forks and originals else []


def warn_about_mixed_stacks() -> None:
    """Warn once about each mixture that is installed."""
    for message in mixed_stacks(installed_versions()):
        warnings.warn(message, stacklevel=2)


MISSING_OPERATORS = (
    "mmdetection needs an mmcv with compiled operators, made for exactly the torch that is installed. Make one: "
    "`pip wheel --no-cache-dir --no-build-isolation --no-deps --no-binary onedl-mmcv onedl-mmcv`, and install that "
    "file (a checkout of frskd_plugin does it by `make test-mmdet`). All of frskd_plugin but the detector works without"
)


def lacks_operators(error: BaseException) -> bool:
    """Tell if an import failed because mmcv's operators are not there, or are made for another torch.

    >>> lacks_operators(ImportError("/site/mmcv/_ext.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZN3c10"))
    True
    """
    text = str(error).replace("\\", "/")
    return isinstance(error, ImportError) and ("mmcv._ext" in text or "mmcv/_ext." in text)
