_base_ = "./frskd_dogs_resnet18.py"

model = dict(mix=dict(type="Mixup", alpha=0.3))
