"""The two kinds of files: how a network is written to one, read back, and what tensors it holds."""

from __future__ import annotations

import abc
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

INPUT, OUTPUT = "images", "logits"
Runner = Callable[[Tensor], Tensor]


class FileFormat(abc.ABC):
    """A kind of file.

    Attributes:
        name: on the command line.
        suffixes: that its files may have.
        packages: that writing and checking it needs besides torch.
    """

    name: str
    suffixes: tuple[str, ...]
    packages: tuple[str, ...] = ()

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

    @abc.abstractmethod
    def write(self, program: ExportedProgram, path: Path) -> None:
        """Write the program to a file."""

    @abc.abstractmethod
    def read(self, path: Path) -> Runner:
        """What runs the file: images [B, C, H, W] -> logits."""

    @abc.abstractmethod
    def tensors(self, path: Path) -> dict[str, int]:
        """Name and number of elements of each parameter, buffer and constant in the file."""


class OnnxFormat(FileFormat):
    """ONNX, run with onnxruntime on the CPU."""

    name = "onnx"
    suffixes = (".onnx",)
    packages = ("onnx", "onnxscript", "onnxruntime")

    def write(self, program: ExportedProgram, path: Path) -> None:
        """See `FileFormat.write`. No layers are folded, so that names stay the network's; runtimes fold on loading."""
        with _quiet():
            made = torch.onnx.export(
                program,
                (),
                dynamo=True,
                optimize=False,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
            made.save(str(path), external_data=False)

    def read(self, path: Path) -> Runner:
        """See `FileFormat.read`."""
        onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
        onnx.checker.check_model(str(path))
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    def tensors(self, path: Path) -> dict[str, int]:
        """See `FileFormat.tensors`."""
        onnx: Any = importlib.import_module("onnx")
        return {tensor.name: int(torch.Size(tensor.dims).numel()) for tensor in onnx.load(str(path)).graph.initializer}


class ProgramFormat(FileFormat):
    """A program of ``torch.export``, for ``torch.export.load``."""

    name = "torch_export"
    suffixes = (".pt2",)

    def write(self, program: ExportedProgram, path: Path) -> None:
        """See `FileFormat.write`."""
        with _quiet():
            torch.export.save(program, path)

    def read(self, path: Path) -> Runner:
        """See `FileFormat.read`."""
        return torch.export.load(path).module()

    def tensors(self, path: Path) -> dict[str, int]:
        """See `FileFormat.tensors`."""
        program = torch.export.load(path)
        constants = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
        return {name: value.numel() for name, value in {**program.state_dict, **constants}.items()}


FORMATS: dict[str, FileFormat] = {made.name: made for made in (OnnxFormat(), ProgramFormat())}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own workings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
