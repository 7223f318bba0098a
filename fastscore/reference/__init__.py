"""What each operation means, in plain PyTorch: the oracle of the tests and the CPU path."""
