"Hands settings.ini to pip (edit there, not here)"
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

root = Path(__file__).parent
ini = ConfigParser(delimiters='=', interpolation=None)
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

about = {k: cfg[k] for k in ('description', 'author', 'author_email')}
repo = cfg['repository']
urls = dict(Repository=repo, Issues=f'{repo}/issues', Changelog=f'{repo}/blob/main/CHANGELOG.md')
readme = (root/'README.md').read_text(encoding='utf-8')
extras = {k.removesuffix('_requirements'): v.split() for k,v in cfg.items() if k.endswith('_requirements')}
index = f"{cfg['lib_name']} = {cfg['lib_name']}._modidx:d" # lets nbdev link to our symbols

setup(**about, license_expression=cfg['license'], project_urls=urls, keywords=cfg['keywords'].split(),
    long_description=readme, long_description_content_type='text/markdown', install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points=dict(nbdev=[index]))
