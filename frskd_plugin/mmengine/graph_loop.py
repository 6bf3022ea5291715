"""Train loop that runs a whole training step, from the choice of the images to the new weights, as one CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor
from torch.utils.data import DataLoader

from frskd_plugin.core.schedule import ScheduledWeight
from frskd_plugin.data.tensor_images import TensorImages, take_batch
from frskd_plugin.mmengine.classifier import TimmClassifier
from frskd_plugin.mmengine.hooks import DistillWarmupHook
from frskd_plugin.mmengine.method_data import MethodDataset
from frskd_plugin.mmengine.optim import AutocastOptimWrapper

# Ordinary steps before a capture, in which cuDNN chooses its kernels and the optimizer makes its state.
WARM_UP = 3


class GraphTrainLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, for a `TimmClassifier` whose images lie on the device as `TensorImages`.

    A step on a GPU is one captured graph: gather of the batch, normalisation, Mixup or CutMix, forward, losses,
    backward, clipping and optimizer. The host sends the indices, crops and draws of a batch, and waits for nothing.
    Order of the images, random numbers, schedules, hooks, checkpoints and resume are those of the ordinary loop.
    Batches of another size than the first, such as the last of an epoch, are trained without the graph. On a CPU the
    same loop calls the step itself.

    The graph is captured anew where something changes that it holds as a constant: a learning rate (unless the
    optimizer is ``fused`` or ``capturable``, which read it from the device), a number, switch or tensor of a module.

    Args:
        graph: 'on' refuses what cannot be captured (ValueError, when the training begins); 'auto' says so in one line
            and trains as `EpochBasedTrainLoop`, whose arguments the others are.
    """

    def __init__(
        self, runner: Any, dataloader: DataLoader | dict[str, Any], max_epochs: int, graph: str = "on", **settings: Any
    ) -> None:
        if graph not in ("on", "auto"):
            raise ValueError(f"GraphTrainLoop: graph must be 'on' or 'auto', got {graph!r}")
        super().__init__(runner, dataloader, max_epochs, **settings)
        self.graph = graph
        self._step: GraphStep | None = None

    def run(self) -> Any:
        reasons = obstacles(self.runner, self.dataloader)
        if reasons and self.graph == "on":
            raise ValueError(f"--cuda-graph on: {'; '.join(reasons)}. Leave that out, or give --cuda-graph auto")
        if reasons:
            print_log(f"CUDA graph: off, for {'; '.join(reasons)}", logger="current")
            return super().run()
        self._step = GraphStep(self.runner.model, self.runner.optim_wrapper, self.dataloader.dataset, self.graph)
        with self._step.running():
            return super().run()

    def run_epoch(self) -> None:
        if self._step is None:
            super().run_epoch()
            return
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        self._step.begin_epoch()
        # the batch sampler is shared: its order, and what a loader draws at its start, are those of the ordinary loop
        plans: DataLoader = DataLoader(
            _Plans(self.dataloader.dataset),  # type: ignore[arg-type]
            batch_sampler=self.dataloader.batch_sampler,
            collate_fn=take_batch,
            generator=self.dataloader.generator,
        )
        for batch_idx, plan in enumerate(plans):
            self.runner.call_hook("before_train_iter", batch_idx=batch_idx, data_batch=plan)
            outputs = self._step(plan)
            self.runner.call_hook("after_train_iter", batch_idx=batch_idx, data_batch=plan, outputs=outputs)
            self._iter += 1
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1


class _Plans:
    """Data set of the plans of batches, see `TensorImages.plan`."""

    def __init__(self, dataset: TensorImages | MethodDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return self.dataset.plan(indices)


def capture_step(step: Callable[[], Tensor], stream: Any) -> Callable[[], Tensor]:
    """Return what runs a step again and hands back the tensor that it made; ``stream`` is None on a CPU."""
    if stream is None:
        return step
    graph = torch.cuda.CUDAGraph()
    # another thread, such as that of a second run, may go on meanwhile
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        outputs = step()

    def replay() -> Tensor:
        graph.replay()
        return outputs.clone()  # the next replay writes to the same memory

    return replay


class GraphStep:
    """One training step on the plan of a batch, captured after the first few."""

    def __init__(self, model: TimmClassifier, optim_wrapper: OptimWrapper, dataset: Any, graph: str) -> None:
        self.model, self.optim_wrapper, self.dataset, self.graph = model, optim_wrapper, dataset, graph
        self.device = next(model.parameters()).device
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._plan: dict[str, Tensor] = {}  # what the graph reads: indices, crops ...
        self._drawn: dict[str, Tensor] = {}  # ... and what mixes a batch
        self._names: list[str] = []
        self._norms: list[Tensor] = []
        self._replay: Callable[[], Tensor] | None = None
        self._warm_up = WARM_UP
        self._constants: list[Any] = []
        self._settings: list[Any] = []
        self._groups = optim_wrapper.optimizer.param_groups
        self._rate_numbers: list[float] = []
        on_device = _reads_rates(optim_wrapper.optimizer)
        self._rates = [torch.zeros((), device=self.device) for _ in self._groups] if on_device else []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run a block on the stream of the step; a norm that gradients are clipped to becomes one of the outputs."""
        wrapper, clip = self.optim_wrapper, getattr(self.optim_wrapper, "clip_func", None)
        if clip is not None and wrapper.grad_name == "grad_norm":
            # `append` returns None: mmengine would wait for the norm
            wrapper.clip_func = lambda *args, **settings: self._norms.append(clip(*args, **settings))
        outer = torch.cuda.current_stream(self.device) if self.stream is not None else None
        try:
            if self.stream is not None:
                self.stream.wait_stream(outer)
            with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
                yield
            if outer is not None:
                outer.wait_stream(self.stream)
        finally:
            if clip is not None:
                wrapper.clip_func = clip

    def begin_epoch(self) -> None:
        """Forget the graph if something of the model or the optimizer changed that it holds as a constant."""
        if self._constants != self._find_constants():
            self._replay = None

    def _find_constants(self) -> list[Any]:
        """Return what the graph holds as constants: numbers, switches, addresses of tensors."""
        found: list[Any] = []
        for name, module in self.model.named_modules():
            for key, value in vars(module).items():
                on_device = isinstance(module, ScheduledWeight) and key == "value"
                if isinstance(value, bool | int | float | str) and not on_device:
                    found.append((name, key, value))
        tensors = (*self.model.parameters(), *self.model.buffers())
        state = [value for state in self.optim_wrapper.optimizer.state.values() for value in state.values()]
        return [
            *found,
            *((tensor.data_ptr(), tensor.requires_grad) for tensor in tensors),
            *(value.data_ptr() for value in state if isinstance(value, Tensor)),
        ]

    def __call__(self, plan: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Train on a batch; return its losses as mmengine's ``train_step`` does, on the device."""
        if not self._plan:
            self._plan = {name: torch.empty_like(value, device=self.device) for name, value in plan.items()}
        numbers = [group["lr"] for group in self._groups]
        if self._rates and numbers != self._rate_numbers:
            self._rate_numbers = numbers
            for rate, number in zip(self._rates, numbers, strict=True):
                rate.fill_(number)
        if any(value.shape != self._plan[name].shape for name, value in plan.items()):
            row = self._train({name: value.to(self.device, non_blocking=True) for name, value in plan.items()}, {})
            return dict(zip(self._names, row.unbind(), strict=True))
        mix, shape = self.model.mix, (len(plan["index"]), 3, *_images(self.dataset).size)
        drawn = {} if mix is None else mix.draw(shape)
        if not self._drawn:
            self._drawn = {name: torch.empty_like(value, device=self.device) for name, value in drawn.items()}
        for own, given in ((self._plan, plan), (self._drawn, drawn)):
            for name, value in given.items():
                own[name].copy_(value, non_blocking=True)
        count = self.optim_wrapper._inner_count
        row = self._run()
        self.optim_wrapper._inner_count = count + 1  # which a replay, that runs nothing of the host, leaves as it is
        return dict(zip(self._names, row.unbind(), strict=True))

    def _run(self) -> Tensor:
        constant = {"params", "lr"} if self._rates else {"params"}
        settings = [value for group in self._groups for name, value in group.items() if name not in constant]
        if settings != self._settings:
            self._settings, self._replay = settings, None
        step = partial(self._train, self._plan, self._drawn)
        if self._replay is None and self._warm_up > 0:
            self._warm_up -= 1
            return step()
        if self._replay is None:
            self._replay = self._capture(step)
        return self._replay()

    def _capture(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self._warm_up, self._constants = WARM_UP, self._find_constants()
        try:
            return capture_step(step, self.stream)
        except RuntimeError as error:
            text = f"the training step cannot be captured as a CUDA graph: {str(error).splitlines()[0]}"
            if self.graph == "on":
                raise RuntimeError(f"{text}. Give --cuda-graph off") from error
            print_log(f"{text}. The training goes on without", logger="current", level=logging.WARNING)
            self.optim_wrapper.zero_grad()
            self._norms.clear()
            return step

    def _train(self, plan: Mapping[str, Tensor], drawn: dict[str, Tensor]) -> Tensor:
        """Train on a batch whose plan lies on the device; return its losses as one tensor, and note their names."""
        batch = self.dataset.take(plan)
        rates = [group["lr"] for group in self._groups]
        for group, rate in zip(self._groups, self._rates, strict=False):
            group["lr"] = rate
        try:
            outputs = self.model.train_step({**batch, "drawn": drawn} if drawn else batch, self.optim_wrapper)
        finally:
            for group, number in zip(self._groups, rates, strict=True):
                group["lr"] = number
        while self._norms:
            outputs["grad_norm"] = self._norms.pop()
        self._names = list(outputs)
        return torch.stack([value.detach() for value in outputs.values()])


def _images(dataset: Any) -> Any:
    return dataset.dataset if isinstance(dataset, MethodDataset) else dataset


def _reads_rates(optimizer: torch.optim.Optimizer) -> bool:
    return all(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)


def obstacles(runner: Any, loader: DataLoader) -> list[str]:
    """Return what keeps a run's training step from being captured, by name; nothing where it can be."""
    if not isinstance(runner.model, TimmClassifier):
        return [f"the model is {type(runner.model).__name__} and no TimmClassifier in one process"]
    method = runner.model.network.method
    kept = [] if method.capturable else [f"the method {type(method).__name__} keeps state on the host (`capturable`)"]
    return [
        *_obstacles_of_data(loader, runner.model),
        *_obstacles_of_optimizer(runner),
        *_obstacles_of_hooks(runner),
        *kept,
    ]


def _obstacles_of_data(loader: DataLoader, model: TimmClassifier) -> Iterator[str]:
    images, device = _images(loader.dataset), next(model.parameters()).device
    if not isinstance(images, TensorImages):
        yield f"the images are those of {type(images).__name__} and do not lie on the device (`TensorImages`)"
    elif images.targets.device != device:
        yield f"the images lie on {images.targets.device} and the model on {device}"
    if loader.num_workers or loader.batch_sampler is None:
        yield "train_dataloader has worker processes or no batch sampler"
    if model.mix is not None and not hasattr(model.mix, "draw"):
        yield f"model.mix={type(model.mix).__name__} has no `draw`, as Mixup has"


def _obstacles_of_optimizer(runner: Any) -> Iterator[str]:
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, AmpOptimWrapper):
        yield "optim_wrapper.type='AmpOptimWrapper' scales the loss on the host (`--amp-dtype bf16` does not)"
    if type(wrapper) not in (OptimWrapper, AmpOptimWrapper, AutocastOptimWrapper):
        yield f"optim_wrapper.type={type(wrapper).__name__!r} is not known"
        return
    if wrapper._accumulative_counts != 1:
        yield f"optim_wrapper.accumulative_counts={wrapper._accumulative_counts}"
    if (wrapper.clip_grad_kwargs or {}).get("error_if_nonfinite"):
        yield "optim_wrapper.clip_grad.error_if_nonfinite waits for the device"
    optimizer = wrapper.optimizer
    if type(optimizer) is not torch.optim.SGD and not all(group.get("capturable") for group in optimizer.param_groups):
        yield f"the optimizer {type(optimizer).__name__} is not `capturable` (optim_wrapper.optimizer.capturable=True)"
    for scheduler in runner.param_schedulers or []:
        name, kind = scheduler.param_name, type(scheduler).__name__
        if not scheduler.by_epoch and not (name == "lr" and _reads_rates(optimizer)):
            yield f"{kind} changes {name!r} at each step (a fused optimizer reads it from the device)"


def _obstacles_of_hooks(runner: Any) -> Iterator[str]:
    for hook in runner.hooks:
        name, stages = type(hook).__name__, {"before_train_iter", "after_train_iter"} & set(hook.get_triggered_stages())
        ours = type(hook).__module__.partition(".")[0] in ("mmengine", "frskd_plugin")
        if isinstance(hook, EMAHook):
            yield f"{name} waits for the device at each step"
        elif isinstance(hook, DistillWarmupHook) and not hook.by_epoch:
            yield f"{name} counts iterations"
        elif stages and not ours and not getattr(hook, "works_with_cuda_graph", False):
            yield f"the hook {name} works at each iteration and does not say `works_with_cuda_graph = True`"
