"""Boxes, masks and classes drawn on images."""
