# ResNet18 for 32x32 images: 3x3 stem of stride 1, no max-pool. The maps of its stages: 64, 128, 256, 512 channels.
model = dict(
    type="TimmClassifier",
    student=dict(model_name="resnet18_cifar", num_classes=100, pretrained=False),
    method=dict(name="baseline"),
    out_indices=(1, 2, 3, 4),  # not the stem
)
