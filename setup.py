"""Everything is read from settings.ini, which nbdev uses too."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(here/"settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
name = cfg["lib_name"]

setup(
    name=name, version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"],
    long_description=(here/"README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    author=cfg["author"], author_email=cfg["author_email"], license="Apache-2.0", license_files=["LICENSE"],
    packages=find_packages(include=[name, f'{name}.*']), package_data={name: ["models/*.safetensors"]}, include_package_data=True, zip_safe=False,
    python_requires=">=" + cfg["min_python"], install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split() for extra in ("dev", "zarr", "czi", "nd2", "lif", "oib", "dv", "plates", "cloud", "cloud-dev", "stardist", "cellpose")},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{name}={name}._modidx:d"]},
)
