"""Methods that make codes sparse: activations of autoencoders, and sparse coding."""
