"""``FRSKDTask``: training with a method of this package as one of timm's own training tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from frskd_plugin.methods.targets import check_targets, check_terms
from frskd_plugin.timm.wrap import DistilledModel, wrap

_NEEDED = (
    f"FRSKDTask needs timm >= 1.0.27, whose training tasks keep state of their own in a checkpoint; timm "
    f"{timm.__version__} is installed. pip install -U 'timm>=1.0.27', or use frskd_plugin.wrap, which works without it."
)

try:
    from timm.task import TrainingTask
except ImportError as error:
    raise ImportError(_NEEDED) from error
if not hasattr(TrainingTask, "get_checkpoint_state"):  # tasks without state came first
    raise ImportError(_NEEDED)

_logger = logging.getLogger(__name__)


class FRSKDTask(TrainingTask):
    """Training task for a timm classifier and a method of this package; it validates and saves the plain classifier.

    The trainable module is the `DistilledModel` that `wrap` makes: student and self-teacher, for the optimizer, DDP and
    the EMA as one. The eval model, the EMA's too, is the student alone. A checkpoint has the student's plain keys as
    ``state_dict``, which timm loads anywhere, and the self-teacher as ``task_state``.

    Args:
        model: a timm model with a classifier, or what `wrap` made of one.
        criterion: loss of logits [B, K] against targets, for student and self-teacher. None: made by timm's
            ``create_classification_loss``.
        criterion_kwargs: arguments of ``create_classification_loss``, e.g. ``dict(smoothing=0.1)`` (timm >= 1.0.31).
        device: of the criterion and the evaluator; None: the model's.
        dtype: kept for the task's own tensors, as in every timm task.
        verbose: log what was set up.
        method, settings: of `wrap`: ``out_indices``, ``input_size`` and the method's own.

    Raises:
        TypeError: settings for a model that is wrapped already, or one that `wrap` refuses.
        ValueError: see `wrap`.

    >>> import timm, torch
    >>> model = timm.create_model("test_resnet", num_classes=10)
    >>> task = FRSKDTask(model, criterion=torch.nn.CrossEntropyLoss(), width=1, input_size=(3, 32, 32))
    >>> result = task(torch.rand(2, 3, 32, 32), torch.tensor([3, 7]))
    >>> list(result)
    ['loss', 'loss_ce', 'loss_teacher_ce', 'loss_kd', 'loss_feat', 'output', 'teacher_output']
    >>> task.get_eval_model() is model
    True
    >>> list(task.get_checkpoint_state())
    ['state_dict', 'task_state']
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        criterion_kwargs: dict[str, Any] | None = None,
        method: str = "frskd",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
        **settings: Any,
    ) -> None:
        if device is None and isinstance(model, nn.Module):  # anything else is refused by `wrap`
            device = next((p.device for p in model.parameters()), None)
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        if isinstance(model, DistilledModel):
            settings |= {"criterion": criterion, "criterion_kwargs": criterion_kwargs}
            given = [name for name, value in settings.items() if value is not None] + ["method"] * (method != "frskd")
            if given:
                raise TypeError(
                    f"FRSKDTask got a model that is wrapped already, and {', '.join(given)} for it: give them to "
                    "frskd_plugin.wrap, or give FRSKDTask the plain timm model."
                )
        else:
            criterion = _resolve_criterion(criterion, criterion_kwargs, self.device)
            model = wrap(model, method, criterion=criterion, **settings)
        self.trainable_module = model
        if verbose:
            criterion_name = getattr(model.criterion, "__name__", None) or type(model.criterion).__name__
            _logger.info("FRSKDTask: method=%s, criterion=%s", type(model.method).__name__, criterion_name)

    def forward(self, input: Tensor, target: Tensor, **extra: Tensor) -> dict[str, Tensor]:
        """Return ``loss``, ``output`` and its parts, see `DistilledModel.forward`; in eval mode the plain student's."""
        result = self.trainable_module(input, target, **extra)
        if isinstance(result, Tensor):
            criterion = unwrap_model(self.trainable_module).criterion
            found = {"loss": criterion(result, check_targets(input, target, criterion, result.shape[1]))}
            check_terms(found, criterion)
            return {**found, "output": result}
        return result

    def set_progress(self, epoch: float, max_epochs: float) -> None:
        """Tell the method how far training is: see `Method.set_progress`.

        timm's tasks know no epochs, so the loop calls it at the start of each, after a resume too, for FRSKD's
        ``trunk_gradient='linear'`` (its default), ``schedule`` and ``warmup``, and for ONE, PS-KD and SAD; others and
        the gate need no call.
        """
        unwrap_model(self.trainable_module).method.set_progress(epoch, max_epochs)

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> FRSKDTask:
        """Train in several processes: student and self-teacher go into one DistributedDataParallel."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the training step, and the plain student for evaluation, which is returned."""
        kwargs = {"backend": backend, "mode": mode, **compile_kwargs}
        self.eval_model = torch.compile(unwrap_model(self.trainable_module).student, **kwargs)
        self.trainable_module = torch.compile(self.trainable_module, **kwargs)
        return self.eval_model

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """Return the plain student, compiled where it was; with ``ema`` the averaged one, None without an EMA."""
        model = super().get_eval_model(module=module, ema=ema)
        inner = None if model is None else unwrap_model(model)
        return inner.student if isinstance(inner, DistilledModel) else model

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Return those of student and self-teacher; ``exclude_head`` leaves out the student's classifiers."""
        wrapped = unwrap_model(self.trainable_module)
        found = wrapped.student.get_classifier() if exclude_head else ()
        classifiers = found if isinstance(found, tuple) else (found,)
        head = {parameter for classifier in classifiers for parameter in classifier.parameters()}
        return [p for p in wrapped.parameters() if p not in head]

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return the method's state as ``{'method': state_dict}``; nothing where it has none (the baseline)."""
        module = self.get_trainable_module(ema=ema) if module is None else module
        state = {} if module is None else unwrap_model(module).method.state_dict()
        return {"method": state} if state else {}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Load what `get_task_state` gave; without it, from plain training, the method's modules stay as they are.

        Raises:
            RuntimeError: the state is not that of this method and these settings, or there is no EMA to load it into.
        """
        module = self.get_trainable_module(ema=ema) if module is None else module
        if module is None:
            raise RuntimeError("Cannot load an EMA's task state before setup_ema().")
        method = unwrap_model(module).method
        name = type(method).__name__
        if not state or "method" not in state:
            if state and strict:
                raise RuntimeError(
                    f"The checkpoint's task_state has {', '.join(map(repr, state))} and no 'method': another task "
                    f"wrote it. The student is loaded; with strict=False the modules of {name} stay as they are."
                )
            if strict and method.state_dict():
                _logger.warning(
                    "The checkpoint has no task_state: the student is loaded, the modules of %s stay as they are.", name
                )
            return
        try:
            method.load_state_dict(state["method"], strict=strict)
        except RuntimeError as error:
            first, *others = str(error).splitlines()[1:] or [str(error)]  # torch: a headline, a line for each entry
            more = f" (and {len(others)} more)" if others else ""
            raise RuntimeError(
                f"The checkpoint's task_state does not fit {name} as it is set up here; method, out_indices, width, "
                f"max_channels, depth, variant and schedule must be those of the checkpoint: {first.strip()}{more}"
            ) from error


def _resolve_criterion(
    criterion: Callable[[Tensor, Tensor], Tensor] | None, kwargs: dict[str, Any] | None, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Resolve the criterion as timm's tasks do; before timm 1.0.31 it is the given one, or `wrap`'s cross-entropy."""
    try:
        from timm.task import resolve_classification_loss
    except ImportError:
        if kwargs:
            raise TypeError(
                f"criterion_kwargs needs timm >= 1.0.31, and timm {timm.__version__} is installed: give `criterion`."
            ) from None
        return criterion.to(device) if isinstance(criterion, nn.Module) else criterion
    return resolve_classification_loss(criterion, device, criterion_kwargs=kwargs)
