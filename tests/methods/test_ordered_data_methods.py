"""Methods that ask something of their data: DDGSD, CS-KD, DLB, PS-KD."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from frskd_plugin.methods.ps_kd import PredictionStore
from tests.methods.method_tester import (
    CLASSES,
    SIZE,
    MethodTester,
    ce,
    check_terms,
    fake_student,
    kl,
    make_double,
)

LABELS = torch.tensor([1, 3, 0, 2])


class TestDDGSD(MethodTester):
    method = "ddgsd"

    def batch(self, size=8):
        ((images, targets), extra) = super().batch(size)
        return (torch.stack([images, images.flip(3)], dim=1), targets), extra

    def test_loss_is_the_formula(self):
        info, feats, logits = fake_student(batch=8)
        method = make_double(self.method, info, weight=0.5, mean_weight=0.2, temperature=2)
        images = torch.randn(4, 2, 3, 8, 8)
        seen = []
        losses = method(lambda x: (seen.append(x), (feats, logits))[1], images, LABELS, F.cross_entropy)
        assert torch.equal(seen[0], torch.cat([images[:, 0], images[:, 1]]))
        a, b = logits[:4], logits[4:]
        f = feats[-1].mean((2, 3))
        check_terms(
            losses,
            {
                "loss_ce": ce(a, LABELS) + ce(b, LABELS),
                "loss_kd": 0.5 * (kl(b, a, 2) + kl(a, b, 2)),
                "loss_mean": 0.2 * ((f[:4].mean(0) - f[4:].mean(0)) ** 2).sum(),
            },
        )
        losses["loss_mean"].backward()
        assert logits.grad is None and feats[-1].grad[:4].any() and feats[-1].grad[4:].any()

    def test_refuses_one_view(self):
        with pytest.raises(ValueError, match=r"two augmented views .*got \[4, 3, 16, 16\]"):
            self.make()(torch.randn(4, *SIZE), LABELS)


class TestCSKD(MethodTester):
    method = "cs_kd"

    def test_loss_is_the_formula(self):
        info, feats, logits = fake_student()
        partner = torch.randn(4, CLASSES, dtype=torch.float64).requires_grad_()
        gradients = []

        def student(images):
            gradients.append(torch.is_grad_enabled())
            return feats, (logits if images[0].any() else partner)

        method = make_double(self.method, info, weight=3, temperature=2)
        images = torch.cat([torch.ones(4, 3, 8, 8), torch.zeros(4, 3, 8, 8)])
        losses = method(student, images, torch.cat([LABELS, LABELS]), F.cross_entropy)
        check_terms(losses, {"loss_ce": ce(logits, LABELS), "loss_kd": 3 * kl(partner, logits, 2)})
        assert gradients == [True, False] and torch.equal(losses["output"], torch.cat([logits, partner]))
        losses["loss_kd"].backward()
        assert logits.grad.any() and partner.grad is None

    def test_refuses_others_than_pairs(self):
        for labels in (LABELS, LABELS[:3]):
            with pytest.raises(ValueError, match="second half holds partners of the first half's classes"):
                self.make()(torch.randn(len(labels), *SIZE), labels)


class TestDLB(MethodTester):
    method = "dlb"
    settings = {"weight": 0.5}

    def test_loss_is_the_formula(self):
        info, feats, first = fake_student(batch=4)
        _, _, second = fake_student(batch=4, seed=1)
        method = make_double(self.method, info, weight=2, temperature=2)
        method(lambda _: (feats, first), torch.zeros(4, 3, 8, 8), LABELS, F.cross_entropy)
        targets = torch.cat([LABELS[2:], LABELS[:2]])
        losses = method(lambda _: (feats, second), torch.zeros(4, 3, 8, 8), targets, F.cross_entropy)
        check_terms(losses, {"loss_ce": ce(second, targets), "loss_kd": 2 * kl(first[2:], second[:2], 2)})
        losses["loss_kd"].backward()
        assert first.grad is None and second.grad[:2].any() and not second.grad[2:].any()

    def fresh_loss(self, model, args, extra):
        model.method._before = None  # not saved: the first step after a resume is plain
        losses = model(*args, **extra)
        assert losses["loss_kd"] == 0
        return losses["loss"].item()

    def test_an_epoch_begins_plain(self):
        model = self.make()
        args, _ = self.batch()
        model.method.set_progress(0, 5)
        assert [model(*args)["loss_kd"] > 0 for _ in range(2)] == [False, True]
        model.method.set_progress(1, 5)
        assert model(*args)["loss_kd"] == 0

    def test_refuses_batches_that_do_not_overlap(self):
        model = self.make()
        with pytest.raises(ValueError, match="splits each batch in two halves, got 3 images"):
            model(torch.randn(3, *SIZE), LABELS[:3])
        model(torch.randn(4, *SIZE), LABELS)
        with pytest.raises(ValueError, match="first half is the second half of the one before"):
            model(torch.randn(4, *SIZE), LABELS)


class TestPSKD(MethodTester):
    method = "ps_kd"
    settings = {"num_samples": 20}

    def make(self, **settings):
        model = super().make(**settings)
        model.method.set_progress(0, 1000)  # early: the targets hardly move from step to step
        return model

    def batch(self, size=8):
        args, _ = super().batch(size)
        return args, {"index": torch.arange(size) * 2}

    def test_loss_is_the_formula(self):
        info, feats, first = fake_student()
        _, _, second = fake_student(seed=1)
        method = make_double(self.method, info, num_samples=9, alpha=0.6)
        y = F.one_hot(LABELS, CLASSES).double()
        images, index = torch.zeros(4, 3, 8, 8), torch.tensor([3, 0, 8, 5])
        method.set_progress(0, 10)
        losses = method(lambda _: (feats, first), images, LABELS, F.cross_entropy, index=index)
        check_terms(losses, {"loss_ce": ce(first, LABELS)})
        method.set_progress(1, 10)
        other = torch.tensor([8, 3, 1, 0])  # 1 is new
        losses = method(lambda _: (feats, second), images, LABELS, F.cross_entropy, index=other)
        p = first.detach().float().softmax(1).half().double()
        alpha = 0.6 * 2 / 10
        rows = [(1 - alpha) * y[0] + alpha * p[2], (1 - alpha) * y[1] + alpha * p[0], y[2]]
        mixed = torch.stack([*rows, (1 - alpha) * y[3] + alpha * p[1]])
        check_terms(losses, {"loss_ce": ce(second, mixed)})
        expected = second.detach().float().softmax(1).half()
        assert torch.equal(method.predictions.table[other], expected)
        assert method.predictions.table[[2, 4, 6, 7]].sum() == 0
        method.set_progress(9, 10)
        assert method._alpha_now.value == pytest.approx(0.6)  # all of the share in the last epoch

    def test_other_dtypes_leave_the_table_alone(self):
        model = self.make()
        args, extra = self.batch()
        model(*args, **extra)
        before = model.method.predictions.table.clone()
        assert before.any() and torch.equal(model.double().method.predictions.table, before)

    def test_file_is_emptied_by_a_new_run_and_kept_by_a_resumed_one(self, tmp_path):
        file = tmp_path / "run" / "predictions.bin"
        args, extra = self.batch()
        model = self.make(file=file)
        model(*args, **extra)
        assert file.stat().st_size == 20 * CLASSES * 2
        store = model.method.predictions
        table, state = store.table.clone(), copy.deepcopy(store.state_dict())
        assert max(v.numel() for v in state.values()) == 2  # the table is not in the checkpoint
        for twin in (copy.deepcopy(store), pickle.loads(pickle.dumps(store))):  # which map the file anew
            assert twin._mapped is None and torch.equal(twin.table, table)
        resumed = PredictionStore(20, CLASSES, file)
        resumed.load_state_dict(state)
        assert torch.equal(resumed.table, table)
        assert not PredictionStore(20, CLASSES, file).table.any()

    @pytest.mark.parametrize("kept", ["checkpoint", "file", "checkpoint of earlier versions"])
    def test_a_table_of_another_training_set_is_told(self, kept, tmp_path):
        file = tmp_path / "predictions.bin" if kept == "file" else None
        store, same, other = PredictionStore(3, 2, file), PredictionStore(3, 2, file), PredictionStore(2, 3, file)
        store.write(torch.tensor([1]), torch.tensor([[0.25, 0.75]]))
        state = store.state_dict()
        if kept.endswith("versions"):
            del state["shape"]
        same.load_state_dict(state, strict=True)
        assert same.table[1].tolist() == [0.25, 0.75]
        with pytest.raises(RuntimeError, match="num_samples=3 images and 2 classes, .*this run has num_samples=2 and"):
            other.load_state_dict(state)

    def test_a_resumed_run_needs_its_file(self, tmp_path):
        file = tmp_path / "predictions.bin"
        store = PredictionStore(3, 2, file)
        store.write(torch.tensor([1]), torch.tensor([[0.25, 0.75]]))
        for content, message in ((bytes(4), "which has 4"), (None, "which is not there")):
            file.unlink() if content is None else file.write_bytes(content)
            resumed = PredictionStore(3, 2, file)
            resumed.load_state_dict(store.state_dict())
            with pytest.raises(ValueError, match=f"3 images and 2 classes should be 12 bytes in .*{message}"):
                resumed.read(torch.tensor([1]))
        file.write_bytes(bytes(100))  # of a run with more images
        assert not PredictionStore(3, 2, file).table.any() and file.stat().st_size == 12

    def test_refusals(self):
        model = self.make()
        with pytest.raises(ValueError, match=r"call model\(images, targets, index=index\) .*got None"):
            model(torch.randn(4, *SIZE), LABELS)
        with pytest.raises(ValueError, match=r"must be in 0..19 \(num_samples=20\), got 3..20"):
            model(torch.randn(4, *SIZE), LABELS, index=torch.tensor([3, 4, 20, 5]))
