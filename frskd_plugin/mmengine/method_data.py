"""Makes the config of a classifier bring its training method what the method asks of the data (`DataNeeds`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from frskd_plugin.methods import DataNeeds, check_settings, method_class, method_settings
from frskd_plugin.methods.frskd import FRSKD
from frskd_plugin.mmengine.config_tools import is_classifier

# DataNeeds.order -> the batch sampler that makes it
BATCH_SAMPLERS = {"class_pairs": "ClassPairBatchSampler", "overlap": "OverlapBatchSampler"}


def method_name(config: Config) -> str:
    """Name of the training method in a classifier's config; 'baseline' where there is none.

    Raises:
        ValueError: the method has no name.
    """
    return str(_method_of(config)["name"])


def set_method(config: Config, name: str | None, options: Mapping[str, Any]) -> bool:
    """Replace the training method of a classifier's config, or change its settings.

    FRSKD and what builds on it begin with the weights for the data set where the config knows them (its ``frskd``).

    Args:
        config: is changed.
        name: of the method; None, or the config's own, keeps the config's method and its settings.
        options: settings, with dots for nested ones: ``{"teacher.model_name": "resnet34"}``.

    Returns:
        Whether the method is another one now.

    Raises:
        ValueError: the config's model is no `TimmClassifier`, or there is no such method or setting.
    """
    if not is_classifier(config):
        raise ValueError(
            "--method and --method-options are for classifiers (model.type='TimmClassifier'), but the config's model "
            f"is {config.get('model', {}).get('type')!r}; leave them out"
        )
    method = _method_of(config)
    name = method["name"] if name is None else name
    replaced = name != method["name"]
    if replaced:
        weights = config.get("frskd") if issubclass(method_class(name), FRSKD) else None
        method = {"name": name, **(weights or {})}
    config.model.method = method
    config.merge_from_dict({f"model.method.{key}": value for key, value in options.items()})
    return replaced


def provide_method_data(config: Config) -> None:
    """Change a classifier's config so that its method gets the views, the order and the indices that it asks for.

    A data set that needs no more is left as it is; calling it again changes nothing. A method with a setting
    ``num_samples`` (PS-KD) gets the size of the training set, and `MethodProgressHook` joins the hooks.

    Args:
        config: is changed. ``model.method`` names the method.

    Raises:
        ValueError: there is no such method, or its settings are not those of the method.
        FileNotFoundError: ``num_samples`` has to be counted, and the data is not there.
    """
    method = _method_of(config)
    name = method.pop("name")
    needs = method_class(name).needs
    hooks = list(config.get("custom_hooks") or [])
    if all(hook.get("type") != "MethodProgressHook" for hook in hooks):
        config.custom_hooks = [*hooks, dict(type="MethodProgressHook")]
    loader = config.get("train_dataloader")
    if loader is not None:
        loader.dataset = _with_needs(loader.dataset, needs)
        _set_order(loader, needs)
        if "num_samples" in method_settings(name) and method.get("num_samples") is None:
            method["num_samples"] = config.model.method["num_samples"] = _count_samples(loader.dataset)
    try:
        check_settings(name, method)
    except TypeError as error:
        raise ValueError(f"model.method: {error}") from error


def _method_of(config: Config) -> dict[str, Any]:
    """A copy of the config's method, the plain network where it has none."""
    method = dict(config.model.get("method") or {"name": "baseline"})
    if "name" not in method:
        raise ValueError(f"model.method must have a name, such as dict(name='frskd'), got {method}")
    return method


def _with_needs(dataset: dict[str, Any], needs: DataNeeds) -> dict[str, Any]:
    if dataset.get("type") == "MethodDataset":  # of the config that a run has written
        dataset = dataset["dataset"]
    if needs.views == 1 and not needs.index:
        return dataset
    return dict(type="MethodDataset", views=needs.views, index=needs.index, dataset=dataset)


def _set_order(loader: dict[str, Any], needs: DataNeeds) -> None:
    """Set the batch sampler of an order; one of the user's own stays."""
    chosen = (loader.get("batch_sampler") or {}).get("type")
    if chosen is not None and chosen not in BATCH_SAMPLERS.values():
        return
    loader.pop("batch_sampler", None)
    if needs.order != "any":
        loader["batch_sampler"] = dict(type=BATCH_SAMPLERS[needs.order])


def _count_samples(dataset: dict[str, Any]) -> int:
    inner = dataset
    while isinstance(inner.get("dataset"), dict):
        inner = inner["dataset"]
    if inner.get("expected_images") is not None and inner.get("images_per_class") is None:
        return inner["expected_images"]  # any other number ends the run when the data set is opened
    return len(DATASETS.build(dataset))
