"""A trained model from anything that holds one; no training code, no optimizer."""
