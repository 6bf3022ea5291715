"""`frskd_config`: the channels that it finds, what it leaves alone, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmseg.models.backbones import MixVisionTransformer

from frskd_plugin.mmengine.config_tools import read_config
from frskd_plugin.mmseg import convert
from frskd_plugin.mmseg.convert import build_plain, feature_channels, frskd_config, plan_self_teacher
from frskd_plugin.mmseg.written_config import find_config
from tests.helpers.segmentors import build, fcn, make_batch
from tests.helpers.tiny_mmseg import frskd_model

# mmsegmentation's own configs as they are: a dry run needs no memory for weights' gradients nor numbers
SHIPPED = {
    # hands its maps out from the lowest resolution to the highest
    "unet/unet-s5-d16_deeplabv3_4xb4-40k_drive-64x64.py": (
        [64 * 2**i for i in range(5)],
        (1, 2, 4, 8, 16),
        [*range(4, -1, -1)],
    ),
    # its branches come in training only
    "ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py": ([64, 128], (8, 8), None),
}


BAD_NECK = dict(type="FPN", in_channels=[7, 7, 7, 7], out_channels=8, num_outs=4)


def plain(**model):
    """A small plain config; `model` overrides."""
    config = Config(dict(model=fcn(), crop_size=(64, 96), default_scope="mmseg"))
    config.model.data_preprocessor.size = (64, 96)
    config.merge_from_dict(dict(model=model))
    return config


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_give_their_channels(name, monkeypatch):
    channels, strides, feat_indices = SHIPPED[name]
    config = Config.fromfile(find_config(name))
    maps = feature_channels(config)
    monkeypatch.setattr(convert, "feature_channels", lambda *_: maps)  # looked at once, as that takes seconds
    assert maps.strides == strides
    before = copy.deepcopy(config.to_dict())
    made = frskd_config(config).to_dict()
    assert config.to_dict() == before
    self_teacher = made["model"].pop("self_teacher")
    assert self_teacher["neck"]["in_channels"] == channels
    assert self_teacher.get("feat_indices") == feat_indices
    assert "extra_levels" not in self_teacher
    assert made["model"]["type"] == f"FRSKD{config.model.type}"
    assert made["custom_imports"]["imports"][-1] == "frskd_plugin"
    # all else stays
    made["model"]["type"] = config.model.type
    made.pop("custom_imports"), before.pop("custom_imports", None)
    assert made == before


def test_result_trains_and_shares_the_plain_keys():
    config = plain(pretrained="open-mmlab://resnet18_v1c")  # fetched nowhere
    state = torch.get_rng_state()
    made = frskd_config(config, alpha=2, beta=10, temperature=3, width=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert made.model.pop("pretrained") == config.model.pop("pretrained") == "open-mmlab://resnet18_v1c"
    assert made.model.self_teacher == dict(
        type="FRSKDHead",
        neck=dict(type="SelfTeacherNeck", in_channels=[8, 16, 32, 64], width=1),
        loss_distill=dict(type="FRSKDLoss", alpha=2.0, beta=10.0, temperature=3.0),
    )
    model = build(made.model.to_dict()).train()
    losses = model.loss(*make_batch())
    sum(value for key, value in losses.items() if "loss" in key).backward()
    assert all(p.grad is not None for p in model.parameters())
    student = {key: value for key, value in model.state_dict().items() if not key.startswith("self_teacher.")}
    build(config.model.to_dict()).load_state_dict(student, strict=True)


def test_a_single_map_gets_a_second_level():
    config = plain(backbone=dict(out_indices=(3,)), decode_head=dict(in_index=0), auxiliary_head=None)
    made = frskd_config(config).model
    assert (made.self_teacher.extra_levels, made.self_teacher.neck.in_channels) == (1, [64, 64])
    maps = feature_channels(config)
    assert maps.sizes == ((2, 3), (1, 2)) and maps.indices == (0,)
    assert build(made.to_dict()).train().loss(*make_batch())["self_teacher.loss_feat"] > 0


def test_width_and_beta_fit_the_share_and_the_images(monkeypatch):
    config = plain(auxiliary_head=None)
    maps = feature_channels(config)
    assert maps.image_size == (64, 96)
    height, width = maps.sizes[-1]
    # FCNHead: 3x3 from 64 to 16, 3x3 over the concatenated 64 + 16, 1x1 to 5 classes
    assert maps.head_macs == height * width * (9 * 64 * 16 + 9 * 80 * 16 + 16 * 5) < maps.macs

    monkeypatch.setattr(convert, "feature_channels", lambda *_: maps)  # one look serves all
    free = plan_self_teacher(config, max_share=10.0)
    # the paper's width for segmentation, however cheap
    assert free.config["neck"] == dict(type="SelfTeacherNeck", in_channels=[8, 16, 32, 64], width=1)
    narrow = plan_self_teacher(config, max_share=free.share / 2)
    assert narrow.config["neck"]["width"] == 1 and narrow.config["neck"]["max_channels"] % 8 == 0
    assert narrow.share <= free.share / 2
    least = plan_self_teacher(config, max_share=1e-6)  # a network so cheap that nothing is within the share
    assert least.config["neck"]["max_channels"] == 8 and 1e-6 < least.share <= narrow.share
    assert plan_self_teacher(config, width=3).share > free.share
    assert plan_self_teacher(config, width=2, max_channels=16).config["neck"]["max_channels"] == 16
    for settings, beta in (({}, 50 * 64 * 96 / 512**2), ({"image_size": (128, 128)}, 50 / 16), ({"beta": 7}, 7)):
        assert plan_self_teacher(config, **settings).config["loss_distill"]["beta"] == pytest.approx(beta, abs=0.005)


def test_networks_that_need_numbers_run_on_the_cpu(monkeypatch):
    """A network that asks for a value cannot run on the meta device: the CPU's small images serve."""
    sizes = []
    forward = MixVisionTransformer.forward

    def asks_for_a_value(self, x):
        float(x.sum())
        sizes.append(tuple(x.shape[2:]))
        return forward(self, x)

    monkeypatch.setattr(MixVisionTransformer, "forward", asks_for_a_value)
    config = Config.fromfile(find_config("segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py"))
    assert feature_channels(config).channels == (32, 64, 160, 256)
    assert set(sizes) == {(64, 128)}


def test_plain_build_has_no_sync_bn():
    config = plain(norm_cfg=None)
    del config.model["norm_cfg"]
    config.model.backbone.norm_cfg = dict(type="SyncBN", requires_grad=True)
    kinds = {type(module).__name__ for module in build_plain(config).modules()}
    assert "SyncBatchNorm" not in kinds
    assert feature_channels(config).channels == (8, 16, 32, 64)


@pytest.mark.parametrize(
    ("config", "settings", "error", "message"),
    [
        (plain(**frskd_model()), {}, ValueError, "is of FRSKD already .*'FRSKDEncoderDecoder'.*give the plain config"),
        (plain(self_teacher=dict(type="FRSKDHead")), {}, ValueError, "is of FRSKD already"),
        (plain(decode_head=None), {}, ValueError, "has no `decode_head`, whose logits FRSKD distils"),
        (plain(type="DepthEstimator"), {}, ValueError, "'DepthEstimator' is not a segmentor that FRSKD serves: exp"),
        (plain(type="TimmClassifier"), {}, ValueError, ".TimmClassifier. trains with it by .frskd train"),
        (Config(dict(optimizer={})), {}, ValueError, "the config has no `model`"),
        ("missing.py", {}, FileNotFoundError, "not found; expected a Python config file"),
        (dict(model=fcn()), {}, TypeError, "expected a Config of mmengine or the path of a config file, got dict"),
        (plain(), dict(width="wide"), ValueError, "`width` must be an int >= 1 or 'auto', got 'wide'"),
        (plain(), dict(image_size=(64, 0)), ValueError, r"`image_size` must be \(height, width\), .* got \(64, 0\)"),
        (plain(), dict(max_channels=0), ValueError, "`max_channels` must be >= 1"),
        (plain(), dict(max_share=0), ValueError, "`max_share` must be > 0"),
        (plain(), dict(alpha=-1), ValueError, "`alpha` weighs a loss and must be >= 0"),
        (plain(), dict(temperature=0), ValueError, "`temperature` divides the logits"),
        (plain(), dict(spelt_wrong=1), TypeError, "unexpected keyword argument 'spelt_wrong'"),
        (plain(backbone=dict(depth=19)), {}, KeyError, "invalid depth 19"),
        (plain(decode_head=dict(spelt_wrong=1)), {}, ValueError, "unexpected keyword argument 'spelt_wrong'"),
        (plain(neck=BAD_NECK), dict(image_size=(32, 32)), ValueError, "the segmentor failed on images 32x32: .*Check"),
    ],
)
def test_refuses(config, settings, error, message):
    with pytest.raises(error, match=message):
        frskd_config(config, **settings)


def test_four_bands_are_the_backbones_and_the_maps_are_the_necks():
    """Normalised in the pipeline, so no preprocessor knows their number."""
    backbone = dict(type="TimmFeatureExtractor", model_name="resnet18", out_indices=(1, 2, 3, 4), in_chans=4)
    head = dict(type="FCNHead", in_channels=8, in_index=3, channels=16, num_classes=5)
    neck = dict(type="FPN", in_channels=[64, 128, 256, 512], out_channels=8, num_outs=4)
    config = Config(dict(model=dict(type="EncoderDecoder", backbone=backbone, neck=neck, decode_head=head)))
    config.custom_imports = dict(imports="frskd_plugin", allow_failed_imports=False)
    made = frskd_config(config, image_size=(64, 64))
    assert made.model.self_teacher.neck.in_channels == [8] * 4
    assert made.custom_imports == dict(imports=["frskd_plugin"], allow_failed_imports=False)


def test_a_shipped_config_is_found_as_a_base_and_the_new_style_is_refused(tmp_path):
    before = dict(MODULE2PACKAGE)
    path = tmp_path / "mine.py"
    path.write_text("_base_ = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'")
    assert read_config(path).model.decode_head.type == "FCNHead"
    assert before == MODULE2PACKAGE
    path.write_text("from mmseg.models import EncoderDecoder\nmodel = dict(type=EncoderDecoder)")
    with pytest.raises(ValueError, match=r"mine.py is of mmengine's new style: .*\(EncoderDecoder, ...\)"):
        frskd_config(path)
