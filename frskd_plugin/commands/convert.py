"""The command line that writes an FRSKD config for a plain one."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from frskd_plugin.commands.arguments import command_parser, width
from frskd_plugin.core.atomic_write import atomic_write
from frskd_plugin.mmseg.convert import DEFAULT_MAX_SHARE, image_size_of, plain_config, plan_self_teacher
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
    """Write the FRSKD config, and say what was found and chosen, and what to do next."""
    args = build_parser().parse_args(argv)
    source, target = find_config(args.config), Path(args.output)
    if target.suffix != ".py":
        raise ValueError(f"the config must be written to a .py file, got {target}")
    if target.resolve() == source.resolve():
        raise ValueError(f"{target} is the plain config itself, which the new one stands on; give another output file")
    if target.exists() and not args.force:
        raise FileExistsError(f"{target} exists; give another output file, or --force to write over it")
    config = plain_config(source)
    plan = plan_self_teacher(
        config,
        alpha=args.alpha,
        beta=args.beta,
        temperature=args.temperature,
        width=args.width,
        max_share=args.max_share,
        max_channels=args.max_channels,
        image_size=args.image_size,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, config_text(config, plan, target).encode())

    maps = ", ".join(f"{c} channels at stride {s}" for c, s in zip(plan.maps.channels, plan.maps.strides, strict=True))
    neck, loss = plan.config["neck"], plan.config["loss_distill"]
    limit = f", at most {neck['max_channels']} channels" if "max_channels" in neck else ""
    fits = " (fits {}x{})".format(*image_size_of(config, args.image_size)) if args.beta is None else ""
    print(f"written:      {target}")
    print(f"maps:         {maps}")
    print(f"self-teacher: width {neck['width']}{limit}, {plan.cost}")
    print(f"weights:      alpha {loss['alpha']:g}, beta {loss['beta']:g}{fits}, temperature {loss['temperature']:g}")
    print("next:         frskd check {0}; frskd train {0}".format(shlex.quote(str(target))))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    description = "Write the FRSKD config for a plain config of mmseg, with the channels found by a dry run."
    parser = command_parser("convert", description, EPILOG)
    add = parser.add_argument
    add("config", metavar="CONFIG", help="the plain config")
    add("-o", "--output", required=True, metavar="OUT", help="file to write (.py)")
    add("--alpha", type=float, default=1.0, help="weight of the soft labels (1)")
    add("--beta", type=float, help="weight of the feature distillation (50 at 512x512, in proportion to the pixels)")
    add("--temperature", type=float, default=1.0, help="of the soft labels (1)")
    text = "width of the feature network; auto (default): 1, with fewer channels where --max-share asks for it"
    add("--width", type=width, default="auto", metavar="N|auto", help=text)
    text = f"limit of the feature network's multiply-accumulates / the segmentor's ({DEFAULT_MAX_SHARE})"
    add("--max-share", type=float, default=DEFAULT_MAX_SHARE, help=text)
    add("--max-channels", type=int, metavar="N", help="limit to the feature network's channels")
    text = "images of the dry run (those of the training)"
    add("--image-size", type=int, nargs=2, metavar=("H", "W"), help=text)
    add("--force", action="store_true", help="write over OUT if it is there")
    return parser
