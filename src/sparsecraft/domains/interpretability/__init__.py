"""What the latents of a dictionary mean, and how well they serve: evaluation and pages."""
