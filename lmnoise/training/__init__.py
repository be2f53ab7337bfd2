"""How parameters move: knows a loss function, never a model."""
