# Laid over a classifier's config by --recipe strong. The paper's baseline is often asked to be compared with it: weight
# decay 5e-4, Nesterov, cosine.
optim_wrapper = dict(optimizer=dict(weight_decay=5e-4, nesterov=True))
param_scheduler = dict(_delete_=True, type="CosineAnnealingLR", T_max=_base_.train_cfg.max_epochs, by_epoch=True)
