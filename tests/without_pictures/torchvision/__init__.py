"""What `streaming` imports of torchvision, of which there is no build beside a torch without GPUs: no test reads a picture."""
