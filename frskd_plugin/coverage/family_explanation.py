"""The text around the tables of docs/coverage_mmseg.md."""

from __future__ import annotations

TEMPLATE = """\
# mmsegmentation's families that were tried

Written by `{command}` on {date} with {versions}, on a CPU ({machine}); {summary}.
The same command writes this file anew.

Of each folder of configs that ships inside mmsegmentation one config is taken: the smallest model by its name. It is
made small enough for a test: random weights, two images of 64x64 pixels with random labels (larger ones where the plain
config does not run on these; a backbone that is made for one image size is made for this one), and batch normalisation
in place of the synchronised one. All else, widths and numbers of classes too, is the config's own. Each runs in
processes of its own.

1. The **plain** config is trained by one step. What goes wrong here has nothing to do with this package.
2. `frskd_plugin.mmseg.convert.frskd_config` turns it into an FRSKD config, without further settings. With the same seed
   the student starts with the plain model's weights, bit for bit.
3. FRSKD is trained by one step of SGD: each term of the loss is finite, and every parameter of student and self-teacher
   gets a finite gradient (but for those of the student that the plain config leaves without one, if there are any).
4. The student is exported, as `tools/export_student.py` does it. The exported config's model is the plain one; the
   exported weights load strictly into it; and its logits in evaluation are, bit for bit, those of the FRSKD model.

## Families whose plain config runs

| column | meaning |
| --- | --- |
| image | height and width of the images |
| channels | of the maps that are distilled, highest resolution first; a single map is followed by its pooled copy |
| teacher_head | of the self-teacher: a copy of the student's (of a cascade, of its first stage), or a plain FCNHead |
| plain | the plain config's own result |
| result | ok, or what went wrong |

{table}

## Families whose plain config does not run here

The errors name what is missing: compiled operators of mmcv, or a package. PointRend's and Mask2Former's kinds of head
are tested on small models, without either, in `tests/mmseg/test_head_families.py`.

{not_run}
"""
