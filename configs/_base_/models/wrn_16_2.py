# WRN-16-2 of the paper; the maps of its three groups have 32, 64 and 128 channels.
model = dict(
    type="TimmClassifier",
    student=dict(model_name="wrn_16_2", num_classes=100, pretrained=False),
    method=dict(name="baseline"),
    out_indices=(0, 1, 2),
)
