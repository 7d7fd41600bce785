"""Scripts that are written beside the files: they run them on images, and time them on the device."""
