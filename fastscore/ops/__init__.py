"""How autograd sees each operation: private primitives and the autograd Functions over them."""
