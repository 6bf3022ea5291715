"""`frskd_plugin.FRSKDTask` as timm's training script uses a task: what it trains, evaluates, saves, averages, clips."""

from __future__ import annotations

import importlib
import logging
import sys

import pytest
import timm
import timm.task
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver
from torch import nn

import frskd_plugin
from tests.helpers.model_tester import same
from tests.helpers.toy_classifier import ToyClassifier, TwoHeads, toy_batch


def make_task(model=None, width=1, **settings):
    torch.manual_seed(0)
    model = ToyClassifier() if model is None else model
    return frskd_plugin.FRSKDTask(model, verbose=False, width=width, **settings)


def make_optimizer(task):
    return create_optimizer_v2(task.get_trainable_module(), opt="momentum", lr=0.1, momentum=0.9, weight_decay=1e-3)


def train(task, optimizer, steps):
    """Steps by their numbers, which say what the batches are; until step 1 timm's EMA only copies."""
    task.train()
    for step in steps:
        optimizer.zero_grad()
        task(*toy_batch(seed=step))["loss"].backward()
        optimizer.step()
        task.update_ema(step=step)


def save(task, folder, optimizer=None):
    """A checkpoint as timm's training script writes it."""
    path = folder / "checkpoint.pth.tar"
    module = task.get_trainable_module()
    optimizer = make_optimizer(task) if optimizer is None else optimizer
    CheckpointSaver(module, optimizer, checkpoint_dir=folder, task=task)._save(path, epoch=1)
    return path


def clones(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


class TestForward:
    def test_losses_are_those_of_wrap(self):
        settings = dict(alpha=3, beta=50, temperature=2)
        task = make_task(**settings)
        torch.manual_seed(0)
        expected = frskd_plugin.wrap(ToyClassifier(), width=1, **settings)(*toy_batch())
        result = task(*toy_batch())
        assert list(result) == list(expected) and same(result, expected)

    def test_eval_mode_is_the_criterion_of_the_plain_student(self):
        task = make_task().eval()
        task.get_trainable_module().method.register_forward_hook(lambda *_: pytest.fail("the method ran"))
        images, targets = toy_batch()
        result = task(images, targets)
        assert torch.equal(result["output"], task.get_eval_model()(images))
        assert torch.equal(result["loss"], F.cross_entropy(result["output"], targets))

    @pytest.mark.parametrize(
        "given",
        [{"criterion": nn.CrossEntropyLoss(label_smoothing=0.3)}, {"criterion_kwargs": {"smoothing": 0.3}}],
        ids=["criterion", "criterion_kwargs"],
    )
    def test_criterion_serves_student_and_teacher(self, given):
        images, targets = toy_batch()
        result = make_task(**given)(images, targets)
        for part, logits in (("loss_ce", "output"), ("loss_teacher_ce", "teacher_output")):
            expected = F.cross_entropy(result[logits], targets, label_smoothing=0.3)
            torch.testing.assert_close(result[part], expected)

    def test_what_a_method_needs_beside_the_batch_reaches_it_through_wrappers(self, process_group):
        task = frskd_plugin.FRSKDTask(ToyClassifier(batch_norm=False), method="ps_kd", num_samples=4, verbose=False)
        task.prepare_distributed()
        (images, targets), index = toy_batch(), torch.arange(4)
        first = task(images, targets, index=index)  # gathers the predictions
        torch.testing.assert_close(first["loss_ce"], F.cross_entropy(first["output"], targets))
        task.set_progress(1, 4)  # the second epoch of four: alpha_t = 0.8 * 2 / 4
        second = task(images, targets, index=index)
        mixed = 0.6 * F.one_hot(targets, 3) + 0.4 * first["output"].softmax(dim=1)
        expected = F.cross_entropy(second["output"], mixed)
        torch.testing.assert_close(second["loss_ce"], expected, atol=1e-3, rtol=0)  # they are kept in half precision


class TestConstruction:
    def test_a_wrapped_model_is_trained_as_it_is_and_takes_no_settings(self, caplog):
        wrapped = frskd_plugin.wrap(ToyClassifier(), width=1)
        with caplog.at_level(logging.INFO, "frskd_plugin"):
            task = frskd_plugin.FRSKDTask(wrapped)
        assert "FRSKDTask: method=FRSKD, criterion=cross_entropy" in caplog.text
        assert task.get_trainable_module() is wrapped and task.get_eval_model() is wrapped.student
        for name, value in (("width", 2), ("method", "baseline"), ("criterion", F.cross_entropy)):
            with pytest.raises(TypeError, match=f"is wrapped already, and {name} for it: give them to"):
                frskd_plugin.FRSKDTask(wrapped, **{name: value})
        with pytest.raises(TypeError, match=r"wrap expects a classifier of timm.*got str"):
            frskd_plugin.FRSKDTask("resnet18")

    def test_device_is_the_models_unless_it_is_given(self):
        task = make_task(ToyClassifier().to("meta"), criterion=nn.CrossEntropyLoss(weight=torch.ones(3)))
        assert task.device == task.get_trainable_module().criterion.weight.device == torch.device("meta")
        assert make_task().device == torch.device("cpu")
        assert make_task(device=torch.device("meta")).device == torch.device("meta")


class TestEvalModel:
    def test_is_the_plain_student_and_the_emas_is_its_own(self):
        model = ToyClassifier()
        task = make_task(model)
        assert task.get_eval_model() is model
        assert not task.has_ema() and task.get_eval_model(ema=True) is None
        ema = task.setup_ema()
        assert task.has_ema() and task.get_eval_model(ema=True) is ema.module.student
        assert task.get_eval_model(module=nn.DataParallel(task.get_trainable_module())) is model

    def test_compiled(self):
        model = ToyClassifier()
        task = make_task(model)
        compiled = task.compile(backend="eager")
        task.setup_ema(decay=0.5)
        assert task.get_eval_model() is compiled and compiled._orig_mod is model
        compiled_ema = task.compile_ema(backend="eager")
        train(task, make_optimizer(task), range(2, 4))
        student = frskd_plugin.unwrap(task.get_trainable_module(ema=True))
        assert task.get_eval_model(ema=True) is compiled_ema and compiled_ema._orig_mod is student
        images = toy_batch()[0]
        torch.testing.assert_close(compiled.eval()(images), model.eval()(images))  # no bits: dynamo may choose kernels
        torch.testing.assert_close(compiled_ema.eval()(images), student.eval()(images))
        assert not torch.allclose(compiled(images), compiled_ema(images), rtol=1e-3)


class TestCheckpoint:
    def test_state_dict_loads_into_the_timm_model(self, tmp_path):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=5)
        task = make_task(model, input_size=(3, 32, 32))
        task.setup_ema()
        checkpoint = torch.load(save(task, tmp_path), weights_only=True)
        for key in ("state_dict", "state_dict_ema"):
            plain = timm.create_model("test_resnet", num_classes=5)
            plain.load_state_dict(checkpoint[key], strict=True)
            assert same(plain.state_dict(), model.state_dict())
        from_file = timm.create_model(
            "test_resnet", num_classes=5, checkpoint_path=str(tmp_path / "checkpoint.pth.tar")
        )
        assert same(from_file.state_dict(), model.state_dict())

    def test_task_state_is_the_method(self, caplog):
        task = make_task()
        task.setup_ema()
        state = task.get_checkpoint_state()
        assert list(state) == ["state_dict", "task_state"] and list(state["task_state"]) == ["method"]
        assert same(state["task_state"]["method"], task.get_trainable_module().method.state_dict())
        assert list(task.get_checkpoint_state(ema=True)) == ["state_dict_ema", "task_state_ema"]
        caplog.clear()
        plain = frskd_plugin.FRSKDTask(ToyClassifier(), method="baseline", verbose=False)  # has none
        state = plain.get_checkpoint_state()
        assert set(state) == {"state_dict"}
        plain.load_checkpoint_state(state["state_dict"], state.get("task_state"))
        assert not caplog.records

    def test_wrappers_change_neither_keys_nor_eval_model_nor_clipping(self, process_group):
        plain, model = make_task(), ToyClassifier()
        task = make_task(model)
        clipped = [[id(p) for p in task.get_clip_parameters(exclude)] for exclude in (False, True)]
        task.setup_ema()
        task.compile(backend="eager")
        assert task.prepare_distributed(broadcast_buffers=False) is task
        assert task.get_trainable_module().broadcast_buffers is False
        task.compile_ema(backend="eager")
        assert task.get_eval_model()._orig_mod is model
        for ema in (False, True):
            state = task.get_checkpoint_state(ema=ema)
            states, expected = state.values(), plain.get_checkpoint_state().values()
            assert [list(s.get("method", s)) for s in states] == [list(s.get("method", s)) for s in expected]
        task.load_checkpoint_state(*plain.get_checkpoint_state().values())
        assert [[id(p) for p in task.get_clip_parameters(exclude)] for exclude in (False, True)] == clipped

    def test_resume_equals_the_uninterrupted_run(self, tmp_path):
        def start():
            task = make_task()
            task.setup_ema(decay=0.6)
            return task, make_optimizer(task)

        whole, optimizer = start()
        train(whole, optimizer, range(2, 4))
        path = save(whole, tmp_path, optimizer)
        train(whole, optimizer, range(4, 7))

        resumed, optimizer = start()
        train(resumed, optimizer, [99])  # nothing of what it was must stay
        assert resume_task_checkpoint(resumed, path, optimizer, log_info=False) == 2
        load_task_ema_checkpoint(resumed, path)
        train(resumed, optimizer, range(4, 7))
        for ema in (False, True):
            ours, expected = (task.get_trainable_module(ema=ema) for task in (resumed, whole))
            assert same(ours.state_dict(), expected.state_dict())

    def test_plain_checkpoint_loads_the_student_and_says_so(self, tmp_path, caplog):
        torch.manual_seed(5)
        plain = ClassificationTask(ToyClassifier(), verbose=False)
        path = save(plain, tmp_path)
        task = make_task()
        before = clones(task.get_trainable_module().method)
        resume_task_checkpoint(task, path, log_info=False)
        assert same(task.get_eval_model().state_dict(), plain.get_eval_model().state_dict())
        assert same(task.get_trainable_module().method.state_dict(), before)
        assert "no task_state: the student is loaded, the modules of FRSKD stay as they are" in caplog.text
        caplog.clear()
        task.load_checkpoint_state(plain.get_checkpoint_state()["state_dict"], strict=False)
        assert not caplog.records

    def test_state_of_other_settings_another_task_or_without_an_ema_is_refused(self):
        task = make_task()
        before = clones(task.get_trainable_module().method)
        with pytest.raises(RuntimeError, match="does not fit FRSKD as it is .*width.*size mismatch.*and 44 more"):
            make_task().load_task_state(make_task(width=2).get_task_state())
        with pytest.raises(RuntimeError, match=r"before setup_ema\(\)"):
            task.load_checkpoint_state(*task.get_checkpoint_state().values(), ema=True)
        with pytest.raises(RuntimeError, match="task_state has 'projection' and no 'method': another task wrote it"):
            task.load_task_state({"projection": {}})
        task.load_task_state({"projection": {}}, strict=False)
        assert same(task.get_trainable_module().method.state_dict(), before)


def test_clipping_leaves_out_every_classifier_of_the_student():
    for student, classifiers in ((ToyClassifier(), ["head"]), (TwoHeads(), ["head", "head_dist"])):
        task = make_task(student)
        every, trunk = task.get_clip_parameters(), task.get_clip_parameters(exclude_head=True)
        assert [id(p) for p in every] == [id(p) for p in task.get_trainable_module().parameters()]
        heads = {p for name in classifiers for p in getattr(student, name).parameters()}
        assert set(every) - set(trunk) == heads


class TestOlderTimm:
    @pytest.fixture
    def fresh(self, monkeypatch):
        """The module is imported anew, as in an interpreter with another timm."""
        monkeypatch.delitem(sys.modules, "frskd_plugin.timm.task", raising=False)

    @pytest.mark.parametrize("lacks", ["timm.task", "get_checkpoint_state"])
    def test_says_which_version_is_needed_and_what_works_without_it(self, monkeypatch, fresh, lacks):
        if lacks == "timm.task":
            monkeypatch.setitem(sys.modules, "timm.task", None)
        else:
            monkeypatch.delattr(timm.task.TrainingTask, lacks)
        needed = rf"needs timm >= 1\.0\.27.*timm {timm.__version__} is installed.*use frskd_plugin\.wrap, which works"
        with pytest.raises(ImportError, match=needed):
            _ = frskd_plugin.FRSKDTask
        with pytest.raises(ImportError, match=needed):
            importlib.import_module("frskd_plugin.timm.task")
        assert frskd_plugin.wrap(ToyClassifier(), width=1)(*toy_batch())["loss"].isfinite()

    def test_before_1_0_31_the_criterion_is_given_or_cross_entropy(self, monkeypatch):
        monkeypatch.delattr(timm.task, "resolve_classification_loss")
        images, targets = toy_batch()
        for criterion in (None, nn.CrossEntropyLoss()):
            result = make_task(criterion=criterion)(images, targets)
            assert torch.equal(result["loss_ce"], F.cross_entropy(result["output"], targets))
        with pytest.raises(TypeError, match=r"criterion_kwargs needs timm >= 1\.0\.31.*give `criterion`"):
            make_task(criterion_kwargs={"smoothing": 0.1})


def test_targets_and_criterion_are_checked_in_eval_mode_too():
    images, labels = toy_batch()
    task = make_task(criterion=nn.CrossEntropyLoss()).eval()
    assert task(images, labels.int())["loss"].isfinite()
    with pytest.raises(ValueError, match=r"CrossEntropyLoss takes labels \[B\] .* got torch.float32 \[4\]"):
        task(images, labels.float())
    with pytest.raises(ValueError, match="must be a scalar tensor, got shape .*reduction='mean'"):
        make_task(criterion=nn.CrossEntropyLoss(reduction="none")).eval()(images, labels)
