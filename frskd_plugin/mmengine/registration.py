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
    root: {name: f"frskd_plugin.{module}" for module, names in modules.items() for name in names.split()}
    for root, modules in {
        "MODELS": {
            "mmengine.classifier": "TimmClassifier ImagePreprocessor",
            "timm.feature_extractor": "TimmFeatureExtractor",
            "core.bifpn": "BiFPN",
            "core.self_teacher_neck": "SelfTeacherNeck",
            "core.frskd_loss": "FRSKDLoss",
            "mmseg.frskd_head": "FRSKDHead",
            "mmseg.segmentor": "FRSKDEncoderDecoder FRSKDCascadeEncoderDecoder EffDetSegHead",
            "mmdet.detector": "FRSKDSingleStage FRSKDDenseHead",
        },
        "HOOKS": {
            "mmengine.hooks": (
                "DistillWarmupHook MethodProgressHook SelfTeacherValidationHook BestAndLastHook SyncStatisticsHook "
                "ChannelsLastHook CompileHook"
            ),
            "mmengine.checkpoint_hook": "AtomicCheckpointHook",
            "mmengine.seeding": "StepSeedHook",
            "mmengine.deferred_log": "DeferredInfoHook DeferredTimerHook",
            "mmengine.safety_hooks": "FiniteLossHook WeightsFitHook",
            "mmengine.attention": "ClassifierAttentionPictureHook",
            "mmseg.attention_picture_hook": "AttentionPictureHook",
        },
        "LOOPS": {"mmengine.graph_loop": "GraphTrainLoop"},
        "DATASETS": {
            "mmengine.seeding": "SeededDataset",
            "mmengine.method_data": "MethodDataset",
            "data.image_folder": "ImageFolderDataset",
            "data.cifar100": "Cifar100Dataset",
            "data.tensor_images": "TensorCifar100",
            "mmseg.data": "CamVidDataset CheckedPascalVOCDataset",
        },
        "DATA_SAMPLERS": {
            "mmengine.seeding": "SeededSampler SeededInfiniteSampler",
            "mmengine.method_data": "ClassPairBatchSampler OverlapBatchSampler",
        },
        "TRANSFORMS": {"mmseg.data": "LoadCheckedImage LoadCheckedAnnotations", "data.mixing": "Mixup CutMix"},
        "FUNCTIONS": {"data.tensor_images": "take_batch"},
        "METRICS": {"mmengine.classifier": "TopKAccuracyMetric", "mmseg.data": "SelfTeacherIoUMetric"},
        "OPTIM_WRAPPERS": {"mmengine.optim": "AutocastOptimWrapper"},
        "OPTIM_WRAPPER_CONSTRUCTORS": {"mmengine.optim": "SelfTeacherOptimWrapperConstructor"},
    }.items()
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
    "cv2": tuple(
        f"opencv-{kind}" for kind in ("python", "python-headless", "contrib-python", "contrib-python-headless")
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
    messages, forks, originals = [], [], []
    for import_name, providers in PROVIDERS.items():
        found = [name for name in providers if name in installed]
        if import_name != "cv2":
            forks += [name for name in found if name.startswith("onedl-")]
            originals += [name for name in found if not name.startswith("onedl-")]
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
    if forks and originals and not doubled:  # such a mixture imports, and fails much later
        messages.append(
            f"{', '.join(originals)} (original OpenMMLab) and {', '.join(forks)} (onedl forks) are not made for each "
            f"other. Use one family: `pip uninstall -y {' '.join(originals)}`, then install their forks (or the "
            f"reverse)."
        )
    return messages


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
