"""Write the student as ONNX or ``torch.export`` file: ``frskd export_model CONFIG|MODEL CHECKPOINT OUT``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from frskd_plugin.check import is_config
from frskd_plugin.commands.arguments import Settings, key_and_value, positive_int
from frskd_plugin.export import (
    DEFAULT_TOLERANCE,
    FORMATS,
    CheckError,
    Exported,
    Student,
    export_student_file,
    open_student,
    with_normalization,
)

EPILOG = """\
CHECKPOINT is one of training (with FRSKD or without), a file of tools/export_student.py, or a timm state_dict.
The file takes normalised images unless --with-normalization puts that into it; a segmentor's padding to
data_preprocessor.size stays with the caller. Logits come out: [B, K], or [B, K, H, W] of a segmentor.
--dynamic alone can take many minutes to trace (SegFormer); with multiples, --dynamic 32, it is a matter of seconds.
exit status: 0 written and checked, 1 the file failed its check and was not kept, 2 nothing could be written
examples:
  frskd export_model configs/frskd_cifar100_wrn_16_2.py work_dirs/frskd_cifar100_wrn_16_2/epoch_200.pth wrn.onnx
  frskd export_model resnet18 student.pth resnet18.onnx --dynamic
  frskd export_model configs/frskd_voc_effdet_d0.py epoch_60.pth effdet.onnx --dynamic 128 --with-normalization
  frskd export_model student.py student.pth fcn.pt2 --format torch_export --size 512 1024
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file, check it, and say what is in it; see `EPILOG` for the exit status."""
    args = build_parser().parse_args(argv)
    student = student_of(args)
    try:
        made = export_student_file(
            student, args.output, args.format, args.size, args.batch, args.dynamic, args.tolerance
        )
    except CheckError as error:
        print(f"frskd export_model: error: {args.output} FAILED its check and was not kept: {error}", file=sys.stderr)
        return 1
    print(summary(student, made))
    return 0


def student_of(args: argparse.Namespace) -> Student:
    """Open the student that the arguments name.

    Raises:
        ValueError: an option that does not belong to it; and see `open_student`.
    """
    config = is_config(args.model)
    for option, values, foreign in (
        ("--model-kwargs", args.model_kwargs, config),
        ("--cfg-options", args.cfg_options, not config),
    ):
        if values and foreign:
            raise ValueError(f"{option} does not belong to {args.model}: see --help")
    student = open_student(args.model, args.checkpoint, dict(args.model_kwargs), args.cfg_options)
    return with_normalization(student) if args.with_normalization else student


def summary(student: Student, made: Exported) -> str:
    """Describe the file and its check."""
    output = "[B, K, H, W]" if student.dense else "[B, K]"
    lines = [
        f"written: {made.path} ({made.path.stat().st_size / 2**20:.1f} MiB)",
        f"weights: {student.weights}",
        f"images:  [B, {made.sizes[0][1]}, H, W], {student.images_text()}",
        f"logits:  {output}",
        f"holds:   {made.parameters} parameters, all of them the student's; nothing of a self-teacher",
    ]
    lines += [
        f"checked: on {list(size)} its logits differ from torch's by {difference:.1e} of the largest logit"
        for size, difference in zip(made.sizes, made.differences, strict=True)
    ]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = argparse.ArgumentParser(
        prog="frskd export_model",
        description="Write the trained student as ONNX or torch.export file, run the file, and compare it with torch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="CONFIG|MODEL", help="a config file, plain or FRSKD, or a timm model's name")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="weights (.pth, .safetensors)")
    parser.add_argument("output", metavar="OUT", help="file to write: .onnx, or .pt2 of torch_export")
    parser.add_argument("--format", choices=sorted(FORMATS), default="onnx", help="kind of file (onnx)")
    parser.add_argument(
        "--size", nargs=2, type=positive_int, metavar=("H", "W"), help="of the images (those of the config or model)"
    )
    parser.add_argument("--batch", type=positive_int, default=1, help="images in a batch (1)")
    parser.add_argument(
        "--dynamic",
        nargs="?",
        const=1,
        type=dynamic,
        metavar="N|batch",
        help="any batch and size; N: sizes that are multiples of N; batch: any batch, one size",
    )
    parser.add_argument("--with-normalization", action="store_true", help="the file takes RGB images in 0..255")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=DEFAULT_TOLERANCE,
        help=f"allowed difference from torch, as a share of its largest logit ({DEFAULT_TOLERANCE:g})",
    )
    parser.add_argument(
        "--model-kwargs",
        nargs="+",
        type=key_and_value,
        default=[],
        metavar="KEY=VALUE",
        help="arguments of timm.create_model, for a MODEL",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=Settings,
        metavar="KEY=VALUE",
        help="settings that override the CONFIG: model.test_cfg.mode=whole",
    )
    return parser


def dynamic(text: str) -> int | str:
    """Read the argument of --dynamic."""
    return text if text == "batch" else positive_int(text)
