"""`SelfTeacher` and `BiFPN` of the published form equal the authors' numbers: outputs, gradients, statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frskd_plugin.core.bifpn import BiFPN
from frskd_plugin.core.self_teacher import SelfTeacher
from tests.helpers.reference import DATA, assert_close, check_reference, load_reference, numbered

NECKS = {
    "bifpnc_d2": lambda: SelfTeacher([8, 16, 32], num_classes=10, width=2, depth=2),
    "bifpnc_d1": lambda: SelfTeacher([8, 16, 32], num_classes=10, width=2, depth=1),
    "bifpnc_4lvl": lambda: SelfTeacher([8, 16, 32, 64], num_classes=10, width=2, depth=2),
    "bifpnc_fusion": lambda: SelfTeacher([4, 8, 16], num_classes=10, width=1, depth=1),
    "bifpn_r1": lambda: SelfTeacher([8, 16, 32], num_classes=10, channels=32, depth=2),
    "bifpn_r2": lambda: SelfTeacher([8, 16, 32], num_classes=10, channels=32, depth=2, repeat=2),
    "seg_bifpn": lambda: BiFPN([8] * 6, channels=8, repeat=1, variant="published"),
    "seg_bifpn_last": lambda: BiFPN([8] * 6, channels=8, repeat=1, variant="published", end_level=0),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NECKS)
def test_equals_reference(name, mode, dtype):
    with np.load(DATA / f"{name}.npz") as arrays:
        check_reference(NECKS[name](), dict(arrays), mode, dtype)


def test_preactivations_equal_reference():
    arrays = dict(np.load(DATA / "bifpnc_4lvl.npz"))
    teacher = SelfTeacher([8, 16, 32, 64], num_classes=10, preactivation=True).double()
    load_reference(teacher, arrays).eval()
    with torch.no_grad():
        refined_feats, logits = teacher([x.double() for x in numbered(arrays, "in")])
    for i, feat in enumerate(refined_feats):
        assert feat.min() < 0
        assert_close(feat, arrays[f"eval.out_preact.{i}"], 2e-7, f"out_preact.{i}")
    assert_close(logits, arrays["eval.logits"], 2e-7, "logits")


def test_load_reference_refuses_another_architecture():
    arrays = dict(np.load(DATA / "bifpnc_d1.npz"))
    with pytest.raises(ValueError, match="does not fit the module: missing"):
        load_reference(SelfTeacher([8, 16, 32], num_classes=10, depth=2), arrays)
