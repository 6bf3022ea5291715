"""Pictures of attention maps in the course of a training, for any kind of network."""

from __future__ import annotations

import abc
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.dist import master_only
from mmengine.hooks import Hook

from frskd_plugin.core.atomic_write import atomic_write
from frskd_plugin.mmengine.self_teacher_validation_hook import unwrap_model

FOLDER = "attention"


class AttentionHook(Hook, abc.ABC):
    """Draws images of the validation set after the training and, if asked for, in its course.

    The pictures go to ``WORK_DIR/attention/NAME.png``, those of an epoch to ``WORK_DIR/attention/epoch_N/NAME.png``,
    and through the visualizer to its backends, such as TensorBoard. A subclass says what a picture shows. Nothing of it
    changes what is trained.

    Args:
        num_images: how many images of the validation set, from its start.
        interval: epochs (or iterations) between pictures; 0 draws after the training only.
        by_epoch: whether ``interval`` counts epochs or iterations.

    Raises:
        ValueError: a negative number.
    """

    def __init__(self, num_images: int = 2, interval: int = 0, by_epoch: bool = True) -> None:
        for name, value in (("num_images", num_images), ("interval", interval)):
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{type(self).__name__}: {name} must be an integer of 0 or more, got {value!r}")
        self.num_images = num_images
        self.interval = interval
        self.by_epoch = by_epoch

    @abc.abstractmethod
    def picture(self, model: Any, dataset: Any, index: int) -> tuple[str, Figure]:
        """A name for files, and the picture.

        Args:
            model: in eval mode.
            dataset: of the validation.
            index: of the image in it.
        """

    def after_train_epoch(self, runner: Any) -> None:
        """Draw where an epoch is due; the last one is drawn after the training."""
        if self.by_epoch and self.every_n_epochs(runner, self.interval) and not self.is_last_train_epoch(runner):
            self._draw(runner, f"epoch_{runner.epoch + 1}", runner.epoch + 1)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """The same of iterations."""
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            if not self.is_last_train_iter(runner):
                self._draw(runner, f"iter_{runner.iter + 1}", runner.iter + 1)

    def after_train(self, runner: Any) -> None:
        """Draw with the weights at the end of the training."""
        self._draw(runner, "", runner.epoch if self.by_epoch else runner.iter)

    @master_only
    def _draw(self, runner: Any, folder: str, step: int) -> None:
        if runner.val_loop is None:
            runner.logger.info(f"{type(self).__name__}: there is no validation set to take images from.")
            return
        dataset = runner.val_dataloader.dataset
        model = unwrap_model(runner.model)
        training = model.training
        model.eval()
        for index in range(min(self.num_images, len(dataset))):
            name, figure = self.picture(model, dataset, index)
            canvas = FigureCanvasAgg(figure)
            buffer = io.BytesIO()
            canvas.print_png(buffer)
            path = Path(runner.work_dir) / FOLDER / folder / f"{name}.png"
            atomic_write(path, buffer.getvalue())
            runner.visualizer.add_image(f"{FOLDER}_{name}", np.array(canvas.buffer_rgba())[..., :3], step)
            runner.logger.info(f"Picture of the attention maps: {path}")
        model.train(training)
