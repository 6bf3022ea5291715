"""Trained student as a file for other runtimes, ONNX or ``torch.export``, checked by running it.

`open_student` builds the plain student with the weights of a checkpoint, `export_student_file` writes and checks it.
"""

from __future__ import annotations

import copy
import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.check import is_config
from frskd_plugin.core.dry_run import image_channels
from frskd_plugin.timm.checkpoint import read_weights
from frskd_plugin.timm.feature_extractor import check_model_name
from frskd_plugin.timm.probe import DEFAULT_INPUT_SIZE

# What a segmentor of mmseg runs at inference; auxiliary heads and preprocessor stay behind.
_INFERENCE_PARTS = ("backbone", "neck", "decode_head")
# Modules that exist for training alone: of a segmentor, of what `frskd_plugin.wrap` returns, of mmseg.
TRAINING_PARTS = ("self_teacher", "method", "auxiliary_head")
# A graph may hold constants of its own (a new shape, an index); a network's layers are larger.
SMALL_CONSTANT = 64
DEFAULT_TOLERANCE = 1e-4
ANY_STEP = 32  # how much larger the second images are, where every size is allowed
INPUT, OUTPUT = "images", "logits"
Runner = Callable[[Tensor], Tensor]


# The student


@dataclass(frozen=True)
class Student:
    """Network to write to a file, and the images it takes.

    Attributes:
        network: images [B, C, H, W] -> logits, in eval mode.
        input_size: channels, height and width of the images, if nothing else is asked for.
        dense: whether the logits are a map [B, K, H, W], and not [B, K].
        mean: of each channel of what the network takes, in 0..255; None: it takes images as they are.
        std: of each channel.
        channel_order: of the images, 'RGB' or 'BGR'.
        normalized: whether the network normalises its images itself.
        weights: where in the checkpoint its weights were.
    """

    network: nn.Module
    input_size: tuple[int, int, int]
    dense: bool
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channel_order: str = "RGB"
    normalized: bool = False
    weights: str = "state_dict"

    def images_text(self) -> str:
        """Describe the images that it takes."""
        if self.normalized:
            return "RGB, float32 in 0..255"
        if self.mean is None or self.std is None:
            return f"{self.channel_order}, float32, as the network was trained with"
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"{self.channel_order}, float32, (image in 0..255 - [{mean}]) / [{std}]"


def with_normalization(student: Student) -> Student:
    """Return the student with the normalisation in it, for RGB images in 0..255.

    Raises:
        ValueError: it is not known what its images were normalised with.
    """
    if student.mean is None or student.std is None:
        raise ValueError(
            "--with-normalization: neither the config nor timm says what the images were normalised with; leave it "
            "out and normalise before the network."
        )
    network = NormalizedNetwork(student.network, student.mean, student.std, student.channel_order == "BGR")
    return replace(student, network=network, channel_order="RGB", normalized=True)


def open_student(
    name: str,
    checkpoint: str,
    model_kwargs: dict[str, Any] | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> Student:
    """Build the plain network with the weights of ``checkpoint``.

    Args:
        name: a config file, plain or FRSKD, or the name of a timm model.
        checkpoint: see `read_weights`.
        model_kwargs: of ``timm.create_model``, for a timm model.
        cfg_options: settings that override the config.

    Raises:
        FileNotFoundError: a file is missing.
        ImportError: what the config needs (mmsegmentation) is not installed.
        ValueError: there is no such model, the config has none that can be exported, or the weights do not fit.
        TypeError: a setting that the model does not have.
    """
    if not is_config(name):
        weights, entry = read_weights(checkpoint)
        student = _timm_student(dict(model_name=name, **(model_kwargs or {})), weights, checkpoint)
        return replace(student, weights=entry)

    from frskd_plugin.mmengine.config_tools import is_classifier, override, read_config

    config = read_config(name)
    override(config, cfg_options or {})
    weights, entry = read_weights(checkpoint)
    if is_classifier(config):
        preprocessor = config.model.get("data_preprocessor") or {}
        student = _timm_student(
            config.model.student.to_dict(),
            weights,
            checkpoint,
            config.model.get("input_size"),
            preprocessor.get("mean"),
            preprocessor.get("std"),
        )
        return replace(student, weights=entry)
    if not (config.get("model") or {}).get("decode_head"):
        raise ValueError(
            f"{name}: model.type={(config.get('model') or {}).get('type')!r} cannot be exported: expected a "
            "TimmClassifier, or an encoder-decoder of mmseg with a decode head."
        )
    return replace(_segmentor(config, weights, checkpoint), weights=entry)


def _timm_student(
    kwargs: dict[str, Any],
    weights: dict[str, Tensor],
    checkpoint: str,
    input_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Student:
    kwargs = {key: value for key, value in kwargs.items() if key not in ("pretrained", "checkpoint_path")}
    check_model_name(kwargs["model_name"])
    network = timm.create_model(pretrained=False, **kwargs)
    classes = _num_classes(network, weights)
    if "num_classes" not in kwargs and classes not in (None, network.num_classes):
        network = timm.create_model(pretrained=False, num_classes=classes, **kwargs)
    load_strictly(network, weights, checkpoint)
    cfg = getattr(network, "pretrained_cfg", None) or {}
    channels, height, width = input_size or cfg.get("input_size") or DEFAULT_INPUT_SIZE
    if mean is None and cfg.get("mean") and cfg.get("std"):  # timm's are of images in 0..1
        mean, std = [255 * value for value in cfg["mean"]], [255 * value for value in cfg["std"]]
    return Student(
        network=network.eval(),
        input_size=(image_channels(network, channels), height, width),
        dense=False,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
    )


def _num_classes(network: nn.Module, weights: dict[str, Tensor]) -> int | None:
    """Count the classes of the classifier whose weights these are; None where timm does not name its layer."""
    names = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
    name = names if isinstance(names, str) else next(iter(names), "")
    bias = weights.get(f"{name}.bias")
    return None if bias is None else bias.shape[0]


def _segmentor(config: Any, weights: dict[str, Tensor], checkpoint: str) -> Student:
    from mmengine.registry import DefaultScope

    from frskd_plugin.mmengine.export import plain_config
    from frskd_plugin.mmseg.feature_maps import build_plain, image_size_of

    plain = plain_config(config)
    with DefaultScope.overwrite_default_scope(plain.get("default_scope") or "mmseg"):
        segmentor = build_plain(plain)
    load_strictly(segmentor, weights, checkpoint)
    preprocessor = plain.model.get("data_preprocessor") or {}
    mean, std = preprocessor.get("mean"), preprocessor.get("std")
    return Student(
        network=SegmentationNetwork(segmentor.eval()),
        input_size=(image_channels(segmentor.backbone), *image_size_of(plain)),
        dense=True,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        # mmcv reads BGR
        channel_order="RGB" if preprocessor.get("bgr_to_rgb") or preprocessor.get("rgb_to_bgr") else "BGR",
    )


def student_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the plain network's weights, under its own names, see `read_weights`."""
    return read_weights(path)[0]


def load_strictly(network: nn.Module, weights: dict[str, Tensor], name: str | Path) -> None:
    """Load, and say in one line what does not fit.

    Raises:
        ValueError: a weight is missing, unknown or of another shape.
    """
    try:
        missing, unknown = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # of shapes; its first line names the class alone
        raise ValueError(f"{name} does not fit the network: {str(error).splitlines()[-1].strip()}") from error
    if missing or unknown:
        examples = [*missing, *unknown]
        raise ValueError(
            f"{name} does not fit the network: {len(missing)} weights are missing and {len(unknown)} are unknown "
            f"({', '.join(examples[:3])}{', ...' if len(examples) > 3 else ''}). Give the config or model that the "
            "file was trained with."
        )


class SegmentationNetwork(nn.Module):
    """An encoder-decoder of mmseg from normalised images to logits of the same size, in mode 'whole'.

    Args:
        segmentor: in eval mode; its parameters are shared, not copied.

    Raises:
        ValueError: it is tested in another mode than 'whole'.
    """

    def __init__(self, segmentor: Any) -> None:
        super().__init__()
        mode = (segmentor.test_cfg or {}).get("mode", "whole")
        if mode != "whole":
            raise ValueError(
                f"a segmentor that is tested with test_cfg.mode={mode!r} cannot be exported: the windows are laid by "
                "Python, image by image. Set model.test_cfg=dict(mode='whole') (--cfg-options model.test_cfg.mode="
                "whole), and let the program around the exported network cut the windows, if it needs any."
            )
        self.model = copy.copy(segmentor)
        self.model._modules = {name: segmentor._modules[name] for name in _INFERENCE_PARTS if hasattr(segmentor, name)}
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, K, H, W]."""
        size = images.shape[-2:]
        meta = {"img_shape": size, "ori_shape": size, "pad_shape": size}
        return self.model.encode_decode(images, [meta])


class NormalizedNetwork(nn.Module):
    """A network with the normalisation of its images in front of it.

    Args:
        network: takes normalised images.
        mean: of each channel of what it takes, in 0..255.
        std: of each channel.
        flip_channels: whether the network takes BGR.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], flip_channels: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.flip_channels = flip_channels
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W], RGB, float32 in 0..255 -> logits."""
        images = images.flip(1) if self.flip_channels else images
        return self.network((images - self.mean) / self.std)


# The kinds of files


@dataclass(frozen=True)
class FileFormat:
    """A kind of file.

    Attributes:
        name: on the command line.
        suffixes: that its files may have.
        packages: that writing and checking it needs besides torch.
        write: a traced program to a file.
        read: a file to what runs it, images [B, C, H, W] -> logits.
        tensors: name and number of elements of each parameter, buffer and constant in a file.
    """

    name: str
    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, Path], None]
    read: Callable[[Path], Runner]
    tensors: Callable[[Path], dict[str, int]]

    def require(self) -> None:
        """Import the packages.

        Raises:
            ImportError: one is missing; it says which, and what to install.
        """
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ImportError(
                    f"--format {self.name} needs {', '.join(self.packages)}, and importing {package} failed ({error}): "
                    "pip install 'frskd_plugin[export]'"
                ) from error


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    """Fold no layers, so that names stay the network's; runtimes fold on loading."""
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
    with _quiet():
        made = torch.onnx.export(program, (), dynamo=True, optimize=False, verbose=False, **names)
        made.save(str(path), external_data=False)


def _read_onnx(path: Path) -> Runner:
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    onnx.checker.check_model(str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _onnx_tensors(path: Path) -> dict[str, int]:
    onnx: Any = importlib.import_module("onnx")
    return {tensor.name: int(torch.Size(tensor.dims).numel()) for tensor in onnx.load(str(path)).graph.initializer}


def _write_program(program: ExportedProgram, path: Path) -> None:
    with _quiet():
        torch.export.save(program, path)


def _program_tensors(path: Path) -> dict[str, int]:
    program = torch.export.load(path)
    constants = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
    return {name: value.numel() for name, value in {**program.state_dict, **constants}.items()}


FORMATS = {
    "onnx": FileFormat(
        "onnx", (".onnx",), ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _read_onnx, _onnx_tensors
    ),
    "torch_export": FileFormat(
        "torch_export",
        (".pt2",),
        (),
        _write_program,
        lambda path: torch.export.load(path).module(),
        _program_tensors,
    ),
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks on its own workings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# Writing and checking


@dataclass(frozen=True)
class Exported:
    """File that was written.

    Attributes:
        path: the file.
        parameters: how many it holds, all of them the student's.
        sizes: of the images it was tried on, [B, C, H, W] each.
        differences: of its logits from torch's, as a share of torch's largest logit, for each size.
    """

    path: Path
    parameters: int
    sizes: tuple[tuple[int, ...], ...]
    differences: tuple[float, ...]


def export_student_file(
    student: Student,
    path: str | Path,
    file_format: str,
    size: Sequence[int] | None = None,
    batch: int = 1,
    dynamic: str | int | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Exported:
    """Write the student to a file, run the file, and compare it with torch.

    Args:
        student: the network.
        path: of the file; it is removed again if it does not pass.
        file_format: 'onnx' or 'torch_export'.
        size: height and width of the images; None: those of the student.
        batch: images in a batch.
        dynamic: None: batch and size are fixed. 'batch': any batch. An int: any batch, and any height and width that
            are multiples of it.
        tolerance: largest allowed difference, as a share of torch's largest logit.

    Raises:
        ImportError: a package that the format needs is missing.
        ValueError: an argument is out of range, or the network cannot be traced.
        CheckError: the file does not compute what torch does, or holds more than the student.
    """
    path = Path(path)
    made = _format(file_format, path)
    if not tolerance > 0:
        raise ValueError(f"--tolerance must be > 0 (a share of the largest logit), got {tolerance}")
    made.require()
    sizes = image_sizes(student, size, batch, dynamic)
    program = trace(student, sizes[0], dynamic)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        unchecked = Path(folder) / path.name
        made.write(program, unchecked)
        parameters = check_only_student(made.tensors(unchecked), student.network)
        differences = check_difference(made.read(unchecked), student.network, sizes, tolerance)
        unchecked.replace(path)  # an earlier file stays where the new one is no good
    return Exported(path, parameters, tuple(sizes), tuple(differences))


def _format(name: str, path: Path) -> FileFormat:
    if name not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, got {name!r}")
    if path.suffix not in FORMATS[name].suffixes:
        raise ValueError(f"a file of --format {name} ends in {' or '.join(FORMATS[name].suffixes)}, got {path}")
    return FORMATS[name]


def image_sizes(
    student: Student, size: Sequence[int] | None, batch: int, dynamic: str | int | None
) -> list[tuple[int, int, int, int]]:
    """Return the size of the images to trace with, then those to try the file on.

    Raises:
        ValueError: a number is out of range, or the size is no multiple of what ``dynamic`` says.
    """
    channels, height, width = student.input_size
    height, width = size or (height, width)
    if min(batch, height, width) < 1:
        raise ValueError(f"--batch and --size must be above 0, got {batch} and {height} {width}")
    if dynamic is None:
        return [(batch, channels, height, width)]
    first = (max(batch, 2), channels, height, width)  # torch takes a batch of 1 for one that is always 1
    if dynamic == "batch":
        return [first, (1, channels, height, width)]
    if not isinstance(dynamic, int) or dynamic < 1:
        raise ValueError(f"--dynamic takes 'batch', or the number that height and width are multiples of: {dynamic!r}")
    if height % dynamic or width % dynamic:
        raise ValueError(f"--size {height} {width} must be multiples of {dynamic}, as --dynamic {dynamic} says")
    step = dynamic if dynamic > 1 else ANY_STEP
    return [first, (first[0] + 1, channels, height + step, width + 2 * step), (1, channels, height, width)]


def trace(student: Student, size: Sequence[int], dynamic: str | int | None = None) -> ExportedProgram:
    """Trace the network for images [B, C, H, W].

    Raises:
        ValueError: torch cannot trace it, or not for all the sizes asked for.
    """
    shapes = None if dynamic is None else (_dynamic_dims(dynamic),)
    images = torch.rand(*size)
    try:
        with torch.no_grad():
            program = torch.export.export(student.network, (images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the tracer's own kinds of errors
        hint = "" if dynamic is None else _hint(dynamic)
        raise ValueError(
            f"torch.export cannot trace the network on images {list(size)}: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}{hint}"
        ) from error
    for node in program.graph.nodes:  # the lines of source, with the paths of this machine
        node.meta.pop("stack_trace", None)
    return program


def _dynamic_dims(dynamic: str | int) -> dict[int, object]:
    if dynamic == "batch":
        return {0: Dim.DYNAMIC}
    if dynamic == 1:
        return {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    return {0: Dim("batch"), 2: dynamic * Dim("height_parts"), 3: dynamic * Dim("width_parts")}


def _hint(dynamic: str | int) -> str:
    if dynamic == "batch":
        return " Leave --dynamic out, with --batch of the size you need."
    return (
        " A network whose maps must halve evenly takes sizes in multiples: --dynamic 32, --dynamic 128. One that is "
        "made for one size takes --dynamic batch."
    )


class CheckError(Exception):
    """A file that must not be used."""


def largest_difference(run: Runner, network: nn.Module, images: Tensor) -> float:
    """Return the largest difference of the file's logits from torch's, as a share of torch's largest logit.

    Args:
        run: the file.
        network: it was made of.
        images: [B, C, H, W].

    Raises:
        CheckError: the file or the network does not run, or they give other shapes.
    """
    expected = _run(network, images, "the network itself")
    logits = _run(run, images, "the file")
    if logits.shape != expected.shape:
        raise CheckError(
            f"on images {list(images.shape)} the file gives {list(logits.shape)}, torch {list(expected.shape)}"
        )
    return ((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def _run(run: Runner, images: Tensor, name: str) -> Tensor:
    try:
        with torch.no_grad():
            return run(images)
    except Exception as error:  # whatever a runtime or a network raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no text"
        raise CheckError(
            f"{name} does not run on images {list(images.shape)} ({type(error).__name__}: {reason}). If not every size "
            "is allowed: --dynamic N takes multiples of N, --dynamic batch a single size."
        ) from error


def check_difference(run: Runner, network: nn.Module, sizes: Sequence[Sequence[int]], tolerance: float) -> list[float]:
    """Return the largest difference on random images of each size [B, C, H, W].

    Raises:
        CheckError: one is above ``tolerance``, or not a number; and see `largest_difference`.
    """
    generator = torch.Generator().manual_seed(0)
    differences = []
    for size in sizes:
        difference = largest_difference(run, network, torch.rand(*size, generator=generator))
        if not difference <= tolerance:
            raise CheckError(
                f"on images {list(size)} the file's logits differ from torch's by {difference:.2e} of the largest "
                f"logit, more than the tolerance {tolerance:.0e}"
            )
        differences.append(difference)
    return differences


def check_only_student(tensors: Mapping[str, int], network: nn.Module) -> int:
    """Check that a file holds the student's tensors and no others; returns how many parameters it has.

    Args:
        tensors: name -> number of elements, of all tensors in the file.
        network: the plain student.

    Raises:
        CheckError: a tensor belongs to the training alone, is not the student's, or is of another size.

    >>> check_only_student({"weight": 6, "bias": 2}, nn.Linear(3, 2))
    8
    >>> check_only_student({"weight": 6, "bias": 2, "self_teacher.bias": 2}, nn.Linear(3, 2))
    Traceback (most recent call last):
    frskd_plugin.export.CheckError: the file holds 1 tensors of the training alone (self_teacher.bias)
    """
    foreign = [name for name in tensors if set(name.split(".")) & set(TRAINING_PARTS)]
    if foreign:
        raise CheckError(f"the file holds {len(foreign)} tensors of the training alone ({', '.join(foreign[:3])})")
    own = {name: tensor.numel() for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
    unknown = [name for name, count in tensors.items() if name not in own and count > SMALL_CONSTANT]
    resized = [name for name, count in tensors.items() if own.get(name, count) != count]
    if unknown or resized:
        raise CheckError(
            f"the file holds {len(unknown)} tensors that the student does not have and {len(resized)} of another size "
            f"({', '.join([*unknown, *resized][:3])})"
        )
    parameters = {name for name, _ in network.named_parameters()}
    written = sum(count for name, count in tensors.items() if name in parameters)
    expected = sum(parameter.numel() for parameter in network.parameters())
    if written > expected:
        raise CheckError(f"the file holds {written} parameters, the student has {expected}")
    return written
