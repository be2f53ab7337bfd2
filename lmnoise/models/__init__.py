"""What is trained: every model supplies `init(key) -> params` and `loss(params, batch, key)`."""
