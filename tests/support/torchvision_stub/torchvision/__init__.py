"""A stand-in for what `streaming` imports of torchvision, of which there is no build beside a torch without GPUs."""
