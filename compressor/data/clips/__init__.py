"""Clips: folders whose images are the frames, in the order of their names."""
