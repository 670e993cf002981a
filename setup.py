"""Everything is read from settings.ini, which nbdev uses too."""
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(here/"settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
name = cfg["lib_name"]

def with_full_links(text):
    "The README with links to GitHub in place of relative ones, for pages that show it elsewhere, such as PyPI's"
    home = f'https://github.com/{cfg["user"]}/{cfg["repo"]}'
    text = re.sub(r'(!\[[^]]*\]\()(?!https?:|#)', rf'\g<1>{home}/raw/{cfg["branch"]}/', text)
    return re.sub(r'(\]\()(?!https?:|#)', rf'\g<1>{home}/blob/{cfg["branch"]}/', text)

setup(
    name=name, version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"],
    long_description=with_full_links((here/"README.md").read_text(encoding="utf-8")), long_description_content_type="text/markdown",
    url=f'https://github.com/{cfg["user"]}/{cfg["repo"]}',
    author=cfg["author"], author_email=cfg["author_email"], license="Apache-2.0", license_files=["LICENSE"],
    packages=find_packages(include=[name, f'{name}.*']), package_data={name: ["models/*.safetensors"]}, include_package_data=True, zip_safe=False,
    python_requires=">=" + cfg["min_python"], install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split() for extra in ("dev", "zarr", "czi", "nd2", "lif", "oib", "dv", "plates", "cloud", "cloud-dev", "stardist", "cellpose")},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{name}={name}._modidx:d"]},
)
