"""The command line that writes an FRSKD config for a plain one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from frskd_plugin.core.atomic_write import atomic_write
from frskd_plugin.mmseg.convert import DEFAULT_MAX_SHARE, TeacherPlan, checked_weights, plain_config, plan_self_teacher
from frskd_plugin.mmseg.written_config import config_text, find_config

EPILOG = """\
CONFIG is a file, or one that mmsegmentation ships: mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py
exit status: 0 written, 2 the config cannot be turned into FRSKD, or nothing may be written there
examples:
  frskd convert my_fcn.py -o frskd_my_fcn.py
  frskd convert mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py -o frskd_segformer.py --beta 200
  frskd convert my_pspnet.py -o frskd_my_pspnet.py --width 1 --max-channels 256
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the config and say what is in it."""
    args = build_parser().parse_args(argv)
    plan = write_frskd_config(
        args.config,
        args.output,
        weights=(args.alpha, args.beta, args.temperature),
        width=args.width,
        max_share=args.max_share,
        max_channels=args.max_channels,
        image_size=args.image_size,
        force=args.force,
    )
    print(summary(plan, args.output))


def write_frskd_config(
    source: str | Path,
    target: str | Path,
    *,
    weights: tuple[float, float, float] = (1.0, 50.0, 1.0),
    width: int | str = "auto",
    max_share: float = DEFAULT_MAX_SHARE,
    max_channels: int | None = None,
    image_size: Sequence[int] | None = None,
    force: bool = False,
) -> TeacherPlan:
    """Write the FRSKD config of the plain config ``source`` to ``target``; see `frskd_config` for the settings.

    Args:
        source: file, or ``mmseg::`` and the name of a config that mmsegmentation ships.
        target: the file to write.
        weights: alpha, beta and temperature.
        width: of the self-teacher's feature network.
        max_share: limit of its cost, for ``width='auto'``.
        max_channels: limit to its channels.
        image_size: height and width of the dry run.
        force: write over a file that is there.

    Raises:
        FileNotFoundError: there is no such config.
        FileExistsError: ``target`` is there, and not ``force``.
        ValueError: ``target`` is no Python file or is the plain config; and see `frskd_config`.
    """
    source, target = find_config(source), Path(target)
    if target.suffix != ".py":
        raise ValueError(f"the config must be written to a .py file, got {target}")
    if target.resolve() == source.resolve():
        raise ValueError(f"{target} is the plain config itself, which the new one stands on; give another output file")
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists; give another output file, or --force to write over it")
    checked_weights(*weights)
    config = plain_config(source)
    plan = plan_self_teacher(config, width, max_share, max_channels, image_size)
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, config_text(config, plan, weights, target).encode())
    return plan


def summary(plan: TeacherPlan, target: str | Path) -> str:
    """Tell what was found and chosen, and what to do next."""
    maps = ", ".join(f"{c} channels at stride {s}" for c, s in zip(plan.maps.channels, plan.maps.strides, strict=True))
    limit = f", at most {plan.max_channels} channels" if plan.max_channels else ""
    head = f" (its decode head: about {plan.head_share:.2f} more)" if plan.maps.head_macs else ""
    return "\n".join(
        [
            f"written:      {target}",
            f"maps:         {maps}",
            f"self-teacher: width {plan.width}{limit}, {plan.share:.2f} of the segmentor's multiply-accumulates{head}",
            f"next:         python tools/check.py {target}; python tools/train.py {target}",
        ]
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = argparse.ArgumentParser(
        prog="frskd convert",
        description="Write the FRSKD config for a plain config of mmseg, with the channels found by a dry run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="the plain config")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="file to write (.py)")
    parser.add_argument("--alpha", type=float, default=1.0, help="weight of the soft labels (1)")
    parser.add_argument("--beta", type=float, default=50.0, help="weight of the feature distillation (50)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the soft labels (1)")
    parser.add_argument(
        "--width",
        type=lambda text: int(text) if text.isdigit() else text,
        default="auto",
        metavar="N|auto",
        help="width of the feature network; auto (default): the largest that keeps within --max-share",
    )
    parser.add_argument(
        "--max-share",
        type=float,
        default=DEFAULT_MAX_SHARE,
        help=f"limit of the feature network's multiply-accumulates / the segmentor's ({DEFAULT_MAX_SHARE})",
    )
    parser.add_argument("--max-channels", type=int, metavar="N", help="limit to the feature network's channels")
    parser.add_argument(
        "--image-size", type=int, nargs=2, metavar=("H", "W"), help="images of the dry run (those of the training)"
    )
    parser.add_argument("--force", action="store_true", help="write over OUT if it is there")
    return parser
