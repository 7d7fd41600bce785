"""torchvision's detectors: which one a checkpoint is, and as networks from images to their heads' raw outputs."""
