_base_ = "./baseline_mit67_resnet34.py"

model = dict(method=dict(name="frskd", temperature=4.0, width=2, schedule="constant", **_base_.frskd))
