"""Write the student of a checkpoint: ``frskd export IN OUT``, or for another runtime with ``--format``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from frskd_plugin.commands import export_model, export_student

USAGE = """\
usage: frskd export CHECKPOINT OUT.pth                                  the plain student (frskd export_student --help)
       frskd export CONFIG|MODEL CHECKPOINT OUT --format {formats}    for another runtime (frskd export_model --help)\
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run export_model where ``--format`` is given, export_student otherwise."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(formats="|".join(sorted(export_model.FORMATS))))
        return 0 if arguments else 2
    if any(argument.partition("=")[0] == "--format" for argument in arguments):
        return export_model.main(arguments)
    export_student.main(arguments)
    return 0
