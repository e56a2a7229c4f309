"""See the package."""

to_tensor = None
