"""What factors are fitted to: second moments of layers' inputs and gradients, from unlabelled calibration images."""
