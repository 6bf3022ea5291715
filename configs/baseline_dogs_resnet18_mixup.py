_base_ = "./baseline_dogs_resnet18.py"

model = dict(mix=dict(type="Mixup", alpha=0.3))
