# The standard ResNet34, from scratch as in the paper. The maps of its stages: 64, 128, 256, 512 channels.
model = dict(
    type="TimmClassifier",
    student=dict(model_name="resnet34", num_classes=1000, pretrained=False),
    method=dict(name="baseline"),
    out_indices=(1, 2, 3, 4),  # not the stem
)
