# CUB-200-2011: 200 kinds of birds, 5994 images for training and 5794 for test.
_base_ = "./image_folder.py"

data_root = "data/cub200"
num_classes = 200
train_dataloader = dict(
    dataset=dict(dataset=dict(data_root=data_root, expected_classes=num_classes, expected_images=5994))
)
val_dataloader = dict(dataset=dict(data_root=data_root, expected_classes=num_classes, expected_images=5794))
test_dataloader = val_dataloader
