# Short, from scratch, for machines without a GPU: a higher learning rate than the 60 epochs have.
_base_ = "./camvid_60e.py"

max_epochs = 20
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = dict(type="MultiStepLR", milestones=[max_epochs * 3 // 4], gamma=0.1, by_epoch=True)
