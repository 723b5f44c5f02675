"""A trained model in somebody's hands: uint8 in, uint8 out."""
