"""A timm classifier made by `frskd_plugin.wrap`, as the doctor sees it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from torch import Tensor, nn

from frskd_plugin.core.frskd_loss import FRSKDLoss
from frskd_plugin.core.listening import listening
from frskd_plugin.doctor.patient import Patient, Step
from frskd_plugin.timm.wrap import DistilledModel


class ClassifierPatient(Patient):
    """See `Patient`.

    Args:
        model: what `wrap` made.
        images: [B, C, H, W], or [B, views, C, H, W] for a method that needs several views.
        targets: labels [B] or soft labels [B, K].
        extra: what the method is given beside them, such as ``index`` [B].
    """

    model: DistilledModel

    def __init__(
        self, model: DistilledModel, images: Tensor, targets: Tensor, extra: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(model, images)
        self.targets, self.extra = targets, dict(extra or {})
        self.method_name = type(model.method).__name__
        self.title = type(model.student).__name__
        self.has_self_teacher = isinstance(getattr(model.method, "self_teacher", None), nn.Module)

    @property
    def _plain_images(self) -> Tensor:
        return self.images[:, 0] if self.images.ndim == 5 else self.images

    def step(self) -> Step:
        """See `Patient.step`."""
        with ExitStack() as stack:
            passes = stack.enter_context(listening(self.model, "student_forward"))
            refined = []
            if self.has_self_teacher:
                refined = stack.enter_context(listening(self.model.method.self_teacher, "forward"))
            losses = self.model.forward(self.images, self.targets, **self.extra)  # also where it is compiled
        return Step(
            feats=[list(feats) for feats, _ in passes],
            logits=[logits for _, logits in passes],
            refined_feats=[list(maps) for maps, _ in refined],
            teacher_logits=[logits for _, logits in refined],
            terms={name: value for name, value in losses.items() if name.startswith("loss_")},
        )

    def plain_step(self) -> Tensor:
        """See `Patient.plain_step`."""
        return self.model.criterion(self.model.student(self._plain_images), self.targets)

    def evaluate(self) -> tuple[Tensor, Tensor] | None:
        """See `Patient.evaluate`."""
        return self.model.forward(self._plain_images), self.model.student(self._plain_images)

    def method_modules(self) -> dict[str, nn.Module]:
        """See `Patient.method_modules`."""
        return {"method": self.model.method}

    def self_teacher(self) -> list[nn.Module]:
        """See `Patient.self_teacher`."""
        return [self.model.method.self_teacher] if self.has_self_teacher else []

    def classifier(self) -> list[nn.Module]:
        """See `Patient.classifier`."""
        if not hasattr(self.model.student, "get_classifier"):
            return []
        found = self.model.student.get_classifier()  # a tuple where the model has a head for distillation too
        return [module for module in (found if isinstance(found, tuple) else [found]) if isinstance(module, nn.Module)]

    def weights(self) -> dict[str, float]:
        """See `Patient.weights`."""
        loss = getattr(self.model.method, "loss_distill", None)
        return {"loss_kd": loss.alpha, "loss_feat": loss.beta} if isinstance(loss, FRSKDLoss) else {}

    def map_indices(self) -> tuple[int, ...]:
        """See `Patient.map_indices`."""
        return self.model.out_indices
