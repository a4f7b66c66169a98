"`from fgvc_fast.all import *` brings what the pages write, and takes from fastai no more than it must"
import ast, builtins, json, re
from pathlib import Path
import pytest

top = Path(__file__).parent.parent

def star(module):
    res = {}
    exec(f'from {module} import *', res)
    return res

@pytest.fixture(scope='module')
def ours(): return star('fgvc_fast.all')

may_replace = dict( # names of `fastai.vision.all` that mean something else afterwards, and why
    Body='fastcore.xml makes a <body> of it, and comes along with fastai by accident',
    MixUp='an augmentation of that name that knows parts, levels and every loss here; without options it mixes as fastai\'s',
    CutMix='as MixUp',
    imagenet_stats='the same numbers, in tuples')

def test_what_is_replaced(ours):
    "A literal list: a name more is a choice that somebody has to make"
    theirs = star('fastai.vision.all')
    assert {k for k,v in theirs.items() if ours.get(k) is not v and k!='__builtins__'}==set(may_replace)
    assert [list(o) for o in ours['imagenet_stats']]==[list(o) for o in theirs['imagenet_stats']]
    assert ours['AvgPool'] is theirs['AvgPool']

def test_no_builtin_is_replaced(ours):
    own = {k for k in ours if hasattr(builtins, k) and not k.startswith('__') and ours[k] is not getattr(builtins, k)}
    assert own=={k for k,v in star('fastai.vision.all').items() if hasattr(builtins, k) and not k.startswith('__') and v is not getattr(builtins, k)}

def code_of(s):
    "The code in the markdown `s`: fenced and indented blocks, and what stands between back-ticks"
    blocks = re.findall(r'```(?:python)?\n(.*?)```', s, flags=re.S)
    return blocks,re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', s, flags=re.S))

def free_names(code):
    "Names that `code` reads and does not make itself; none where it is no Python"
    try: tree = ast.parse(re.sub(r'^\s*[!%].*$', '', code, flags=re.M).strip())
    except SyntaxError: return set()
    nodes = list(ast.walk(tree))
    made = {o.id for o in nodes if isinstance(o, ast.Name) and not isinstance(o.ctx, ast.Load)} | {o.arg for o in nodes if isinstance(o, ast.arg)}
    made |= ({(a.asname or a.name).split('.')[0] for o in nodes if isinstance(o, (ast.Import,ast.ImportFrom)) for a in o.names}
        | {o.name for o in nodes if isinstance(o, (ast.FunctionDef,ast.ClassDef))})
    return {o.id for o in nodes if isinstance(o, ast.Name)}-made

def methods(code):
    "Pairs (variable, method) that `code` calls"
    try: tree = ast.parse(code.strip())
    except SyntaxError: return set()
    return {(o.func.value.id, o.func.attr) for o in ast.walk(tree) if isinstance(o, ast.Call) and isinstance(o.func, ast.Attribute)
        and isinstance(o.func.value, ast.Name)}

theirs_to_name = { # what stands in README's back-ticks for something of the reader's
    'data','dls','learn','interp','study','image','pairs','pair','paths','rows','train','df','folder','path','model','x','y','settings','fh','bundle','items','item','picture','new','five','a','b','n','k','own','birds','other','row','cb','mix','seeds'}

def test_every_name_of_the_readme(ours):
    blocks,spans = code_of((top/'README.md').read_text(encoding='utf-8'))
    made = {o.id for b in blocks for o in _parsed(b) if isinstance(o, ast.Name) and not isinstance(o.ctx, ast.Load)}
    known = set(ours) | made | set(dir(builtins)) | theirs_to_name | set(dir(ours['FineGrainedLearner'])) # its methods may stand without `learn.`
    calls = [s for s in spans if re.fullmatch(r'[A-Za-z_][\w.]*\(.*\)(\.\w+.*)?', s)]
    unknown = {n for o in (*blocks, *calls) for n in free_names(o)}-known
    assert len(calls)>20 and not unknown, unknown

def _parsed(code):
    try: return list(ast.walk(ast.parse(code.strip())))
    except SyntaxError: return []

def test_every_method_of_the_readme(ours):
    blocks,spans = code_of((top/'README.md').read_text(encoding='utf-8'))
    of = dict(learn=ours['FineGrainedLearner'], interp=ours['FineGrainedInterpretation'], study=ours['Study'], data=ours['FineGrainedData'], dls=ours['FineGrainedLoaders'])
    lost = {f'{v}.{m}' for o in (*blocks, *spans) for v,m in methods(o) if v in of and not hasattr(of[v], m)}
    assert not lost, lost

def test_import_lines_of_the_lessons():
    "What a lesson or the guide imports is there, and it imports the whole by its one line"
    n = 0
    for fn in sorted([*(top/'nbs'/'lessons').glob('*.ipynb'), *(top/'nbs'/'guide').glob('*.ipynb')]):
        for c in json.loads(fn.read_text(encoding='utf-8'))['cells']:
            for line in [] if c['cell_type']!='code' else ''.join(c['source']).splitlines():
                if not re.match(r'from fgvc_fast[\w.]* import ', line.strip()): continue
                exec(line.strip(), got := {})
                assert None not in got.values(), f'{fn.name}: {line.strip()} (a verb of a learner or interpretation is no name of its module)'
                n += 1
    assert n>5

@pytest.mark.parametrize('name', ('plot_robustness','fgsm','pgd','AdversarialTraining','MeanPool','Study','load_bundle'))
def test_it_is_there(ours, name): assert name in ours

def test_every_public_name_means_one_thing():
    "Two modules of a star import that export the same name: the one that comes last would win"
    import importlib
    seen = {}
    for fn in (top/'fgvc_fast').rglob('all.py'):
        pkg = '.'.join(fn.relative_to(top).parent.parts)
        for name in re.findall(r'^from \.([\w.]+) import \*', fn.read_text(encoding='utf-8'), flags=re.M):
            if name.endswith('all'): continue
            mod = importlib.import_module(f'{pkg}.{name}')
            for k in mod.__all__: seen.setdefault(k, []).append((mod.__name__, id(getattr(mod, k))))
    assert len(seen)>200 and not {k: v for k,v in seen.items() if len({i for _,i in v})>1}
