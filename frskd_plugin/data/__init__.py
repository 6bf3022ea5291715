"""Data on disk: training lists of PASCAL VOC and drawn scenes. Needs numpy and Pillow only."""
