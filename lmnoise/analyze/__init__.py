"""What a checkpoint knows, how fragile it is, and which of its parameters carry what it knows."""
