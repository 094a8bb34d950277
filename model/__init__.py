"""What an image is, what the network is, and what a number means; knows nothing of Beam."""
