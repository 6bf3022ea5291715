_base_ = "./baseline_stanford40_resnet18.py"

model = dict(mix=dict(type="Mixup", alpha=0.3))
