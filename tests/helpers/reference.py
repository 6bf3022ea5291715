"""Loads a file of reference numbers into our modules, and reads gradients and statistics back under the file's keys.

A file holds ``p.<key>`` (parameters and running statistics), ``in.i``, ``cot.i``, ``labels`` and, per mode, ``out.i``,
``loss``, ``grad_in.i``, ``grad.<key>`` and ``train.after.<key>``. A new file of that format is checked by
`check_reference`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.bifpn import BiFPN
from frskd_plugin.core.self_teacher import SelfTeacher

DATA = Path(__file__).parents[1] / "data"
Entry = tuple[Tensor, slice]  # a parameter or buffer of ours, and the part of it that the key names
WHOLE = slice(None)
STATISTICS = (".mean", ".var")


def load_reference(module: nn.Module, arrays: Mapping[str, np.ndarray], prefix: str = "p.") -> nn.Module:
    """Copy the arrays ``prefix + key`` into a `SelfTeacher` or `BiFPN`; every key and every tensor must be used."""
    entries = reference_entries(module)
    keys = {name.removeprefix(prefix) for name in arrays if name.startswith(prefix)}
    if keys != set(entries):
        missing, unknown = sorted(set(entries) - keys), sorted(keys - set(entries))
        raise ValueError(f"The file does not fit the module: missing {missing[:5]}, not in the module {unknown[:5]}.")
    with torch.no_grad():
        for key, (tensor, part) in entries.items():
            tensor[part].copy_(torch.from_numpy(arrays[prefix + key]))
    return module


def grads(module: nn.Module) -> dict[str, Tensor]:
    """Gradients of a `SelfTeacher` or `BiFPN` under the file's keys (the part after ``train.grad.``)."""
    entries = {key: entry for key, entry in reference_entries(module).items() if not key.endswith(STATISTICS)}
    return {key: tensor.grad[part].clone() for key, (tensor, part) in entries.items() if tensor.grad is not None}


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """Running statistics under the file's keys (the part after ``train.after.``)."""
    entries = {key: entry for key, entry in reference_entries(module).items() if key.endswith(STATISTICS)}
    return {key: tensor[part].clone() for key, (tensor, part) in entries.items()}


def reference_entries(module: nn.Module) -> dict[str, Entry]:
    """Key in the file -> our tensor and the part of it."""
    if isinstance(module, SelfTeacher):
        return _self_teacher_entries(module)
    if isinstance(module, BiFPN):
        return _bifpn_entries(module)
    raise TypeError(f"Reference files exist for SelfTeacher and BiFPN, got {type(module).__name__}.")


def _bn(key: str, bn: nn.Module, part: slice = WHOLE) -> dict[str, Entry]:
    tensors = {"weight": bn.weight, "bias": bn.bias, "mean": bn.running_mean, "var": bn.running_var}
    return {f"{key}.bn.{name}": (tensor, part) for name, tensor in tensors.items()}


def _conv_bn(key: str, block: nn.Module, part: slice = WHOLE) -> dict[str, Entry]:
    bias = {} if block.conv.bias is None else {f"{key}.conv.bias": (block.conv.bias, part)}
    return {f"{key}.conv.weight": (block.conv.weight, part), **bias, **_bn(key, block.bn, part)}


def _node(key: str, fuse_key: str, node: nn.Module) -> dict[str, Entry]:
    entries: dict[str, Entry] = {fuse_key: (node.fusion_weights, WHOLE)}
    for k, conv in enumerate(node.convs):
        entries[f"{key}.sep{k}.dw.weight"] = (conv.dw.weight, WHOLE)
        entries[f"{key}.sep{k}.pw.weight"] = (conv.pw.weight, WHOLE)
        entries |= _bn(f"{key}.sep{k}", conv.bn)
    return entries


def _self_teacher_entries(teacher: SelfTeacher) -> dict[str, Entry]:
    entries: dict[str, Entry] = {"head.weight": (teacher.head.weight, WHOLE), "head.bias": (teacher.head.bias, WHOLE)}
    for index, layer in enumerate(teacher.neck.layers):
        prefix = f"layer{index}"
        for i, lateral in layer.laterals.items():
            d = layer.out_channels[int(i)]
            if not layer.repeated:
                entries |= _conv_bn(f"{prefix}.lat_td.{i}", lateral, slice(0, d))
            if int(i):
                start = 0 if layer.repeated else d
                entries |= _conv_bn(f"{prefix}.lat_bu.{i}", lateral, slice(start, start + d))
        for way, nodes, resizes in (("td", layer.td_nodes, layer.td_resize), ("bu", layer.bu_nodes, layer.bu_resize)):
            for i, node in nodes.items():
                entries |= _node(f"{prefix}.{way}_node.{i}", f"{prefix}.{way}_fuse.{i}", node)
            for i, resize in resizes.items():
                project = getattr(resize, "project", None)
                if hasattr(project, "conv"):
                    entries |= _conv_bn(f"{prefix}.{way}_proj.{i}", project)
    return entries


def _bifpn_entries(bifpn: BiFPN) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for index, layer in enumerate(bifpn.layers):
        prefix = "" if len(bifpn.layers) == 1 else f"layer{index}."
        for way, nodes in (("td", layer.td), ("bu", layer.bu)):
            for i, node in nodes.items():
                entries |= _conv_bn(f"{prefix}{way}.{i}", node)
    return entries


def numbered(arrays: Mapping[str, np.ndarray], name: str) -> list[Tensor]:
    """The arrays ``name.0``, ``name.1``, ... as tensors."""
    found = []
    while f"{name}.{len(found)}" in arrays:
        found.append(torch.from_numpy(arrays[f"{name}.{len(found)}"]))
    return found


def assert_close(actual: Tensor, expected: np.ndarray, tol: float, what: str = "") -> None:
    """``max|x - ref| <= tol * max(0.01, max|ref|)``, the measure of the reference files."""
    actual, expected = np.asarray(actual.detach().double().cpu()), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    error = np.abs(actual - expected).max() / max(0.01, np.abs(expected).max())
    assert error <= tol, f"{what}: off by {error:.2e} of the largest value, allowed {tol:.0e}"


def check_reference(module: nn.Module, arrays: Mapping[str, np.ndarray], mode: str, dtype: torch.dtype) -> None:
    """Outputs, loss, gradients and statistics of one mode against the file, in float64 or float32."""
    exact = dtype == torch.float64
    out_tol, grad_tol, loss_tol = (2e-7, 2e-7, 2e-7) if exact else (4e-6, 2e-5, 1e-5)
    load_reference(module.to(dtype), arrays).train(mode == "train")
    inputs = [x.to(dtype).requires_grad_() for x in numbered(arrays, "in")]

    result = module(inputs)
    outputs, logits = result if isinstance(module, SelfTeacher) else (result, None)
    loss = 0.1 * sum((out * cot.to(dtype)).sum() for out, cot in zip(outputs, numbered(arrays, "cot"), strict=True))
    if logits is not None:
        assert_close(logits, arrays[f"{mode}.logits"], out_tol, "logits")
        cross_entropy = F.cross_entropy(logits, torch.from_numpy(arrays["labels"]))
        assert_close(cross_entropy, arrays[f"{mode}.loss_ce"], loss_tol, "loss_ce")
        loss = loss + cross_entropy
    loss.backward()

    assert_close(loss, arrays[f"{mode}.loss"], loss_tol, "loss")
    for i, (out, x) in enumerate(zip(outputs, inputs, strict=True)):
        assert_close(out, arrays[f"{mode}.out.{i}"], out_tol, f"out.{i}")
        assert_close(x.grad, arrays[f"{mode}.grad_in.{i}"], grad_tol, f"grad_in.{i}")
    _check_grads(module, arrays, mode, grad_tol, exact)
    if mode == "train":
        for key, value in statistics(module).items():
            assert_close(value, arrays[f"train.after.{key}"], out_tol, f"after.{key}")


def _check_grads(module: nn.Module, arrays: Mapping[str, np.ndarray], mode: str, tol: float, exact: bool) -> None:
    found = grads(module)
    stored = {name.removeprefix(f"{mode}.grad.") for name in arrays if name.startswith(f"{mode}.grad.")}
    assert set(found) == stored
    cancelling = isinstance(module, BiFPN) and mode == "train"
    for key, grad in found.items():
        if cancelling and key.endswith("conv.bias"):
            continue  # structurally zero: batch normalisation removes every shift
        if cancelling and key.endswith("conv.weight") and not exact:
            continue  # a difference of nearly equal numbers: only float64 can tell (reference section 9)
        # a fusion weight's gradient is a sum over whole maps: in float32 its last digits depend on the CPU's kernels
        summed = "_fuse." in key and not exact
        assert_close(grad, arrays[f"{mode}.grad.{key}"], 2 * tol if summed else tol, f"grad.{key}")
