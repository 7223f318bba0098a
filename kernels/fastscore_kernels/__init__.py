"""How the GPU does it: Triton kernels and their launchers. Imports torch and triton, never fastscore."""
