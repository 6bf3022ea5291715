# CIFAR-100, from the python archive or image folders. The whole set lies on the device that trains: no workers.
data_root = "data/cifar100"  # tools/train.py --data-root sets it
num_classes = 100
frskd = dict(alpha=2.0, beta=100.0)  # the paper's weights for this data set
mixup_alpha = 0.2  # Table 8

# of the training set
data_preprocessor = dict(
    type="ImagePreprocessor",
    mean=[0.5071 * 255, 0.4865 * 255, 0.4409 * 255],
    std=[0.2673 * 255, 0.2564 * 255, 0.2762 * 255],
)

train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    collate_fn=dict(type="take_batch"),
    sampler=dict(type="SeededSampler", shuffle=True),
    # 4 pixels of padding, a random crop, a flip; `images_per_class=100` takes the first 100 of each class only
    dataset=dict(
        type="TensorCifar100", data_root=data_root, split="train", images_per_class=None, expected_images=50000
    ),
)
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    collate_fn=dict(type="take_batch"),
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="TensorCifar100", data_root=data_root, split="test", expected_images=10000),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="TopKAccuracyMetric", top_k=(1, 5))
test_evaluator = val_evaluator
