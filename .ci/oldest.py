"""The oldest versions that pyproject.toml allows of what both packages need, for pip: one `name==version` a line."""

import re
from pathlib import Path

import tomllib

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    name, version, marker = re.fullmatch(r"([\w-]+)>=([\d.]+)(\s*;.*)?", requirement).groups()
    print(f"{name}=={version}{marker or ''}")
