# ImageNet (ILSVRC 2012), scored on its validation images.
_base_ = "./image_folder.py"

data_root = "data/imagenet"
num_classes = 1000
mixup_alpha = 0.2  # of the Mixup paper; Table 8 has no ImageNet
train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    dataset=dict(dataset=dict(data_root=data_root, expected_classes=num_classes, expected_images=1281167)),
)
val_dataloader = dict(
    num_workers=8,
    dataset=dict(data_root=data_root, split="val", expected_classes=num_classes, expected_images=50000),
)
test_dataloader = val_dataloader
