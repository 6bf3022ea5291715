_base_ = "./baseline_stanford40_resnet18.py"

model = dict(method=dict(name="frskd", temperature=4.0, width=2, schedule="constant", **_base_.frskd))
