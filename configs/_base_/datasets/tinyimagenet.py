# TinyImageNet at 32x32 as in the paper: a random resized crop in training, a plain resize in test.
_base_ = "./image_folder.py"

data_root = "data/tinyimagenet"
num_classes = 200
frskd = dict(alpha=3.0, beta=100.0)  # the paper's weights for this data set
mixup_alpha = 0.2  # Table 8

train_transforms = [dict(type="RandomResizedCrop", size=32), dict(type="RandomHorizontalFlip")]
test_transforms = [dict(type="Resize", size=(32, 32))]
train_dataloader = dict(
    batch_size=128,
    dataset=dict(
        dataset=dict(
            data_root=data_root,
            transforms=train_transforms,
            expected_classes=num_classes,
            expected_images=100000,
        )
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        split="val",
        transforms=test_transforms,
        expected_classes=num_classes,
        expected_images=10000,
    )
)
test_dataloader = val_dataloader
