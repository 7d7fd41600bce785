"""Boxes around objects, as COCO's annotations have them."""
