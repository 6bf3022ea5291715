# Laid over a classifier's config by --recipe cutmix (Table 8).
model = dict(mix=dict(type="CutMix", alpha=1.0))
