# Stanford Dogs: 120 breeds, 100 images of each for training, 8580 in all for test.
_base_ = "./image_folder.py"

data_root = "data/dogs"
num_classes = 120
train_dataloader = dict(
    dataset=dict(dataset=dict(data_root=data_root, expected_classes=num_classes, expected_images=12000))
)
val_dataloader = dict(dataset=dict(data_root=data_root, expected_classes=num_classes, expected_images=8580))
test_dataloader = val_dataloader
