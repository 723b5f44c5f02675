"""Use of trained models: uint8 images in, uint8 images out."""
