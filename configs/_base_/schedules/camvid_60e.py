# CamVid is not in the paper: its VOC schedule, without accumulation, is where these numbers start from.
_base_ = "../default_runtime.py"

max_epochs = 60
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=5e-4),
    clip_grad=dict(type="value", clip_value=2.0),
)
param_scheduler = dict(type="MultiStepLR", milestones=[max_epochs * 2 // 3], gamma=0.1, by_epoch=True)
