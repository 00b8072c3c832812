"""Methods that make weights sparse."""
