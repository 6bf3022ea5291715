# The paper's schedule (section 4.1); weight decay on every parameter.
_base_ = "../classification_runtime.py"

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=200, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(type="MultiStepLR", milestones=[100, 150], gamma=0.1, by_epoch=True)
