"""What makes passes faster and changes nothing but the order of sums: the layout of images, and norms in the layers
before them."""
