# MIT67: 67 kinds of indoor scenes, 80 images of each for training and 20 for test.
_base_ = "./image_folder.py"

data_root = "data/mit67"
num_classes = 67
train_dataloader = dict(
    dataset=dict(dataset=dict(data_root=data_root, expected_classes=num_classes, expected_images=5360))
)
val_dataloader = dict(dataset=dict(data_root=data_root, expected_classes=num_classes, expected_images=1340))
test_dataloader = val_dataloader
