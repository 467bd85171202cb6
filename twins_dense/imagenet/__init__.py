"""ImageNet-1k: its classes, its validation set on disk, and the protocol of the published scores."""
