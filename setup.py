"""Where configs/ and scripts/ go when the project is installed: into invkit, beside each other as they are here.

So the commands (`inv3d`) and the configurations are found wherever they are called; everything else is in
pyproject.toml. What works on the repository itself is left out: benchmarks (against slow twins in tests/), the check of
the docs, the pictures of the README.
"""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ELSEWHERE = {"invkit.configs": "configs", "invkit.scripts": "scripts"}
LEFT_OUT = {("invkit.scripts", name) for name in ("benchmark", "check_docs", "pictures")}


class BuildPy(build_py):
    def find_package_modules(self, package: str, folder: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, folder)
        return [each for each in found if (each[0], each[1]) not in LEFT_OUT]


setup(
    packages=[*find_packages(include=["invkit*", "meshinv*", "nerfinv*"]), *ELSEWHERE],
    package_dir=ELSEWHERE,
    cmdclass={"build_py": BuildPy},
)
