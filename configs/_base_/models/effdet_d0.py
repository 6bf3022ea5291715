# The paper's segmentor (section 4.2): EfficientNet-B0, three BiFPN layers of 64 channels on P2-P7, a classifier on P2.
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    # ImageNet weights come through timm. Without a network: `checkpoint='FILE'` takes them from a local file,
    # `pretrained=False` trains from scratch.
    backbone=dict(
        type="TimmFeatureExtractor", model_name="tf_efficientnet_b0.aa_in1k", pretrained=True, out_indices=(1, 2, 3, 4)
    ),
    # Switch: 'efficientdet' (3x3 depthwise-separable convolutions, fast normalized fusion: the paper's text) or
    # 'published' (the authors' code: per-channel 1x1 convolutions, plain sums).
    neck=dict(
        type="BiFPN", in_channels=[24, 40, 112, 320], channels=64, num_levels=6, repeat=3, variant="efficientdet"
    ),
    decode_head=dict(
        type="EffDetSegHead",
        in_channels=64,
        in_index=0,
        channels=256,
        num_classes=21,
        norm_cfg=dict(type="BN"),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)

# The classifier reads P2 alone, so that the bottom-up half of the third layer (kept as published) gets no gradient.
find_unused_parameters = True
