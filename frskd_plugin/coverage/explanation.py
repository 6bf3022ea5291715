"""The text around the tables of docs/coverage_timm.md."""

from __future__ import annotations

TEMPLATE = """\
# timm models that were tried

Written by `{command}` on {date} with {versions}; {summary}.
The same command writes this file anew.

Of each module of timm, and of this package's own three, the model with the fewest parameters is taken, with random
weights, on the smallest square images on which it runs, its maps of different stride differ in size, and no map is a
single pixel. Sizes are multiples of 32, and fractions of the model's own size where that is no such multiple; a model
that is made for one image size is made for this one (`img_size`). Each runs in a process of its own. The other models
of a module share its code, but were not run.

- As a **classifier** it is given to `frskd_plugin.wrap(model, width="auto")` and trained by one step of SGD on a batch
  of two: each term of the loss is finite, and each parameter of student and self-teacher gets a finite gradient. In
  evaluation the logits are, bit for bit, those of a plain timm model that loads the trained student's weights.
- As the **backbone** (`TimmFeatureExtractor`) of an `FRSKDEncoderDecoder` with an FCN head on its last map and a
  self-teacher of width 1 it is trained by one such step, in which each parameter gets a finite gradient, and predicts
  once.

| column | meaning |
| --- | --- |
| image | height and width of the images |
| levels | indices of the maps that the self-teacher sees, highest resolution first, as `out_indices` counts them |
| strides | image / map; differs from the network's own where the image is no multiple of it or borders are cut |
| channels | of the maps |
| share | self-teacher's MACs / student's MACs, at most 0.75 by `width="auto"` |
| width | of the self-teacher, as `width="auto"` chose it; with the limit to the channels where width 1 was too much |
| result | ok, or what went wrong |

{failures}

Models whose maps all have one stride, plain ViTs above all, give four evenly spaced blocks. The maps of two modules are
not what timm's `feature_info` says (seen with timm 1.0.31):

- `tresnet`: the first map is listed at stride 2 and lies at stride 4, because the stem alone divides the image by 4.
  `wrap` goes by the sizes of the maps and leaves it out. `TimmFeatureExtractor` goes by the list: it takes it too, and
  `strides[0]` is 2. Give `out_indices=(1, 2, 3, 4)` there.
- `crossvit`: it scales every image to the size that it was made for, so image / map is a stride at that size alone:
  give `img_size`. Its two levels are its two branches, which cut the image, and the image scaled by 224 / 240, into
  patches of 12 and 16 pixels.

{tables}
"""

ALL_OK = "Every row is ok."
NOT_OK = "Rows that are not ok:\n\n{rows}"
