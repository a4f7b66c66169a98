"The files that describe the package agree"
from configparser import ConfigParser
from pathlib import Path
try: import tomllib
except ModuleNotFoundError: import tomli as tomllib # Python 3.10

root = Path(__file__).parent.parent

def test_one_name():
    ini = ConfigParser(delimiters='=', interpolation=None)
    ini.read(root/'settings.ini', encoding='utf-8')
    project = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['project']
    assert project['name'] == ini['DEFAULT']['lib_name'] == 'fgvc_fast'
