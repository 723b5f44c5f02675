"""A variational autoencoder for retinal fundus photographs."""
