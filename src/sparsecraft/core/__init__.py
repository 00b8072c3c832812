"""The mathematics: tensors in, tensors out. No nn.Module, no files, no training."""
