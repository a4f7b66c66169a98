"The files that describe the package agree, and what pip gets is whole"
import re, shutil, subprocess, sys, yaml
from configparser import ConfigParser
from pathlib import Path
from zipfile import ZipFile
import fgvc_fast, pytest
try: import tomllib
except ModuleNotFoundError: import tomli as tomllib # Python 3.10

root = Path(__file__).parent.parent
def text(*parts): return root.joinpath(*parts).read_text(encoding='utf-8')

ini = ConfigParser(delimiters='=', interpolation=None)
ini.read_string(text('settings.ini'))
cfg = ini['DEFAULT']
project = tomllib.loads(text('pyproject.toml'))['project']
citation = yaml.safe_load(text('CITATION.cff'))
jobs = yaml.safe_load(text('.github', 'workflows', 'test.yml'))['jobs']
made = shutil.ignore_patterns('.venv', '.git', '_proc', '_docs', 'quickstart', 'studies', 'build', 'dist', '__pycache__', '.*_cache', '*.egg-info', '.ipynb_checkpoints')

def test_one_name(): assert project['name']==cfg['lib_name']=='fgvc_fast'

def test_one_version():
    assert citation['version']==fgvc_fast.__version__
    assert re.search(r'(?m)^## (\S+)', text('CHANGELOG.md'))[1]==fgvc_fast.__version__, 'the newest heading of CHANGELOG.md is another version'

def test_one_licence():
    assert citation['license']==cfg['license']=='Apache-2.0' and project['license-files']==['LICENSE']
    assert text('LICENSE').split()[:4]==['Apache','License','Version','2.0,'] and 'END OF TERMS AND CONDITIONS' in text('LICENSE')

def test_one_address():
    "A fork changes a single line"
    address = cfg['repository'].partition('://')[2]
    files = [*root.glob('*'), *(o for d in ('.github','benchmarks','examples','fgvc_fast','nbs','tests') for o in (root/d).rglob('*'))]
    assert [o.name for o in files if o.is_file() and address.encode() in o.read_bytes()]==['settings.ini'] and text('settings.ini').count(address)==1

def test_pythons():
    "Those that are said to work are tested, from the oldest that pip admits on"
    said = [o.rpartition(' ')[2] for o in project['classifiers'] if re.search(r':: 3\.\d+$', o)]
    assert jobs['linux']['strategy']['matrix']['python']==said and project['requires-python']==f'>={said[0]}'
    assert [int(o[2:]) for o in said]==list(range(int(said[0][2:]), int(said[0][2:])+len(said)))

def test_the_workflow_names_what_is_there():
    runs = [o['run'] for j in jobs.values() for o in j['steps'] if 'run' in o]
    files,targets = re.findall(r'tests/\w+\.py', ' '.join(runs)),re.findall(r'make (\w+)', ' '.join(runs))
    assert files and all((root/o).is_file() for o in files)
    assert targets and all(f'\n{o}: $(READY)' in text('Makefile') for o in targets)

def test_every_benchmark_is_run_or_has_a_reason():
    "Each stands in the Makefile with its goal, or with why `make bench` leaves it out"
    there = {o.stem for o in (root/'benchmarks').glob('[!_]*.py')}
    run = re.search(r'(?m)^BENCH := (.*)', text('Makefile'))[1].split()
    said = re.findall(r'(?m)^#   (\w+)  +\S.*', text('Makefile'))
    assert said[:len(run)]==run and set(said)==there and len(said)==len(there)

@pytest.fixture(scope='module')
def dists(tmp_path_factory):
    "What is built of the tree: a wheel, an sdist, and a wheel of that"
    pytest.importorskip('setuptools', minversion='77')
    top = tmp_path_factory.mktemp('dists')
    def build(what, src, to):
        subprocess.run([sys.executable, '-W', 'ignore', '-c', f'from setuptools import build_meta; build_meta.build_{what}({str(top/to)!r})'], cwd=src, check=True, capture_output=True)
        return next((top/to).iterdir())
    shutil.copytree(root, top/'tree', ignore=made)
    wheel,sdist = build('wheel', top/'tree', 'wheel'),build('sdist', top/'tree', 'sdist')
    shutil.unpack_archive(sdist, top/'unpacked')
    src = next((top/'unpacked').iterdir())
    return wheel,src,build('wheel', src, 'again')

def contents(wheel):
    with ZipFile(wheel) as z: return {o: z.read(o) for o in z.namelist()}

def test_wheel(dists):
    wheel,_,again = dists
    files = contents(wheel)
    there = {o.relative_to(root).as_posix() for o in (root/'fgvc_fast').rglob('*') if o.suffix in ('.py','.safetensors','.typed')}
    info = f'fgvc_fast-{fgvc_fast.__version__}.dist-info'
    assert {o for o in files if not o.startswith(info)}==there and {'fgvc_fast/py.typed','fgvc_fast/models/toy_resnet.safetensors'}<=there
    assert files[f'{info}/licenses/LICENSE']==(root/'LICENSE').read_bytes()
    assert wheel.stat().st_size<3e6
    assert contents(again)==files, 'a wheel of the sdist is another than one of the tree'
    said = files[f'{info}/METADATA'].decode().splitlines()
    assert {f"License-Expression: {cfg['license']}", f"Project-URL: Repository, {cfg['repository']}", *(f'Classifier: {o}' for o in project['classifiers'])} <= set(said)

def test_sdist(dists):
    "It can be built, licensed, cited; and nothing stands in it that needs what does not"
    want = {'LICENSE','README.md','CHANGELOG.md','CITATION.cff','settings.ini','setup.py','pyproject.toml','fgvc_fast'}
    assert want <= {o.name for o in dists[1].iterdir()} and not (dists[1]/'tests').exists()
