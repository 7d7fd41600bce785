"""What networks of clips have that networks of images have not."""
