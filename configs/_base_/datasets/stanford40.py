# Stanford40: 40 actions, 100 images of each for training, 5532 in all for test.
_base_ = "./image_folder.py"

data_root = "data/stanford40"
num_classes = 40
train_dataloader = dict(
    dataset=dict(dataset=dict(data_root=data_root, expected_classes=num_classes, expected_images=4000))
)
val_dataloader = dict(dataset=dict(data_root=data_root, expected_classes=num_classes, expected_images=5532))
test_dataloader = val_dataloader
