# `frskd demo`: the CIFAR network of the paper on image folders of 16x16 pixels, by a schedule of a few hundred steps.
_base_ = "../baseline_cifar100_wrn_16_2.py"

data_root = "work_dirs/demo/images"  # tools/train.py --data-root sets it
frskd = None  # the library's own weights in place of those for CIFAR-100

model = dict(
    student=dict(num_classes=5),
    input_size=(3, 16, 16),
    data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3),
)
loader = dict(_delete_=True, num_workers=0, collate_fn=dict(type="default_collate"))
images = dict(type="ImageFolderDataset", data_root=data_root)
crops = [dict(type="RandomCrop", size=16, padding=2), dict(type="RandomHorizontalFlip")]
train_dataloader = dict(
    **loader,
    batch_size=32,
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(type="SeededDataset", dataset=dict(**images, split="train", transforms=crops)),
)
val_dataloader = dict(
    **loader, batch_size=250, sampler=dict(type="DefaultSampler", shuffle=False), dataset=dict(**images, split="test")
)
test_dataloader = val_dataloader
val_evaluator = dict(top_k=(1,))
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=26, val_interval=4)
optim_wrapper = dict(optimizer=dict(lr=0.05, weight_decay=5e-4, nesterov=True))
param_scheduler = dict(milestones=[16, 22])
default_hooks = dict(logger=dict(interval=15), checkpoint=dict(interval=26))
