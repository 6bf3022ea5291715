"""Write what was trained without the training: ``frskd export [CONFIG|MODEL] CHECKPOINT OUT``.

Its old names are `export_student`, for weights (.pth), and `export_model`, for other runtimes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import frskd_plugin  # noqa: F401  (registers the components)
from frskd_plugin.check import is_config
from frskd_plugin.commands.arguments import add_keywords, add_settings, command_parser, positive_int, refuse_foreign
from frskd_plugin.commands.console import output_held
from frskd_plugin.export import (
    DEFAULT_TOLERANCE,
    FORMATS,
    CheckError,
    Exported,
    Student,
    count_macs,
    export_student_file,
    open_student,
    with_normalization,
)
from frskd_plugin.timm.parts import PARTS

EPILOG = """\
CHECKPOINT OUT.pth writes the plain student's weights, without self-teacher and optimizer: of a classifier timm's own
state_dict, of an FRSKD segmentor a checkpoint and, as OUT.py, the plain config.
CONFIG|MODEL CHECKPOINT OUT writes an ONNX or torch.export file. CHECKPOINT is one of training (with FRSKD or without),
an exported student, or a timm state_dict. The file takes normalised images unless --with-normalization puts that into
it; a segmentor's padding to data_preprocessor.size stays with the caller. Logits come out: [B, K], or [B, K, H, W] of a
segmentor.
--dynamic alone can take many minutes to trace (SegFormer), where multiples, --dynamic 32, are a matter of seconds; the
paper's EfficientDet takes minutes with multiples too.
exit status: 0 written and checked, 1 the file failed its check and was not kept, 2 nothing could be written
examples:
  frskd export work_dirs/frskd_cifar100_wrn_16_2/epoch_200.pth student.pth
  frskd export resnet18 student.pth resnet18.onnx --dynamic
  frskd export configs/frskd_voc_effdet_d0.py epoch_60.pth effdet.onnx --dynamic 128 --with-normalization
  frskd export student.py student.pth fcn.pt2 --size 512 1024
  frskd export configs/frskd_cifar100_wrn_16_2.py epoch_200.pth both.onnx --part ensemble
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file, check it, and say what is in it; see `EPILOG` for the exit status."""
    parser = build_parser()
    args = parser.parse_intermixed_args(argv)
    if args.model is None:
        of_weights = ("checkpoint", "output", "allow_imports")
        given = [key for key, value in vars(args).items() if value != parser.get_default(key) and key not in of_weights]
        _export_weights(args, [f"--{key.replace('_', '-')}" for key in given])
        return 0
    refuse_foreign(args, is_config(args.model), "model_kwargs", "set")
    student = open_student(
        args.model, args.checkpoint, dict(args.model_kwargs), args.cfg_options, args.part, dict(args.set)
    )
    suffixes = {made.suffix: name for name, made in FORMATS.items()}
    file_format = args.format or suffixes.get(Path(args.output).suffix, "onnx")
    try:
        made = export_student_file(
            with_normalization(student) if args.with_normalization else student,
            args.output,
            file_format,
            args.size,
            args.batch,
            args.dynamic,
            args.tolerance,
        )
    except CheckError as error:
        print(f"frskd export: error: {args.output} FAILED its check and was not kept: {error}", file=sys.stderr)
        return 1
    print(summary(student, made, args.part, args.with_normalization))
    return 0


def _export_weights(args: argparse.Namespace, options: Sequence[str]) -> None:
    if options or Path(args.output).suffix in [made.suffix for made in FORMATS.values()]:
        needs = ", ".join(options) or Path(args.output).suffix
        raise ValueError(
            f"{needs} needs the config or model that {args.checkpoint} was trained with: frskd export CONFIG|MODEL "
            "CHECKPOINT OUT. Without it only a student's weights can be written, to a .pth file."
        )
    from frskd_plugin.mmengine.export import export_student

    with output_held():  # the registries that tell what a stored config may name
        made = export_student(args.checkpoint, args.output, args.allow_imports)
    before, after = Path(args.checkpoint).stat().st_size, made.path.stat().st_size
    print(f"student: {made.path} ({after / 2**20:.1f} MiB; the training checkpoint has {before / 2**20:.1f} MiB)")
    print(f"weights: {made.entry}")
    print(f"python:  {made.create}" if made.config is None else f"config:  {made.config}")


def summary(student: Student, made: Exported, part: str = "student", normalized: bool = False) -> str:
    """Describe the file and its check."""
    size = made.sizes[0][1:]
    order = f"{student.channel_order}, " if size[0] == 3 else ""
    images = f"{order}float32 in 0..255"
    if not normalized and (student.mean is None or student.std is None):
        images = f"{order}float32, as the network was trained with"
    elif not normalized:
        mean, std = (", ".join(f"{value:g}" for value in values or ()) for values in (student.mean, student.std))
        images = f"{order}float32, (image in 0..255 - [{mean}]) / [{std}]"
    macs = count_macs(student.network, size)
    cost = f"{macs / 1e6:.1f} M multiply-accumulates for an image of {size[1]}x{size[2]}"
    holds = "all of them the student's; nothing of a self-teacher"
    if student.plain is not None:
        plain = count_macs(student.plain, size)
        cost += f", {macs / max(plain, 1):.2f} times the student's {plain / 1e6:.1f} M"
        holds = f"of the {part.replace('_', '-')}; the student has {sum(p.numel() for p in student.plain.parameters())}"
    lines = [
        f"written: {made.path} ({made.path.stat().st_size / 2**20:.1f} MiB)",
        f"weights: {student.weights}",
        f"images:  [B, {size[0]}, H, W], {images}",
        f"logits:  {'[B, K, H, W]' if student.dense else '[B, K]'}",
        f"holds:   {made.parameters} parameters, {holds}",
        f"cost:    {cost}",
    ]
    lines += [
        f"checked: on {list(size)} its logits differ from torch's by {difference:.1e} of the largest logit"
        for size, difference in zip(made.sizes, made.differences, strict=True)
    ]
    return "\n".join(lines)


def _dynamic(text: str) -> int | str:
    return text if text == "batch" else positive_int(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    description = "Write the plain student of a checkpoint: its weights, or a file for another runtime."
    parser = command_parser("export", description, EPILOG)
    parser.usage = "%(prog)s [-h] [options] [CONFIG|MODEL] CHECKPOINT OUT"
    add = parser.add_argument
    add("model", nargs="?", metavar="CONFIG|MODEL", help="a config file, plain or FRSKD, or a timm model's name")
    add("checkpoint", metavar="CHECKPOINT", help="weights (.pth, .safetensors)")
    add("output", metavar="OUT", help="file to write: .pth; with CONFIG|MODEL .onnx, or .pt2 of torch_export")
    add("--format", choices=sorted(FORMATS), help="kind of file (by the suffix of OUT)")
    add("--part", choices=PARTS, default="student", help="what to write of a training checkpoint (student)")
    add("--size", nargs=2, type=positive_int, metavar=("H", "W"), help="of the images (those of the config or model)")
    add("--batch", type=positive_int, default=1, help="images in a batch (1)")
    text = "any batch and size; N: sizes that are multiples of N; batch: any batch, one size"
    add("--dynamic", nargs="?", const=1, type=_dynamic, metavar="N|batch", help=text)
    add("--with-normalization", action="store_true", help="the file takes RGB images in 0..255")
    text = f"allowed difference from torch, as a share of its largest logit ({DEFAULT_TOLERANCE:g})"
    add("--tolerance", type=float, default=DEFAULT_TOLERANCE, help=text)
    add_keywords(parser, "--model-kwargs", "arguments of timm.create_model, for a MODEL")
    add_keywords(parser, "--set", "what a MODEL was wrapped with, for its --part: width=1 out_indices=1,2,3")
    add_settings(parser, "--cfg-options", "settings that override the CONFIG: model.test_cfg.mode=whole")
    # spelled out, for mmengine, which brings the option, is not needed for a MODEL
    add("--allow-imports", action="store_true", help="trust a checkpoint whose config imports modules of yours")
    return parser
