"""ImageNet-1k: classes, the validation set on disk, and scoring by the published protocols."""
