# Backbone and neck of EfficientDet-d0: EfficientNet-B0, three BiFPN layers of 64 channels on P3-P7.
model = dict(
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        batch_augments=[dict(type="BatchFixedSizePad", size=(512, 512))],
    ),
    # ImageNet weights come through timm. Without a network: `checkpoint='FILE'` takes them from a local file,
    # `pretrained=False` trains from scratch.
    backbone=dict(
        type="TimmFeatureExtractor", model_name="tf_efficientnet_b0.aa_in1k", pretrained=True, out_indices=(2, 3, 4)
    ),
    neck=dict(type="BiFPN", in_channels=[40, 112, 320], channels=64, num_levels=5, repeat=3, variant="efficientdet"),
)
