"""How the library touches a user's nn.Module."""
