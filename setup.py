"""Says where the packages are; everything else is in pyproject.toml.

The kernels live in a source root of their own, so that type checkers, a bare checkout and an installed wheel all
know them by the same name, `fastscore_kernels`, and nothing called `kernels` lands at the top level of site-packages.
"""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["fastscore", "fastscore.*"]) + find_packages("kernels"),
    package_dir={"fastscore_kernels": "kernels/fastscore_kernels"},
    package_data={"fastscore": ["py.typed"], "fastscore_kernels": ["*.json"]},
)
