"""One model of each module of timm, as a classifier and as the backbone of a segmentor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch

from frskd_plugin.commands.support import names
from frskd_plugin.core.dry_run import count_forward
from frskd_plugin.timm.feature_extractor import TimmFeatureExtractor
from frskd_plugin.timm.probe import split_forward
from frskd_plugin.timm.wrap import DistilledModel, unwrap, wrap
from tests.support.steps import (
    BATCH,
    LR,
    Unsupported,
    check_finite,
    check_gradients,
    check_same_logits,
    smallest_fit,
    smallest_model,
)

NUM_CLASSES = 5  # of the segmentor
pytestmark = [pytest.mark.support, pytest.mark.filterwarnings("ignore")]
each_module = pytest.mark.parametrize("module", names("timm"))
Record = Callable[[str, object], None]


@each_module
def test_classifier(module: str, record_property: Record) -> None:
    """Wrap it, train it by one step of SGD on two random images, and compare with timm's model of these weights."""
    name = smallest_model(module)
    record_property("model", name)
    create = partial(timm.create_model, name, num_classes=10)
    fit = smallest_fit(
        name, partial(timm.create_model, num_classes=10), lambda model, images: split_forward(model, images, None)[0]
    )
    torch.manual_seed(0)
    model = wrap(create(**fit.kwargs), width="auto", input_size=(3, fit.size, fit.size))
    images, labels = torch.randn(BATCH, 3, fit.size, fit.size), torch.tensor([1, 2])
    record_property("image", fit.size)
    record_property("levels", list(model.out_indices))
    record_property("strides", [fit.strides[i] for i in model.out_indices])
    record_property("channels", [fit.maps[i][0] for i in model.out_indices])
    record_property("share", teacher_share(model.eval(), images))
    limit = model.method.max_channels
    record_property("width", f"{model.method.width}" + (f", at most {limit} channels" if limit is not None else ""))

    optimizer = torch.optim.SGD(model.train().parameters(), lr=LR)
    losses = model(images, labels)
    check_finite(losses)
    losses["loss"].backward()
    check_gradients(model)
    optimizer.step()

    plain = create(**fit.kwargs).eval()
    plain.load_state_dict(unwrap(model.eval()).state_dict())
    with torch.no_grad():
        check_same_logits(model(images), plain(images))


def teacher_share(model: DistilledModel, images: torch.Tensor) -> float:
    """Return the self-teacher's MACs / the student's."""
    with count_forward(model.student) as student:
        feats, logits = model.student_forward(images)
    with count_forward(model.method) as teacher:
        teacher_logits = model.method.teacher_logits(feats)
    if teacher_logits.shape != logits.shape:
        raise Unsupported(
            f"the student's logits are {list(logits.shape)}, the self-teacher's {list(teacher_logits.shape)}"
        )
    return round(teacher.macs / student.macs, 2)


@each_module
def test_segmentor(module: str, record_property: Record) -> None:
    """Train an FCN head on its last map and a self-teacher of width 1 on all maps by one step, then predict once."""
    pytest.importorskip("mmseg", reason="a segmentor needs mmsegmentation")
    from mmengine.config import Config

    from tests.support.test_mmseg import build, predict, random_batch, train_step

    name = smallest_model(module)
    record_property("model", name)
    fit = smallest_fit(name, TimmFeatureExtractor, lambda backbone, images: backbone(images))
    channels = [count for count, _, _ in fit.maps]
    head = dict(in_channels=channels[-1], in_index=len(channels) - 1, channels=16, num_convs=1, num_classes=NUM_CLASSES)
    config = dict(
        type="FRSKDEncoderDecoder",
        data_preprocessor=dict(type="SegDataPreProcessor"),
        backbone=dict(type="TimmFeatureExtractor", model_name=name, **fit.kwargs),
        decode_head=dict(type="FCNHead", **head),
        self_teacher=dict(
            type="FRSKDHead",
            neck=dict(type="SelfTeacherNeck", in_channels=channels, width=1),
            loss_distill=dict(type="FRSKDLoss", alpha=1.0, beta=50.0, temperature=1.0),
        ),
        train_cfg={},
        test_cfg=dict(mode="whole"),
    )
    model = build(Config(dict(model=config)))
    record_property("image", fit.size)
    record_property("levels", list(model.backbone.out_indices))
    record_property("strides", fit.strides)
    record_property("channels", channels)
    images, samples = random_batch(model, fit.size)
    check_finite(train_step(model, images, samples))
    check_gradients(model)
    if (shape := predict(model, images, samples).shape) != (BATCH, NUM_CLASSES, fit.size, fit.size):
        raise Unsupported(f"the prediction is {list(shape)} for images of {fit.size}x{fit.size}")
