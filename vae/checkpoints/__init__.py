"""Reading and writing of trained models, independent of training code and optimizers."""
