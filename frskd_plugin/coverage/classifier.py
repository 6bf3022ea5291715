"""One timm model as a classifier: wrapped, trained for a step, and compared with the plain model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from frskd_plugin.core.dry_run import count_forward
from frskd_plugin.coverage.choice import BATCH, smallest_fit
from frskd_plugin.coverage.fault import Fault, check_finite, check_gradients
from frskd_plugin.methods.frskd import FRSKD
from frskd_plugin.timm.probe import split_forward
from frskd_plugin.timm.wrap import DistilledModel, unwrap, wrap

LR = 1e-3

_create = partial(timm.create_model, num_classes=10)


def examine_classifier(name: str) -> dict[str, Any]:
    """What there is to tell of a model that passes.

    It is wrapped with ``width='auto'``, trained by one step of SGD on two random images, and evaluated: its logits must
    be, bit for bit, those of a plain timm model that loads the trained student's weights.

    Returns:
        image, levels, strides, channels, share and width, see `frskd_plugin.coverage.report`.

    Raises:
        Fault: the loss is not finite, a parameter has no gradient, or the logits differ.
        Exception: whatever the model raises.
    """
    fit = smallest_fit(name, _create, _all_maps)
    torch.manual_seed(0)
    model = wrap(_create(name, **fit.kwargs), width="auto", input_size=(3, fit.size, fit.size))
    images, labels = torch.randn(BATCH, 3, fit.size, fit.size), torch.tensor([1, 2])
    facts = {
        "image": fit.size,
        "levels": list(model.out_indices),
        "strides": [fit.strides[i] for i in model.out_indices],
        "channels": [fit.maps[i][0] for i in model.out_indices],
        **_cost(model.eval(), model.method, images),
    }
    _train_step(model.train(), images, labels)
    _check_eval(model.eval(), images, _create(name, **fit.kwargs).eval())
    return facts


def _all_maps(model: nn.Module, images: Tensor) -> Sequence[Tensor]:
    return split_forward(model, images, None)[0]


def _cost(model: DistilledModel, method: FRSKD, images: Tensor) -> dict[str, Any]:
    """The self-teacher's share of the student's MACs, and the width that was chosen for it."""
    with count_forward(model.student) as student:
        feats, logits = model.student_forward(images)
    with count_forward(method) as teacher:
        teacher_logits = method.teacher_logits(feats)
    if teacher_logits.shape != logits.shape:
        raise Fault(f"the student's logits are {list(logits.shape)}, the self-teacher's {list(teacher_logits.shape)}")
    limit = method.max_channels
    width = str(method.width) if limit is None else f"{method.width}, at most {limit} channels"
    return {"share": round(teacher.macs / student.macs, 2), "width": width}


def _train_step(model: DistilledModel, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    losses = model(images, labels)
    check_finite(losses)
    losses["loss"].backward()
    check_gradients(model)
    optimizer.step()


def _check_eval(model: DistilledModel, images: Tensor, plain: nn.Module) -> None:
    """Raises: Fault, where it does not give the finite logits of a plain model with the student's weights."""
    plain.load_state_dict(unwrap(model).state_dict())
    with torch.no_grad():
        logits, expected = model(images), plain(images)
    if not logits.isfinite().all():
        raise Fault("after the step its logits are not finite")
    if not torch.equal(logits, expected):
        raise Fault("in evaluation it does not give the plain model's logits")
