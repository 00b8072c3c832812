"""Where a method needs a world of its own."""
