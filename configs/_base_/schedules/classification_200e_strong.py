# What the paper's baseline is often asked to be compared with: weight decay 5e-4, Nesterov, cosine.
_base_ = "./classification_200e.py"

optim_wrapper = dict(optimizer=dict(weight_decay=5e-4, nesterov=True))
param_scheduler = dict(_delete_=True, type="CosineAnnealingLR", T_max=200, by_epoch=True)
