# Image folders, with the settings that the data sets of this kind share. Each sets its data_root and num_classes.
data_root = "data"  # tools/train.py --data-root sets it
num_classes = 1000
frskd = dict(alpha=1.0, beta=200.0)  # the paper's weights for ImageNet and the fine-grained sets
mixup_alpha = 0.3  # Table 8

# ImageNet's statistics for all of them
data_preprocessor = dict(type="ImagePreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])

# of torchvision.transforms.v2; images stay uint8
train_transforms = [dict(type="RandomResizedCrop", size=224), dict(type="RandomHorizontalFlip")]
test_transforms = [dict(type="Resize", size=256), dict(type="CenterCrop", size=224)]

train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    collate_fn=dict(type="default_collate"),
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(
        type="SeededDataset",
        dataset=dict(type="ImageFolderDataset", data_root=data_root, split="train", transforms=train_transforms),
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    collate_fn=dict(type="default_collate"),
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="ImageFolderDataset", data_root=data_root, split="test", transforms=test_transforms),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="TopKAccuracyMetric", top_k=(1, 5))
test_evaluator = val_evaluator
