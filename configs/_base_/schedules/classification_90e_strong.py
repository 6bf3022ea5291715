# classification_200e_strong in ImageNet's 90 epochs.
_base_ = "./classification_200e_strong.py"

train_cfg = dict(max_epochs=90)
param_scheduler = dict(T_max=90)
