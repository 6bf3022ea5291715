_base_ = "./baseline_cub200_resnet18.py"

model = dict(mix=dict(type="CutMix", alpha=1.0))
