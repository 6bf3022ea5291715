"""PS-KD, progressive self-knowledge distillation (Kim et al., 2021): labels mixed with last epoch's predictions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frskd_plugin.core.checks import can_read, check_positive_int, check_share
from frskd_plugin.core.schedule import ScheduledWeight
from frskd_plugin.methods.base import Criterion, DataNeeds, Method, StudentForward, StudentInfo, Terms
from frskd_plugin.methods.targets import choose_soft_label, soft_loss


class PredictionStore(nn.Module):
    """A table [num_samples, num_classes] of probabilities; a row of zeros is an image not seen yet.

    Without a file the table is a buffer on the model's device and part of its state: a resumed run goes on exactly
    where it stopped. With one it lives there (ImageNet: 2.6 GB) and a checkpoint holds only whether it has been begun:
    a new run empties the file at its first step, a resumed one goes on with what it finds. Rows that were written after
    the checkpoint are then newer than they were, so such a resume is not exact.

    In several processes each gathers what all of them write, so they may share one file or have one each; all must have
    batches of one size.

    Raises:
        TypeError, ValueError: for bad arguments; at the first use, for a resumed run's file that is not there or has
            another size.
        RuntimeError: when loading the table of another training set.
    """

    def __init__(self, num_samples: int, num_classes: int, file: str | Path | None = None) -> None:
        super().__init__()
        self.num_samples = check_positive_int("num_samples", num_samples)
        self.num_classes = check_positive_int("num_classes", num_classes)
        self.file = None if file is None else Path(file)
        self._mapped: Tensor | None = None
        self.shape: Tensor
        self.register_buffer("shape", torch.tensor([self.num_samples, self.num_classes]))
        # Integers, so that neither `to(dtype)` nor an average of the weights changes them. Bytes, two for each number,
        # because DDP sends all buffers around when it wraps a model, and gloo knows no int16.
        if self.file is None:
            self.register_buffer("bits", torch.zeros(num_samples, 2 * num_classes, dtype=torch.uint8))
        else:
            self.register_buffer("begun", torch.zeros((), dtype=torch.uint8))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Refuse a table of another training set; one saved before shapes were is taken by its size."""
        shape, bits = state_dict.setdefault(f"{prefix}shape", self.shape), state_dict.get(f"{prefix}bits")
        saved = [*bits.shape[:1], bits.shape[1] // 2] if bits is not None and bits.ndim == 2 else shape.tolist()
        own = [self.num_samples, self.num_classes]
        if saved != own or shape.tolist() != saved:
            # begins as torch's own message does, which names the key to whoever sorts what does not fit
            *_, error_msgs = rest
            error_msgs.append(
                f"size mismatch for {prefix}shape: PS-KD's predictions of the checkpoint are for num_samples="
                f"{saved[0]} images and {saved[1]} classes, torch.Size({saved}), this run has num_samples="
                f"{self.num_samples} and {self.num_classes} classes, torch.Size({own}): resume with the training set "
                f"of the checkpoint, or leave its predictions out."
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapped file out: copies and pickles map it themselves."""
        return {**self.__dict__, "_mapped": None}

    @property
    def table(self) -> Tensor:
        """The whole table, float16; with a file, a view of that."""
        if self.file is None:
            return self.bits.view(torch.float16)
        if self._mapped is None:
            rows, columns = self.num_samples, self.num_classes
            self._prepare_file(self.file, 2 * rows * columns)
            mapped = torch.from_file(str(self.file), shared=True, size=rows * columns, dtype=torch.float16)
            self._mapped = mapped.view(rows, columns)
            if not self.begun:
                self._mapped.zero_()
                self.begun.fill_(1)
        return self._mapped

    def _prepare_file(self, file: Path, size: int) -> None:
        """Make a new run's file of ``size`` bytes; a resumed run must find one."""
        found = file.stat().st_size if file.is_file() else None
        if self.begun and found != size:
            raise ValueError(
                f"The run's predictions for {self.num_samples} images and {self.num_classes} classes should be {size} "
                f"bytes in {file}, "
                + ("which is not there." if found is None else f"which has {found}.")
                + " Bring the file of the run that is resumed, or begin a new run."
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        if found is not None and found != size:
            os.truncate(file, size)

    def read(self, index: Tensor) -> Tensor:
        """Rows [B, K] in float32, on the device of ``index`` [B].

        Raises:
            ValueError: an index outside of the table (where it lies on a GPU, torch itself stops).
        """
        if can_read(index) and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < self.num_samples:
            raise ValueError(
                f"Sample indices must be in 0..{self.num_samples - 1} (num_samples={self.num_samples}), got "
                f"{int(index.min())}..{int(index.max())}. `num_samples` is the size of the whole training set."
            )
        table = self.table
        return table[index.to(table.device)].to(index.device, torch.float32)

    @torch.no_grad()
    def write(self, index: Tensor, probabilities: Tensor) -> None:
        """Put rows [B, K] in their places, those of the other processes too."""
        table = self.table
        index, rows = index.to(probabilities.device), probabilities.to(torch.float16)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            index, rows = _gather(index), _gather(rows)
        table[index.to(table.device)] = rows.to(table.device)


def _gather(part: Tensor) -> Tensor:
    parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts)


LEAST_PROBABILITY = 2.0**-24  # of float16, as predictions are kept: a row of zeros would be one that is not known


def mixed_targets(targets: Tensor, before: Tensor, alpha: float | Tensor) -> Tensor:
    """``(1 - alpha) y + alpha p`` of targets y and earlier predictions p, [B, K]; y alone where a row of p is zero."""
    known = before.sum(dim=1, keepdim=True) > 0
    return torch.where(known, (1 - alpha) * targets + alpha * before.to(targets.dtype), targets)


class PSKD(Method):
    """``CE`` against ``(1 - alpha_t) y + alpha_t p``, p the prediction for the image in the epoch before.

    alpha_t = ``alpha`` * t / T in epoch t = 1 .. T. Predictions are gathered in the training pass itself, as in the
    authors' code, by the index of the sample; see `PredictionStore` for where they lie and how a run resumes. `forward`
    changes that table, as batch normalisation changes its statistics. Images without a prediction, in the first epoch
    all of them, learn from y alone.

    Args:
        student: the network to train. Batches come with the samples' places in the training set, ``index`` [B].
        num_samples: size of the training set.
        alpha: the share of the predictions in the last epoch.
        file: keeps the predictions in this file and not in the checkpoint (for ImageNet).
        soft_label: see `choose_soft_label`.
    """

    needs = DataNeeds(index=True)
    makes_soft_targets = True

    def __init__(
        self,
        student: StudentInfo,
        num_samples: int,
        alpha: float = 0.8,
        file: str | Path | None = None,
        soft_label: str = "auto",
    ) -> None:
        super().__init__(student)
        self.alpha = check_share("alpha", alpha, "earlier predictions")
        self.soft_label = choose_soft_label(soft_label, student)
        self._alpha_now = ScheduledWeight(self.alpha)
        self.predictions = PredictionStore(num_samples, student.num_classes, file)

    @property
    def capturable(self) -> bool:  # type: ignore[override]
        return self.predictions.file is None  # a file is the host's

    def set_progress(self, epoch: float, max_epochs: float) -> None:
        super().set_progress(epoch, max_epochs)
        self._alpha_now.set(self.alpha * min(1.0, (int(epoch) + 1) / max_epochs))

    def forward(
        self,
        student: StudentForward,
        images: Tensor,
        targets: Tensor,
        criterion: Criterion,
        index: Tensor | None = None,
    ) -> Terms:
        """Return ``loss_ce`` against the mixed targets; ``index`` [B] names the samples' places in the training set.

        Raises:
            ValueError: no index, or one outside of the training set.
        """
        if index is None or index.shape != images.shape[:1]:
            raise ValueError(
                f"PS-KD needs the place of each of the {len(images)} samples in the training set: call model(images, "
                f"targets, index=index) with index [B], got {None if index is None else list(index.shape)}."
            )
        _, logits = student(images)
        before = self.predictions.read(index).to(logits.device)
        z = logits.detach().float()
        now = z.softmax(dim=1) if self.soft_label == "softmax" else z.sigmoid().clamp(min=LEAST_PROBABILITY)
        loss = soft_loss(criterion, logits, targets, lambda y: mixed_targets(y, before, self._alpha_now.tensor))
        self.predictions.write(index, now)
        return {"loss_ce": loss, "output": logits}
