"""crispwrap: from a generalist corpus and a small specialist sample to a specialist pretraining corpus."""

__version__ = "0.1.0"
