"""A GPU that is not there: what Triton compiled for an sm_80 or sm_90, run in NumPy, checked as by a memory sanitizer.

Triton's interpreter runs what a kernel says; this runs what the compiler made of it: products in bfloat16 and
TensorFloat-32, the approximate functions of the hardware, 128 threads a program and their barriers. An access outside
of the tensors that a launch was given, a vector that is not aligned, two threads that touch the same place of global
memory with no barrier between them, a warp that is split where it must not be, an instruction that is not known: each
is an error.

    with emulator.installed(90):      # in a process without TRITON_INTERPRET
        launch anything on CPU tensors

What it is not: a clock, or the hardware. Copies that are asynchronous there are made at once here, and the sums of a
matrix product are exact up to one last rounding towards zero.
"""

from tests.emulator.driver import installed

__all__ = ["installed"]
