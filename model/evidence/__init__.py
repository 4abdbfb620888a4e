"""Evidence: how much of what a network was trained on resembles a pixel, and what follows for its uncertainty."""
