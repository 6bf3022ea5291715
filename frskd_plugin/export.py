"""Trained student as a file for other runtimes, ONNX or ``torch.export``, checked by running it; or another part of it.

`open_student` builds the network with the weights of a checkpoint, `export_student_file` writes and checks it.
"""

from __future__ import annotations

import importlib
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.check import is_config
from frskd_plugin.core.dry_run import count_forward, evaluating, image_channels
from frskd_plugin.timm.checkpoint import create_model, read_weights
from frskd_plugin.timm.parts import has_self_teacher
from frskd_plugin.timm.probe import usual_input_size
from frskd_plugin.timm.wrap import unwrap, wrap

# Modules that exist for training alone: of a segmentor, of what `frskd_plugin.wrap` returns, of mmseg.
TRAINING_PARTS = ("self_teacher", "method", "auxiliary_head")
# A graph may hold constants of its own (a new shape, an index); a network's layers are larger.
SMALL_CONSTANT = 64
DEFAULT_TOLERANCE = 1e-4
ANY_STEP = 32  # how much larger the second images are, where every size is allowed
INPUT, OUTPUT = "images", "logits"
Runner = Callable[[Tensor], Tensor]


# The network


@dataclass(frozen=True)
class Student:
    """Network to write to a file, and the images it takes."""

    network: nn.Module  # images [B, C, H, W] -> logits, in eval mode
    input_size: tuple[int, int, int]  # channels, height and width of the images, if nothing else is asked for
    dense: bool  # the logits are a map [B, K, H, W], and not [B, K]
    # of each channel of what the network takes, in 0..255; None: not known; empty: it normalises them itself
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    channel_order: str = "RGB"  # of the images, or 'BGR'
    weights: str = "state_dict"  # where in the checkpoint its weights were
    plain: nn.Module | None = None  # the student, where the network is another part of what was trained


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
    return replace(student, network=network, channel_order="RGB", mean=(), std=())


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
        self.network, self.flip_channels = network, flip_channels
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W], RGB, float32 in 0..255 -> logits."""
        images = images.flip(1) if self.flip_channels else images
        return self.network((images - self.mean) / self.std)


def open_student(
    name: str,
    checkpoint: str,
    model_kwargs: dict[str, Any] | None = None,
    cfg_options: dict[str, Any] | None = None,
    part: str = "student",
    settings: dict[str, Any] | None = None,
) -> Student:
    """Build the plain network, or another part, with the weights of ``checkpoint``.

    Args:
        name: a config file, plain or FRSKD, or the name of a timm model.
        checkpoint: see `read_weights`; for another part than the student one of the training.
        model_kwargs: of ``timm.create_model``, for a timm model.
        cfg_options: settings that override the config.
        part: 'student', 'self_teacher' or 'ensemble', see `frskd_plugin.unwrap`.
        settings: of `frskd_plugin.wrap`, with which a timm model was trained, for another part than the student.

    Raises:
        FileNotFoundError: a file is missing.
        ImportError: what the config needs (mmsegmentation) is not installed.
        ValueError: there is no such model, the config has none that can be exported, the weights do not fit, or the
            method has no such part.
        TypeError: a setting that the model does not have.
    """
    if not is_config(name):
        return _classifier(dict(model_name=name, **(model_kwargs or {})), checkpoint, part, settings or {}, {})

    from frskd_plugin.mmengine.config_tools import is_classifier, override, read_config

    config = read_config(name)
    override(config, cfg_options or {})
    model: Any = config.get("model") or {}
    if is_classifier(config):
        return _classifier(model.student.to_dict(), checkpoint, part, _wrap_settings(model), model)
    if not model.get("decode_head"):
        raise ValueError(
            f"{name}: model.type={model.get('type')!r} cannot be exported: expected a TimmClassifier, or an "
            "encoder-decoder of mmseg with a decode head."
        )
    return _segmentor(config, checkpoint, part)


def _wrap_settings(model: Any) -> dict[str, Any]:
    """Return what a `TimmClassifier` of this config gives to `wrap`."""
    from mmengine.registry import MODELS

    method = dict(model.get("method") or {"name": "baseline"})
    criterion = None if model.get("criterion") is None else MODELS.build(model.criterion)
    return {"out_indices": model.get("out_indices"), "criterion": criterion, "method": method.pop("name"), **method}


def _classifier(
    kwargs: dict[str, Any], checkpoint: str, part: str, settings: dict[str, Any], config: Mapping[str, Any]
) -> Student:
    kwargs = {key: value for key, value in kwargs.items() if key not in ("pretrained", "checkpoint_path")}
    weights, entry = read_weights(checkpoint)
    network = create_model(**kwargs)
    classes = _num_classes(network, weights)
    if "num_classes" not in kwargs and classes not in (None, network.num_classes):
        network = create_model(num_classes=classes, **kwargs)
    load_strictly(network, weights, checkpoint)
    network.eval()
    input_size = config.get("input_size")
    made = network if part == "student" else _part(network, checkpoint, part, {"input_size": input_size, **settings})
    preprocessor = config.get("data_preprocessor") or {}
    mean, std = preprocessor.get("mean"), preprocessor.get("std")
    cfg = getattr(network, "pretrained_cfg", None) or {}
    channels, *_ = size = usual_input_size(network, input_size)
    # timm's are of images in 0..1; with in_chans those of the images that the network was published for
    if mean is None and len(cfg.get("mean") or ()) == len(cfg.get("std") or ()) == channels:
        mean, std = [255 * value for value in cfg["mean"]], [255 * value for value in cfg["std"]]
    return Student(
        network=made,
        input_size=size,
        dense=False,
        mean=mean,
        std=std,
        weights=entry,
        plain=None if part == "student" else network,
    )


def _num_classes(network: nn.Module, weights: dict[str, Tensor]) -> int | None:
    """Count the classes of the classifier whose weights these are; None where timm does not name its layer."""
    names = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
    name = names if isinstance(names, str) else next(iter(names), "")
    bias = weights.get(f"{name}.bias")
    return None if bias is None else bias.shape[0]


def _part(student: nn.Module, checkpoint: str, part: str, settings: dict[str, Any]) -> nn.Module:
    model = wrap(student, **settings)
    # of a self-teacher it alone is needed, whatever schedule and losses it was trained with
    prefix, teacher = "method.", model.method
    if has_self_teacher(teacher):
        prefix, teacher = "method.self_teacher.", teacher.self_teacher
    everything, _ = read_weights(checkpoint, whole=True)
    weights = {key.removeprefix(prefix): value for key, value in everything.items() if key.startswith(prefix)}
    if not weights:
        raise ValueError(
            f"--part {part}: {checkpoint} holds no weights of a training method ('{prefix}*'); give a checkpoint of "
            "the training, not an exported student."
        )
    load_strictly(teacher, weights, checkpoint)
    return unwrap(model, part)


def _segmentor(config: Any, checkpoint: str, part: str) -> Student:
    from mmengine.registry import DefaultScope

    from frskd_plugin.mmengine.export import plain_config
    from frskd_plugin.mmseg.convert import build_plain, image_size_of
    from frskd_plugin.mmseg.segmentor import SegmentationNetwork

    weights, entry = read_weights(checkpoint, whole=part != "student")
    if part == "student":
        config = plain_config(config)
    with DefaultScope.overwrite_default_scope(config.get("default_scope") or "mmseg"):
        segmentor = build_plain(config)
    network = SegmentationNetwork(segmentor.eval(), part)
    load_strictly(segmentor, weights, checkpoint)
    preprocessor = config.model.get("data_preprocessor") or {}
    return Student(
        network=network,
        input_size=(image_channels(segmentor.backbone), *image_size_of(config)),
        dense=True,
        mean=preprocessor.get("mean"),
        std=preprocessor.get("std"),
        # mmcv reads BGR
        channel_order="RGB" if preprocessor.get("bgr_to_rgb") or preprocessor.get("rgb_to_bgr") else "BGR",
        weights=entry,
        plain=None if part == "student" else SegmentationNetwork(segmentor),
    )


def student_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the plain network's weights, under its own names, see `read_weights`."""
    return read_weights(path)[0]


def load_strictly(network: nn.Module, weights: dict[str, Tensor], name: str | Path) -> None:
    """Load, and say in one line what does not fit: ValueError for a weight missing, unknown or of another shape."""
    try:
        missing, unknown = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # of shapes; its first line names the class alone
        raise ValueError(f"{name} does not fit the network: {str(error).splitlines()[-1].strip()}") from error
    if missing or unknown:
        examples = [*missing, *unknown]
        raise ValueError(
            f"{name} does not fit the network: {len(missing)} weights are missing and {len(unknown)} are unknown "
            f"({', '.join(examples[:3])}{', ...' if len(examples) > 3 else ''}). Give the config, or the model and its "
            "settings, that the file was trained with."
        )


# The kinds of files


@dataclass(frozen=True)
class FileFormat:
    """A kind of file."""

    suffix: str
    packages: tuple[str, ...]  # that writing and checking it needs besides torch
    write: Callable[[ExportedProgram, Path], None]
    # what runs a file, and the number of elements of each parameter, buffer and constant in it
    read: Callable[[Path], tuple[Runner, dict[str, int]]]


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    """Fold no layers, so that names stay the network's; runtimes fold on loading."""
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
    made = torch.onnx.export(program, (), dynamo=True, optimize=False, verbose=False, **names)
    made.save(str(path), external_data=False)


def _read_onnx(path: Path) -> tuple[Runner, dict[str, int]]:
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    onnx.checker.check_model(str(path))
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of constants that it cannot fold
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tensors = {tensor.name: math.prod(tensor.dims) for tensor in onnx.load(str(path)).graph.initializer}
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0]), tensors


def _read_program(path: Path) -> tuple[Runner, dict[str, int]]:
    program = torch.export.load(path)
    values = {**program.state_dict, **program.constants}
    return program.module(), {name: value.numel() for name, value in values.items() if isinstance(value, Tensor)}


FORMATS = {
    "onnx": FileFormat(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _read_onnx),
    "torch_export": FileFormat(".pt2", (), torch.export.save, _read_program),
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
    """File that was written."""

    path: Path
    parameters: int  # how many it holds, all of them the network's
    sizes: tuple[tuple[int, ...], ...]  # of the images it was tried on, [B, C, H, W] each
    differences: tuple[float, ...]  # of its logits from torch's, as a share of torch's largest logit, for each size


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
        CheckError: the file does not compute what torch does, or holds more than the network.
    """
    path = Path(path)
    if file_format not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, got {file_format!r}")
    made = FORMATS[file_format]
    if path.suffix != made.suffix:
        raise ValueError(f"a file of --format {file_format} ends in {made.suffix}, got {path}")
    if not tolerance > 0:
        raise ValueError(f"--tolerance must be > 0 (a share of the largest logit), got {tolerance}")
    for package in made.packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f"--format {file_format} needs {', '.join(made.packages)}, and importing {package} failed ({error}): "
                "pip install 'frskd_plugin[export]'"
            ) from error
    sizes = _image_sizes(student, size, batch, dynamic)
    program = trace(student, sizes[0], dynamic)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        unchecked = Path(folder) / path.name
        with _quiet():
            made.write(program, unchecked)
            run, tensors = made.read(unchecked)
            parameters = check_tensors(tensors, student.network)
            differences = check_difference(run, student.network, sizes, tolerance)
        unchecked.replace(path)  # an earlier file stays where the new one is no good
    return Exported(path, parameters, tuple(sizes), tuple(differences))


def _image_sizes(
    student: Student, size: Sequence[int] | None, batch: int, dynamic: str | int | None
) -> list[tuple[int, int, int, int]]:
    """Return the size of the images to trace with, then those to try the file on."""
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
    """Trace the network for images [B, C, H, W]; ValueError where torch cannot, or not for all the sizes asked for."""
    dims: dict[int, object] = {0: Dim.DYNAMIC}
    hint = " Leave --dynamic out, with --batch of the size you need."
    if isinstance(dynamic, int):
        dims |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
        if dynamic > 1:
            dims = {0: Dim("batch"), 2: dynamic * Dim("height_parts"), 3: dynamic * Dim("width_parts")}
        hint = (
            " A network whose maps must halve evenly takes sizes in multiples: --dynamic 32, --dynamic 128. One that "
            "is made for one size takes --dynamic batch."
        )
    shapes = None if dynamic is None else (dims,)
    try:
        with torch.no_grad():
            program = torch.export.export(student.network, (torch.rand(*size),), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the tracer's own kinds of errors
        raise ValueError(
            f"torch.export cannot trace the network on images {list(size)}: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}{'' if dynamic is None else hint}"
        ) from error
    for node in program.graph.nodes:  # the lines of source, with the paths of this machine
        node.meta.pop("stack_trace", None)
    return program


def count_macs(network: nn.Module, size: Sequence[int]) -> int:
    """Count the multiply-accumulates of one image of ``size`` (channels, height, width)."""
    with evaluating(network), count_forward(network) as cost:
        network(torch.rand(1, *size))
    return cost.macs


class CheckError(Exception):
    """A file that must not be used."""


def check_difference(run: Runner, network: nn.Module, sizes: Sequence[Sequence[int]], tolerance: float) -> list[float]:
    """Return how far a file's logits are from the network's on random images, as a share of the largest, for each size.

    Raises:
        CheckError: more than ``tolerance``, or not a number; one of them does not run, or they give other shapes.
    """
    generator = torch.Generator().manual_seed(0)
    differences = []
    for size in sizes:
        images = torch.rand(*size, generator=generator)
        expected, logits = _run(network, images, "the network itself"), _run(run, images, "the file")
        if logits.shape != expected.shape:
            shapes = f"{list(logits.shape)}, torch {list(expected.shape)}"
            raise CheckError(f"on images {list(size)} the file gives {shapes}")
        difference = ((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
        if not difference <= tolerance:
            raise CheckError(
                f"on images {list(size)} the file's logits differ from torch's by {difference:.2e} of the largest "
                f"logit, more than the tolerance {tolerance:.0e}"
            )
        differences.append(difference)
    return differences


def _run(run: Runner, images: Tensor, name: str) -> Tensor:
    try:
        with torch.no_grad():
            return run(images)
    except Exception as error:  # whatever a runtime or a network raises
        reason = (str(error).strip() or "no text").splitlines()[0]
        raise CheckError(
            f"{name} does not run on images {list(images.shape)} ({type(error).__name__}: {reason}). If not every size "
            "is allowed: --dynamic N takes multiples of N, --dynamic batch a single size."
        ) from error


def check_tensors(tensors: Mapping[str, int], network: nn.Module) -> int:
    """Return how many parameters are in a file whose tensors have these names and numbers of elements.

    Raises:
        CheckError: a tensor belongs to the training alone, is not the network's, or is of another size.

    >>> check_tensors({"weight": 6, "bias": 2}, nn.Linear(3, 2))
    8
    >>> check_tensors({"weight": 6, "bias": 2, "self_teacher.bias": 2}, nn.Linear(3, 2))
    Traceback (most recent call last):
    frskd_plugin.export.CheckError: the file holds 1 tensors of the training alone (self_teacher.bias)
    """
    own = {name: tensor.numel() for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
    for prefix, module in network.named_modules():  # constants that it keeps as plain attributes
        own |= {f"{prefix}.{key}": value.numel() for key, value in vars(module).items() if isinstance(value, Tensor)}
    foreign = [name for name in tensors if name not in own and set(name.split(".")) & set(TRAINING_PARTS)]
    if foreign:
        raise CheckError(f"the file holds {len(foreign)} tensors of the training alone ({', '.join(foreign[:3])})")
    unknown = [name for name, count in tensors.items() if name not in own and count > SMALL_CONSTANT]
    resized = [name for name, count in tensors.items() if own.get(name, count) != count]
    if unknown or resized:
        raise CheckError(
            f"the file holds {len(unknown)} tensors that the network does not have and {len(resized)} of another size "
            f"({', '.join([*unknown, *resized][:3])})"
        )
    return sum(tensors.get(name, 0) for name, _ in network.named_parameters())


def __getattr__(name: str) -> Any:
    if name != "SegmentationNetwork":  # where it stood before
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from frskd_plugin.mmseg.segmentor import SegmentationNetwork

    return SegmentationNetwork
