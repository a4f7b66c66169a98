"Every argument of a public function or method has a type; what a user writes is checked by pyright"
import ast, json, re, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
mods = [o for o in (root/'fgvc_fast').rglob('*.py') if o.name!='_modidx.py']

# fasttransform looks at the types of these to choose one: they say what they are called for, and no more
dispatched = {'encodes','decodes','setups'}

def public(fn):
    "Public functions and methods of a module: name, node"
    for o in ast.parse(fn.read_text(encoding='utf-8')).body:
        if isinstance(o, ast.FunctionDef) and o.name[0]!='_': yield o.name,o
        if isinstance(o, ast.ClassDef) and o.name[0]!='_': yield from ((f'{o.name}.{m.name}',m) for m in o.body if isinstance(m, ast.FunctionDef) and (m.name[0]!='_' or m.name=='__init__'))

def arguments(f):
    "Arguments of a function, but for `self` and `cls` in front and what stars collect: node, default"
    a = f.args
    plain = [*a.posonlyargs, *a.args]
    both = [*zip(plain, [None]*(len(plain)-len(a.defaults))+a.defaults), *zip(a.kwonlyargs, a.kw_defaults)]
    return both[1:] if both and both[0][0].arg in ('self','cls') else both

@pytest.mark.parametrize('fn', mods, ids=lambda o: o.relative_to(root/'fgvc_fast').with_suffix('').as_posix())
def test_every_argument_has_a_type(fn):
    fs = [(k,f) for k,f in public(fn) if f.name not in dispatched]
    assert not [f'{k}({x.arg})' for k,f in fs for x,_ in arguments(f) if x.annotation is None]
    bare = [f'{k}({x.arg})' for k,f in fs for x,d in arguments(f) if isinstance(d, ast.Constant) and d.value is None and not re.search(r'\bNone\b|^object$', ast.unparse(x.annotation))]
    assert not bare, f'None is their default, and no type of theirs: {bare}'

def test_typed(): assert (root/'fgvc_fast'/'py.typed').is_file()

use = '''
import torch
from pathlib import Path
from PIL import Image
from torch import nn
from fgvc_fast.bundle import load_bundle, write_bundle
from fgvc_fast.core import check_number, check_size
from fgvc_fast.data.image import fit_aspect, read_image, to_picture
from fgvc_fast.datasets.catalog import fine_grained_data
from fgvc_fast.embed import metric_loss, recall_at_k
from fgvc_fast.interpret.cam import cam
from fgvc_fast.learner import fine_grained_learner
from fgvc_fast.losses import Focal, class_weights
from fgvc_fast.models.body import Body
from fgvc_fast.models.model import fine_grained_model
from fgvc_fast.robust.attack import fgsm, pgd
from fgvc_fast.studies import depth_study, train_one
from fgvc_fast.study.show import Study
from fgvc_fast.train.add_loss import AddLoss
from fgvc_fast.train.phases import Phase, Plan
from fgvc_fast.train.plans import gradual_plan

data = fine_grained_data('toy_birds', per_class=12)
fine_grained_data(Path('birds'), levels=['family','label'])
check_number('n', 3, 1, whole=True), check_size('size', (96,128))
im = read_image('a.jpg', region=(0,0,9,9), size=(96,96))
for o in (im, b'', 'a.jpg', Path('a.jpg')): to_picture(o)
fit_aspect([1,2,3,4], 1.5, (640,480))
body,model = Body('resnet18', img_size=224),fine_grained_model('resnet18', 20, pool=nn.Identity, stats=False, branch=-2)
fine_grained_model(['resnet18','resnet34'], 20, weights=['a.pth','b.pth'], img_size=(96,128))
x,y = torch.rand(2, 3, 96, 96),torch.tensor([0,1])
fgsm(model, x, y, eps=.1), pgd(model, x, y, .1, generator=torch.Generator())
Focal(weight=class_weights([3,4]))(x, y)
recall_at_k(x, y, ref=x, ref_targs=y), metric_loss('triplet', 8, 20, miner='hard')
AddLoss('center', weight=.1), AddLoss(nn.CrossEntropyLoss(), on='logits')
Plan([Phase('head', 1, lr=1e-2), Phase('all', 3)])
def work(dls, learn):
    learn = fine_grained_learner(dls, 'resnet18', pool='gem', head=nn.Linear, stats=([.5]*3,[.2]*3), branch='layer3')
    for o in ('a.jpg', Path('a.jpg'), 3, im, x, [1,2], ['a.jpg']): cam(learn, o, 'gradcam', target=('this','that'), layer=-2, against=None)
    gradual_plan(learn, 5)
train_one(0, data, 'resnet18', size=(96,128), lr=1e-2, aug=['light','pose'])
depth_study('toy_birds', archs=['resnet18'], folder=Path('studies'))
Study('lr', train_one, dict(lr=[.1,.2]), seeds=[0,1])
bundle = load_bundle('bundle', device='cpu')
write_bundle(Path('b'), model, ['a','b'])
'''
wrong = 'from fgvc_fast.learner import fine_grained_learner\nfrom fgvc_fast.bundle import load_bundle\nfine_grained_learner(3, 5)\nload_bundle(None)\n'

def pyright(src, to):
    (to/'use.py').write_text(src, encoding='utf-8')
    (to/'pyrightconfig.json').write_text(json.dumps(dict(include=['use.py'], typeCheckingMode='basic', extraPaths=[str(root)], reportUnusedExpression=False)))
    res = subprocess.run([sys.executable, '-m', 'pyright', '--pythonpath', sys.executable, '--outputjson', '-p', str(to)], capture_output=True, text=True)
    if res.stdout[:1]!='{': pytest.skip(f'pyright does not run here: {(res.stderr or res.stdout)[-200:]}') # it brings no node, and would fetch one
    return [f"line {o['range']['start']['line']+1}: {o['message']}" for o in json.loads(res.stdout)['generalDiagnostics'] if o['severity']=='error']

def test_pyright_likes_what_users_write(tmp_path):
    "A program that calls the public functions as their pages do has no errors, and one that does not has"
    pytest.importorskip('pyright', reason='pyright is not installed')
    assert len(pyright(wrong, tmp_path))>=3
    assert not pyright(use, tmp_path)
