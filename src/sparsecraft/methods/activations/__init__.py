"""Methods that make activations sparse."""
