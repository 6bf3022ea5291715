# The paper's schedule for ImageNet.
_base_ = "./classification_200e.py"

train_cfg = dict(max_epochs=90)
param_scheduler = dict(milestones=[30, 60])
