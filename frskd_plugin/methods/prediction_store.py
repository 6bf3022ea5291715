"""The last prediction for each training image, in half precision: in the checkpoint, or in a memory-mapped file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frskd_plugin.core.checks import check_positive_int


class PredictionStore(nn.Module):
    """A table [num_samples, num_classes] of probabilities; a row of zeros is an image not seen yet.

    Without a file the table is a buffer on the model's device and part of its state: a resumed run goes on exactly
    where it stopped. With one it lives there (ImageNet: 2.6 GB) and a checkpoint holds only whether it has been begun:
    a new run empties the file at its first step, a resumed one goes on with what it finds. Rows that were written after
    the checkpoint are then newer than they were, so such a resume is not exact.

    In several processes each gathers what all of them write, so they may share one file or have one each; all must have
    batches of one size.

    Args:
        num_samples: number of training images; indices are 0 .. num_samples - 1.
        num_classes: number of classes.
        file: path of the file; None keeps the table in memory.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for arguments out of range; at the first use, for a resumed run's file that is not there or has
            another size.
        RuntimeError: when loading the table of another training set, see `torch.nn.Module.load_state_dict`.
    """

    def __init__(self, num_samples: int, num_classes: int, file: str | Path | None = None) -> None:
        super().__init__()
        self.num_samples = check_positive_int("num_samples", num_samples)
        self.num_classes = check_positive_int("num_classes", num_classes)
        self.file = None if file is None else Path(file)
        self._mapped: Tensor | None = None
        self.register_buffer("shape", torch.tensor([self.num_samples, self.num_classes]))
        # Integers, so that neither `to(dtype)` nor an average of the weights changes them. Bytes, two for each number,
        # because DDP sends all buffers around when it wraps a model, and gloo knows no int16.
        if self.file is None:
            self.register_buffer("bits", torch.zeros(num_samples, 2 * num_classes, dtype=torch.uint8))
        else:
            self.register_buffer("begun", torch.zeros((), dtype=torch.uint8))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Refuse a table of another training set; one saved before shapes were is taken by its size."""
        shape, bits = state_dict.setdefault(f"{prefix}shape", self.shape), state_dict.get(f"{prefix}bits")
        saved = [*bits.shape[:1], bits.shape[1] // 2] if bits is not None and bits.ndim == 2 else shape.tolist()
        own = [self.num_samples, self.num_classes]
        if saved != own or shape.tolist() != saved:
            # begins as torch's own message does, which names the key to whoever sorts what does not fit
            error_msgs.append(
                f"size mismatch for {prefix}shape: PS-KD's predictions of the checkpoint are for num_samples="
                f"{saved[0]} images and {saved[1]} classes, torch.Size({saved}), this run has num_samples="
                f"{self.num_samples} and {self.num_classes} classes, torch.Size({own}): resume with the training set "
                f"of the checkpoint, or leave its predictions out."
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: they map the file themselves, and do not read it into memory."""
        return {**self.__dict__, "_mapped": None}

    @property
    def table(self) -> Tensor:
        """The whole table, float16; with a file, a view of that."""
        if self.file is None:
            return self.bits.view(torch.float16)
        if self._mapped is None:
            rows, columns = self.num_samples, self.num_classes
            self._prepare_file(2 * rows * columns)
            mapped = torch.from_file(str(self.file), shared=True, size=rows * columns, dtype=torch.float16)
            self._mapped = mapped.view(rows, columns)
            if not self.begun:
                self._mapped.zero_()
                self.begun.fill_(1)
        return self._mapped

    def _prepare_file(self, size: int) -> None:
        """Make a new run's file of ``size`` bytes; a resumed run must find one."""
        found = self.file.stat().st_size if self.file.is_file() else None
        if self.begun and found != size:
            raise ValueError(
                f"The run's predictions for {self.num_samples} images and {self.num_classes} classes should be {size} "
                f"bytes in {self.file}, "
                + ("which is not there." if found is None else f"which has {found}.")
                + " Bring the file of the run that is resumed, or begin a new run."
            )
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if found is not None and found != size:
            os.truncate(self.file, size)

    def read(self, index: Tensor) -> Tensor:
        """Rows [B, K] in float32, on the device of ``index`` [B].

        Raises:
            ValueError: an index outside of the table (where it lies on a GPU, torch itself stops).
        """
        if not index.is_cuda and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < self.num_samples:
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
