"What is remembered is what was asked: weights to the last byte, rows, labels, cut, size, vocabulary"
import os, re, shutil, warnings
from collections import deque
from copy import deepcopy
from datetime import date
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fgvc_fast.core import FineGrainedError, digest
from fgvc_fast.datasets.all import fine_grained_data
from fgvc_fast.interpret.calibration import FineGrainedInterpretation, _losses_at, _lowest # with `calibrate`
from fgvc_fast.interpret.cam import cam
from fgvc_fast.interpret.features import FeatureHierarchy
from fgvc_fast.interpret import browse, mistakes, retrieval # chkstyle: ignore (learners have `embeddings`, interpretations `to_html` and `plot_errors`)
from fgvc_fast import save # chkstyle: ignore (now learners have `save_bundle`)
from fgvc_fast.learner import fine_grained_learner, test_read as remembered
from fgvc_fast.train.precision import CPUAutocast
from fgvc_fast.memory import _says, items_of, loader_key, trained_on, weights_checksum
from fgvc_fast.train.marks import check_same, run_marks
from torch import nn
from types import ModuleType, SimpleNamespace

pytestmark = [pytest.mark.usefixtures('one_thread'), pytest.mark.filterwarnings('ignore')]

@pytest.fixture(scope='module')
def birds(): return fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=32).split(valid=.25)

kw = dict(size=32, bs=8, num_workers=0, device='cpu')

def learner(data, **more):
    torch.manual_seed(0)
    learn = fine_grained_learner(data.dls(**kw | more), 'toy_resnet')
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    return learn

# weights

class Odd(nn.Module):
    "A shared tensor, a view, a column-major one, half precision, no dimension, integers, nothing at all"
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.wide = nn.Parameter(torch.randn(4, 6).T)
        self.part = nn.Parameter(torch.randn(5, 4)[::2, 1:3])
        self.bf16 = nn.Parameter(torch.randn(7, dtype=torch.bfloat16))
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer('n', torch.tensor(3))
        self.register_buffer('none', torch.empty(0))
        self.register_buffer('hidden', torch.ones(2), persistent=False)

class Compiled(nn.Module):
    "As `torch.compile` wraps a model, without compiling"
    def __init__(self, m):
        super().__init__()
        self._orig_mod = m

def _set(get, f):
    def change(m):
        with torch.no_grad(): f(get(m))
    return change

changes = {'one element': _set(lambda m: m.a.weight, lambda t: t[0,0].add_(1e-6)), 'through .data': lambda m: m.conv.weight.data[3,2,2,2].mul_(1.001),
    'bf16': _set(lambda m: m.bf16, lambda t: t[6].mul_(-1)),
    'a view': _set(lambda m: m.part, lambda t: t[2,1].add_(1)), 'column-major': _set(lambda m: m.wide, lambda t: t[5,3].add_(1)), 'a buffer': lambda m: m.n.add_(1),
    'not in the state dict': lambda m: m.hidden.neg_(),
    'a zero of another sign': _set(lambda m: m.a.bias, lambda t: t.copy_(torch.tensor([-0.,0,0]))), 'another type': lambda m: m.bf16.__setattr__('data', m.bf16.data.half()),
    'another shape': lambda m: m.a.weight.__setattr__('data', m.a.weight.data.reshape(9, 1)), 'two swapped': _set(lambda m: m.conv.bias, lambda t: t[:2].copy_(t[:2].flip(0).clone())),
    'a parameter more': lambda m: m.register_parameter('more', nn.Parameter(torch.zeros(1)))}

@pytest.mark.parametrize('how', changes)
def test_every_byte_counts(how):
    m = Odd()
    with torch.no_grad(): m.a.bias.zero_()
    was = weights_checksum(m)
    changes[how](m)
    assert weights_checksum(m)!=was

def test_under_inference_mode():
    "No count of changes is kept there, and tensors made there can be read"
    m = Odd()
    was = weights_checksum(m)
    with torch.inference_mode():
        m.a.weight.data.add_(1)
        assert weights_checksum(m)!=was
        m.n = torch.tensor(9)
    now = weights_checksum(m)
    m.n = torch.tensor(9)
    assert weights_checksum(m)==now!=was

same = {'channels last': lambda m: m.to(memory_format=torch.channels_last), 'a copy': deepcopy, 'evaluation': lambda m: m.eval(), 'compiled': Compiled,
    'in parallel': nn.DataParallel, 'another view': lambda m: m.wide.__setattr__('data', m.wide.data.contiguous()) or m, 'frozen': lambda m: m.requires_grad_(False),
    'no longer shared': lambda m: m.b.__setattr__('weight', nn.Parameter(m.a.weight.detach().clone())) or m}

@pytest.mark.parametrize('how', same)
def test_how_it_lies_in_memory_does_not(how):
    m = Odd()
    was = weights_checksum(m)
    assert weights_checksum(same[how](m))==was

def test_a_compiled_part_is_the_part():
    m = nn.Sequential(Odd(), nn.Linear(2, 2))
    was = weights_checksum(m)
    m[0] = Compiled(m[0])
    assert weights_checksum(m)==was

# the test split

class Reads(Callback):
    "Counts the passes over pictures"
    n = 0
    def after_validate(self): self.n += 1

def truth(learn):
    "Accuracy on the test split, by the model alone"
    dls,data = learn.dls,learn.dls.data
    with torch.no_grad(): preds = torch.cat([learn.model.eval()(*b[:dls.n_inp]).argmax(1) for b in dls.test_dl(data['test'].index)])
    vocab = list(dls.vocab)
    return np.mean([vocab[p]==o for p,o in zip(preds.tolist(), data['test'].label)])

def cleaned(data): return data.drop(data['test'].index[::3])

def relabeled(data):
    items = data.items.copy()
    i = data['test'].index[:5]
    items.loc[i, ['label','family']] = items.loc[data['test'].index[-5:], ['label','family']].to_numpy()
    return fine_grained_data(items, root=data.root, levels=list(data.levels))

def moved(data):
    items = data.items.copy()
    items.loc[data['test'].index, ['x0','x1']] /= 2
    return fine_grained_data(items, root=data.root, levels=list(data.levels))

def other_families(data):
    items = data.items.copy()
    first = {o: i for i,o in enumerate(data.vocab)}
    items['family'] = [('A','B')[first[o]%2] for o in items.label.astype(str)]
    return fine_grained_data(items, root=data.root, levels=list(data.levels))

def another(data):
    "Other pictures of the same classes"
    new = fine_grained_data('toy_birds', families=2, species=2, per_class=4, size=32, seed=3)
    return fine_grained_data(new.items.assign(label=new.items.label.astype(str).replace(dict(zip(new.vocab, data.vocab)))), root=new.root,
        levels=list(new.levels))

others = {'size': lambda d: d.dls(**kw | dict(size=40)), 'shape': lambda d: d.dls(**kw | dict(size=(32,40))), 'crop': lambda d: d.dls(**kw, crop='box'),
    'margin': lambda d: d.dls(**kw, crop='box', margin=.5),
    'cleaned': lambda d: cleaned(d).dls(**kw), 'relabeled': lambda d: relabeled(d).dls(**kw), 'boxes': lambda d: moved(d).dls(**kw, crop='box'), 'families': lambda d: other_families(d).dls(**kw),
    'normalized': lambda d: d.dls(**kw, batch_tfms=Normalize.from_stats([.4]*3, [.2]*3, cuda=False)), 'another set': lambda d: another(d).dls(**kw)}

@pytest.fixture(scope='module')
def read(birds):
    "A learner that has read its test split"
    learn = learner(birds)
    learn.add_cb(Reads())
    learn.test()
    return learn

@pytest.mark.parametrize('what', others)
def test_other_loaders_are_another_question(read, birds, what):
    was,dls,n = read._test_reads,read.dls,read.reads.n
    try:
        if what in ('margin','boxes'): # beside the box cropped as usual
            read.dls = birds.dls(**kw, crop='box')
            read.test()
        before = read.reads.n
        read.dls = others[what](birds)
        assert remembered(read) is None
        got = read.test()
        assert read.reads.n==before+1 and got.top1.item()==pytest.approx(truth(read)) and got.pictures.item()==len(read.dls.data['test'])
        assert read.test().equals(got) and remembered(read).equals(got) and read.reads.n==before+1
        if what=='families':
            fams = read.dls.data.items.family.astype(str)
            fam = dict(zip(read.dls.data.items.label.astype(str), fams))
            preds,targs = read.get_preds(dl=read.dls.test_dl(read.dls.data['test'].index, with_labels=True))
            name = [str(o) for o in read.dls.vocab]
            assert got.family_accuracy.item()==pytest.approx(np.mean([fam[name[p]]==fam[name[t]] for p,t in zip(preds.argmax(1).tolist(), targs.tolist())]))
    finally: read._test_reads,read.dls = was,dls

@pytest.mark.parametrize('more', [dict(bs=3), dict(seed=7), dict(aug='strong'), dict(aug='none'), dict(min_scale=.3, flip=0.), dict(balanced=True)], ids=str)
def test_the_same_question_is_not_read_again(read, birds, more):
    dls,n = read.dls,read.reads.n
    try:
        read.dls = birds.dls(**kw | more)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter('always')
            got = read.test()
        assert read.reads.n==n and got.top1.item()==pytest.approx(truth(read)) and not [o for o in seen if 'test split' in str(o.message)]
    finally: read.dls = dls

def test_a_cut_that_is_changed_in_place(read):
    cut = read.dls.valid.after_item.fs[0]
    n = read.reads.n
    try:
        cut.size = (24,24)
        assert remembered(read) is None
    finally: cut.size = (32,32)
    assert remembered(read) is not None and read.reads.n==n

class Data(torch.optim.Optimizer):
    "Writes to `p.data`, as some do"
    def __init__(self, params, lr=.1, **kw): super().__init__(params, dict(lr=lr))
    def step(self, closure=None):
        for g in self.param_groups:
            for p in g['params']:
                if p.grad is not None: p.data = p.data-g['lr']*p.grad

class Plain(nn.Module):
    "No batch norm: nothing counts a change"
    def __init__(self, n):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n))
    def forward(self, x): return self.net(x.as_subclass(torch.Tensor))

def test_training_that_no_count_sees(birds):
    from fastai.optimizer import OptimWrapper
    torch.manual_seed(0)
    learn = Learner(birds.dls(**kw), Plain(4), loss_func=CrossEntropyLossFlat(), opt_func=lambda p, lr, **k: OptimWrapper(p, Data, lr=lr), cbs=Reads())
    with learn.no_bar(), learn.no_logging():
        learn.test()
        versions = [p._version for p in learn.model.parameters()]
        learn.fit(1, 1.)
        with pytest.warns(UserWarning, match='read 2 times'): got = learn.test()
    assert got.top1.item()==pytest.approx(truth(learn))
    assert learn.test().equals(got)

@pytest.mark.parametrize('how', ['data', 'inference', 'loaded', 'another model', 'a number', 'replaced'])
def test_other_weights(birds, how):
    learn = learner(birds)
    first,state = learn.test(),deepcopy(learn.model.state_dict())
    fc = learn.model.head.fc
    if how=='data': fc.weight.data.neg_()
    elif how=='inference':
        with torch.inference_mode(): fc.weight.data.neg_()
    elif how=='loaded': learn.model.load_state_dict({k: -v if k=='head.fc.weight' else v for k,v in state.items()})
    elif how=='another model':
        learn.model = deepcopy(learn.model)
        learn.model.head.fc.weight.data.neg_()
    elif how=='replaced': learn.model.head.fc.weight = nn.Parameter(-fc.weight.detach())
    else: learn.model.norm.mean.add_(.4)
    assert remembered(learn) is None
    with pytest.warns(UserWarning, match='read 2 times'): got = learn.test()
    assert got.top1.item()==pytest.approx(truth(learn))
    learn.model.load_state_dict(state) # as it was: it remembers
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        again = learn.test()
    assert again.equals(first) and not [o for o in seen if 'test split' in str(o.message)]

def test_what_a_user_does_to_the_frame_stays_with_the_user(read):
    a = read.test()
    was = a.top1.item()
    a['top1'] = 99
    assert read.test().top1.item()==was

def test_the_card_speaks_of_these_weights_and_this_data(birds, tmp_path):
    learn = learner(birds)
    learn.test()
    def card(): return (learn.save_bundle(tmp_path/'b')/'README.md').read_text()
    says = 'The test split has not been read with these weights'
    assert says not in card()
    learn.dls = cleaned(birds).dls(**kw)
    assert says in card()
    learn.dls = birds.dls(**kw)
    assert says not in card()
    learn.model.head.fc.weight.data.neg_()
    assert says in card()

# what no weight and no loader says

class Turned(Callback):
    "Shows the model its pictures upside down, also where it validates"
    def before_batch(self): self.learn.xb = (self.xb[0].flip(-2),)

class Negated(Callback):
    def after_pred(self): self.learn.pred = -self.pred

class Act(nn.Module):
    def __init__(self):
        super().__init__()
        self.f,self.o,self.scale,self._sign = torch.relu,dict(k=1.),torch.ones(3),1.
    times = 1.
    def sign(self): return self._sign*self.times
    def forward(self, x): return self.f(x)*self.o['k']*self.scale.mean()*self.sign()

class ActHead(nn.Module):
    def __init__(self, nf, n_out, drop=0.):
        super().__init__()
        self.fc,self.act = nn.Linear(nf, n_out),Act()
        self.parent = [self] # a way round, which a description must not follow for ever
    def forward(self, x): return self.fc(self.act(x-x.mean(1, keepdim=True)))

def upside(m): m.pool.forward = lambda x, **k: -x.amax((2,3))
acts = {'callback before a batch': lambda l: l.add_cb(Turned()), 'callback after a prediction': lambda l: l.add_cb(Negated()), 'function callback': lambda l: l.add_cb(Callback(after_pred=lambda cb: setattr(cb.learn, 'pred', -cb.pred))),
    'hook': lambda l: l.model.head.register_forward_hook(lambda m, i, o: -o), 'hook before': lambda l: l.model.head.register_forward_pre_hook(lambda m, i: (-i[0],)),
    'function': lambda l: setattr(l.model.head.act, 'f', torch.sign), 'dict': lambda l: l.model.head.act.o.update(k=-1.), 'tensor': lambda l: l.model.head.act.scale.neg_(),
    'private': lambda l: setattr(l.model.head.act, '_sign', -1.),
    'value of the class': lambda l: setattr(Act, 'times', -1.), 'method': lambda l: setattr(Act, 'sign', lambda self: -1.), 'forward': lambda l: upside(l.model)}

@pytest.mark.parametrize('how', acts)
def test_what_no_weight_says(birds, how, monkeypatch):
    "... is noticed by the test split and by embeddings: as a learner that remembers nothing says it"
    for k in ('times','sign'): monkeypatch.setattr(Act, k, getattr(Act, k)) # comes back afterwards
    torch.manual_seed(0)
    learn = fine_grained_learner(birds.dls(**kw), 'toy_resnet', head=ActHead)
    learn.remove_cb(learn.progress)
    learn.test(), learn.embeddings()
    acts[how](learn)
    got,rows = learn.test(),learn.embeddings()[0]
    learn._test_reads = {}
    retrieval._made.clear()
    assert got.equals(learn.test()) and torch.equal(rows, learn.embeddings()[0])

def test_a_changed_hook_is_seen_each_time(birds):
    learn,k = learner(birds),[1.]
    learn.model.head.register_forward_hook(lambda m, i, o: o*k[0])
    a = learn.test().top1.item()
    k[0] = -1.
    with torch.no_grad(): assert learn.test().top1.item()==pytest.approx(truth(learn))
    FineGrainedInterpretation.from_learner(learn).check_fresh() # the same hook, so it can be explained

def test_prototypes_follow_what_modules_hold(birds):
    torch.manual_seed(0)
    learn = fine_grained_learner(birds.dls(**kw), 'toy_resnet', head=ActHead)
    learn.remove_cb(learn.progress)
    protos = learn.prototypes()
    learn.model.head.act.scale = torch.ones(4) # what a module saw last
    protos.predict(0)
    learn.model.head.act.o['k'] = 2.
    with pytest.raises(FineGrainedError, match='make them anew'): protos.predict(0)

def test_doors_and_precision(birds):
    "Our own hooks leave the memory be; another precision is another question"
    learn = learner(birds)
    learn.model.body.put_after('layer2', nn.Conv2d(32, 32, 1))
    learn.add_cb(Reads())
    learn.test(), learn.test()
    assert learn.reads.n==1
    learn.add_cb(CPUAutocast())
    learn.test(), learn.test()
    assert learn.reads.n==2

class Slots:
    __slots__ = 'k'
    def __init__(self, k): self.k = k
    def __call__(self, x): return x*self.k

def keyed(k):
    def f(x, *, by=k): return x*by
    return f

def bound(code):
    "A method of the name `Made.f` that does `code`"
    space = {}
    exec(f'class Made:\n    def f(self, x): return {code}', space) # chkstyle: ignore
    return space['Made']().f

def reads(**around):
    "A function that reads `around` by name"
    exec('def f(x): return [g(o) for o in x]\ndef g(x): return x*k', around) # chkstyle: ignore
    return around['f']

def helped(code): return reads(k=1) if code is None else (lambda f: exec(f'def g(x): return {code}', f.__globals__) or f)(reads(k=1)) # chkstyle: ignore

def looks(code, **around):
    exec(f'def f(x): return x*{code}', around) # chkstyle: ignore
    return around['f']

def of_space(k): return looks('cfg.k', cfg=SimpleNamespace(k=k))
def of_object(k): return looks('o.k', o=Slots(k))
def of_class(k): return looks('C.k', C=type('C', (), dict(k=k)))
def of_table(k): return looks('df.k[0]', df=pd.DataFrame(dict(k=[k])))
def of_module(k):
    m = ModuleType('helpers')
    m.k = k
    return looks('m.k', m=m)
def classed(k): return type('Made', (), dict(k=k, __call__=lambda self, x: x*self.k))()

@pytest.mark.parametrize('make,a,b', [(keyed, 1, 2), (bound, 'x*2', 'x*3'), (Slots, 1, 2), (lambda k: reads(k=k), 1, 2), (lambda k: reads(k=torch.tensor(k)), 1, 2),
    (of_space, 1, 2), (of_object, 1, 2), (of_class, 1, 2), (of_table, 1, 2), (of_module, 1, 2), (classed, 1, 2), (helped, None, 'x+1')],
    ids=['default by name','code of a method','slots','a name around','a tensor around','a namespace around','an object around','a class around','a table around','a module around','a value of its class','a helper'])
def test_functions_tell_themselves_apart(make, a, b): assert digest(_says(make(a)))==digest(_says(make(a)))!=digest(_says(make(b)))

def nested(k):
    for _ in range(40): k = [k]
    return k
def of_packages(k):
    m = ModuleType('inner')
    m.k = k
    around = ModuleType('outer')
    around.inner = m
    return looks('outer.inner.k', outer=around)
def cells(k): return pd.DataFrame(dict(v=[np.r_[np.zeros(5000), k], torch.full((3000,), float(k))], w=['a',k]), index=pd.MultiIndex.from_tuples([('a',1),('b',k)]))

@pytest.mark.parametrize('make', [nested, of_packages, cells, lambda k: slice(0, k), lambda k: range(k), lambda k: deque([k]), lambda k: re.compile(f'a{k}'),
    lambda k: date(2026, 1, k), lambda k: torch.eye(3).mul(k).to_sparse(), lambda k: {1: {k}}.get, lambda k: pd.Index([k,'a'])],
    ids=['depth','packages','cells','slice','range','deque','pattern','date','sparse','a method in C','index'])
def test_objects_tell_themselves_apart(make): assert digest(_says(make(1)))==digest(_says(make(1)))!=digest(_says(make(2)))

def test_what_cannot_be_told_is_never_the_same():
    class Shut:
        def __getattribute__(self, k): raise RuntimeError(k)
    o = Shut()
    assert digest(_says(o))!=digest(_says(o))


# embeddings and what is made of them

@pytest.mark.parametrize('how', ['weights', 'size', 'rows', 'model'])
def test_embeddings_follow(birds, how, monkeypatch):
    learn = learner(birds)
    rows,targs = learn.embeddings()
    with monkeypatch.context() as m: # asked again, and of the other split: from memory
        learn.embeddings('valid')
        m.setattr(retrieval, 'embeddings_of', lambda *_: pytest.fail('the pictures were looked at again'))
        for split in ('train','valid','train'): learn.embeddings(split)
    if how=='weights': next(learn.model.body.parameters()).data.neg_()
    if how=='size': learn.dls = birds.dls(**kw | dict(size=48))
    if how=='rows': learn.dls = birds.drop(birds['train'].index[:4]).dls(**kw)
    if how=='model':
        learn.model = deepcopy(learn.model)
        next(learn.model.body.parameters()).data.neg_()
    new,t = learn.embeddings()
    x = torch.cat([b[0] for b in learn.dls.test_dl(list(learn.dls.train.dataset.items))])
    with torch.no_grad(): want = nn.functional.normalize(learn.model.eval().features(x.as_subclass(torch.Tensor)))
    torch.testing.assert_close(new, want, atol=1e-4, rtol=1e-4)
    assert len(new)==len(t)==len(learn.dls.train_ds) and (len(new)!=len(rows) or not torch.allclose(new, rows, atol=1e-3))

def test_what_a_user_does_to_embeddings_stays_with_the_user(birds):
    learn = learner(birds)
    was = {o: [t.clone() for t in learn.embeddings(o)] for o in ('train','valid')}
    protos,near,scores = learn.prototypes().embeddings,learn.retrieve(0, 3).df,learn.retrieval_metrics()
    for o in was:
        for t in learn.embeddings(o): t.zero_()
        for a,b in zip(learn.embeddings(o), was[o]): assert torch.equal(a, b)
    assert torch.equal(learn.prototypes().embeddings, protos) and learn.retrieve(0, 3).df.equals(near) and learn.retrieval_metrics().equals(scores)

def test_prototypes_of_a_learner_that_trained_on(birds):
    learn = learner(birds)
    protos = learn.prototypes()
    assert len(protos.predict(list(birds['valid'].index)))==len(birds['valid'])
    learn.model.head.fc.weight.data.neg_()
    with pytest.raises(FineGrainedError, match='make them anew'): protos.predict(0)

wrong = dict(order=(lambda birds: (lambda b: setattr(b, 'vocab', b.vocab[::-1]) or b)(birds.dls(**kw)), 'class 0 was'),
    name=(lambda birds: renamed(birds).dls(**kw), "and is 'Another'"),
    fewer=(lambda birds: birds.drop(birds.items.index[birds.items.label==birds.vocab[-1]]).dls(**kw), "and is 'no class'"),
    coarser=(lambda birds: birds.at_level('family').dls(**kw), 'class 0 was'))

def renamed(birds): return fine_grained_data(birds.items.assign(label=birds.items.label.replace(birds.vocab[0], 'Another')), root=birds.root, levels=birds.levels)
asked = dict(predict=lambda learn, tmp: learn.predict(learn.dls.data.path(0)), test=lambda learn, tmp: learn.test(),
    validate=lambda learn, tmp: learn.validate(),
    save_bundle=lambda learn, tmp: learn.save_bundle(tmp/'b'), interpretation=lambda learn, tmp: FineGrainedInterpretation.from_learner(learn),
    embeddings=lambda learn, tmp: learn.embeddings(), retrieve=lambda learn, tmp: learn.retrieve(0, 2),
    cam=lambda learn, tmp: cam(learn, [learn.dls.data.path(0)]), fit=lambda learn, tmp: learn.fit(1))

@pytest.mark.parametrize('how', wrong)
def test_a_learner_answers_for_its_own_classes(birds, how, tmp_path):
    learn = learner(birds)
    was,(get,said) = [learn.predict(birds.path(0))[0], learn.validate(), weights_checksum(learn.model), list(learn.cbs), learn.dls],wrong[how]
    learn.dls = get(birds)
    for ask in asked.values():
        with pytest.raises(FineGrainedError, match=said): ask(learn, tmp_path)
    assert not (tmp_path/'b').exists()
    learn.dls = was[-1]
    assert [learn.predict(birds.path(0))[0], learn.validate(), weights_checksum(learn.model), list(learn.cbs), learn.dls]==was

def test_a_learner_of_plain_fastai_has_no_note_of_classes(birds):
    learn = learner(birds)
    plain = Learner(learn.dls, learn.model, loss_func=CrossEntropyLossFlat(), cbs=[])
    plain.dls = wrong['order'][0](birds)
    with plain.no_bar(): assert len(plain.get_preds()[0])==len(birds['valid'])

def test_neighbours_belong_to_their_data(birds):
    learn = learner(birds)
    found = learn.retrieve(int(birds['valid'].index[0]), 2)
    own = found.dls.data.items.label[found.df['item'][0]]
    learn.dls = birds.drop(birds['train'].index[:4]).dls(**kw)
    found.show()
    assert own==found.df.label[0] and found.dls is not learn.dls

def test_probes_follow_loaders_and_model(birds):
    learn = learner(birds)
    fh,rows = FeatureHierarchy.from_learner(learn),list(birds['valid'].index)
    a = fh._rows(rows)
    assert fh._rows(rows) is a
    learn.dls = birds.dls(**kw | dict(size=48))
    b = fh._rows(rows)
    assert not np.allclose(a['conv1'], b['conv1'])
    learn.model = deepcopy(learn.model)
    next(learn.model.body.parameters()).data.neg_()
    assert fh.model is learn.model and not np.allclose(fh._rows(rows)['conv1'], b['conv1'])

@pytest.mark.parametrize('how', ['weights', 'loaders'])
def test_an_interpretation_does_not_explain_other_answers(birds, how, tmp_path):
    learn = learner(birds)
    interp = FineGrainedInterpretation.from_learner(learn)
    n = len(interp.most_confused())
    if how=='weights': learn.model.head.fc.weight.data.neg_()
    else: learn.dls = birds.dls(**kw | dict(size=48))
    a,b = interp.vocab[:2]
    for f in (lambda: interp.plot_top_losses(2), lambda: interp.plot_confused_pairs(1), lambda: interp.plot_pair(a, b), lambda: interp.to_html(tmp_path/'a.html'),
        lambda: interp.plot_errors(1)):
        with pytest.raises(FineGrainedError, match='make the interpretation anew'): f()
    assert len(interp.most_confused())==n and len(interp.per_class()) # what was counted stays

# what a number is about

def test_pictures_that_were_trained_on(birds):
    learn = learner(birds)
    paths = [birds.path(i) for i in birds['train'].index[:3]] + [birds.path(i) for i in birds['valid'].index[:2]]
    assert trained_on(learn, learn.dls.test_dl(paths))==3 and trained_on(learn, learn.dls.valid)==0
    other = fine_grained_data('toy_birds', families=2, species=2, per_class=4, size=32, seed=3).dls(**kw)
    assert trained_on(learn, other.train)==0 # the same row numbers, of other birds
    assert None not in items_of(learn.dls.train)
    with pytest.warns(UserWarning, match='training pictures'): interp = FineGrainedInterpretation.from_learner(learn, 0)
    with torch.no_grad(): want = torch.cat([learn.model.eval()(b[0]).argmax(1) for b in learn.dls.test_dl(list(learn.dls.train.dataset.items))])
    assert torch.equal(interp.preds, want) # cut as for validation, not augmented
    with pytest.warns(UserWarning, match='training pictures'): learn.calibrate(learn.dls.test_dl(birds['train'].index, with_labels=True))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        FineGrainedInterpretation.from_learner(learn)

def test_what_was_trained_on_before_other_loaders_came(birds):
    "The learner warns of pictures that it knows, whatever its training split is now; a search for a rate trains on nothing"
    def warned(f):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter('always')
            f()
        return [str(o.message) for o in seen if 'trained on' in str(o.message)]
    learn,again = learner(birds),birds.split(valid=.4, seed=9)
    with learn.no_logging():
        learn.lr_find(show_plot=False, num_it=3)
        assert not len(learn.trained_on.seen) and not warned(lambda: learn.fit_phases(1)) and not warned(learn.validate)
    known = set(birds['train'].path)
    learn.dls = again.dls(**kw)
    n = sum(o in known for o in again['valid'].path)
    assert 0<n<=trained_on(learn, learn.dls.valid)==n
    said, = warned(learn.validate)
    assert said.startswith(f'{n} of the {len(again["valid"])} pictures') and not warned(learn.validate) and not warned(learn.test)
    tested = len(again['test'])
    learn.dls.data.items['split'] = ['test' if o in known else s for o,s in zip(again.items.path, again.items.split)]
    said, = warned(learn.test)
    assert said.startswith(f'{len(known)} of the {len(known)+tested} pictures of the test split')

def test_a_fit_that_was_refused_trained_on_nothing(birds):
    learn = learner(birds)
    with learn.no_logging(), pytest.raises(FineGrainedError, match='wd=nan'): learn.fit(1, wd=float('nan'))
    assert not len(learn.trained_on.seen)

@pytest.mark.parametrize('name', [b'gr\xfcn.png', 'grün.png'.encode(), b'\xf0\x9f\x90\xa6.png'])
def test_names_of_files_that_are_no_text(birds, name, tmp_path):
    "A learner trains on them, notes them, goes on and says which they were"
    shutil.copytree(birds.root, tmp_path/'birds')
    data = fine_grained_data(birds.items.copy(), root=tmp_path/'birds')
    row = data['train'].index[0]
    try: os.rename(data.root/data.items.path[row], os.fsencode(data.root)+b'/'+name)
    except OSError: pytest.skip('this disk keeps no such names')
    data.items.loc[row,'path'] = os.fsdecode(name)
    learn = learner(data)
    with learn.no_logging(): learn.fit_phases(1, folder=tmp_path/'run')
    assert len(learn.trained_on.seen)==len(data['train']) and trained_on(learn, learn.dls.train)==len(learn.dls.train.items)
    check_same(run_marks(learner(data)), run_marks(learner(data)))
    assert len(learn.embeddings()[0])==len(learn.dls.train.items)

class Notes:
    "A transform of one's own that notes what it has seen, and changes nothing"
    n = 0
    def __call__(self, x):
        self.n += 1
        return x

def test_notes_of_a_transform_are_no_other_question(birds):
    learn = learner(birds, batch_tfms=Notes())
    a = learn.test()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        b = learn.test()
    assert a.equals(b) and remembered(learn).equals(a)

def test_loaders_of_which_nothing_is_known(birds):
    "Whatever deals batches can train and validate; nothing is noted of it"
    class Same:
        def __init__(self, dl): self.batches,self.device,self.bs = list(dl),'cpu',dl.bs
        def __len__(self): return len(self.batches)
        def __iter__(self): return iter(self.batches)
    learn = learner(birds)
    learn.dls.loaders = [Same(o) for o in learn.dls.loaders]
    with learn.no_logging(): learn.fit(1)
    assert not len(learn.trained_on.seen) and trained_on(learn, learn.dls.valid)==0

def test_labels_that_were_changed_in_the_table(birds):
    learn = learner(birds._new(birds.items.copy()))
    rows = learn.dls.data['test'].index
    learn.dls.data.items.loc[rows,'label'] = learn.dls.data['test'].label.to_numpy()[::-1]
    with pytest.raises(FineGrainedError, match='make them anew'): learn.test()
    learn.dls = learn.dls.data.dls(**kw)
    assert learn.test().top1.item()==pytest.approx(truth(learn))

def test_a_temperature_is_not_measured_where_it_was_fitted(birds):
    learn = learner(birds)
    rows = birds['valid'].index
    half,rest = (learn.dls.test_dl(o, with_labels=True) for o in (rows[::2], rows[1::2]))
    learn.model.head.fc.weight.data.mul_(5)
    assert learn.calibrate(half)>1
    with pytest.warns(UserWarning, match=f'fitted on {len(rows[::2])} of these {len(rows)} pictures'): FineGrainedInterpretation.from_learner(learn).ece()
    ax = FineGrainedInterpretation.from_learner(learn, dl=half).plot_calibration(bins=4)
    assert 'in 4 bins' in ax.get_title() and 'fitted to' in ax.get_title()
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        other = FineGrainedInterpretation.from_learner(learn, dl=rest)
        other.ece()
    assert 'fitted' not in other.plot_calibration().get_title()

@pytest.mark.parametrize('bins', (3,7))
def test_the_title_is_of_the_bins_that_are_drawn(birds, bins):
    interp = FineGrainedInterpretation.from_learner(learner(birds))
    p,right = interp.probs.numpy(),(interp.preds==interp.targs).numpy()
    at = np.minimum(np.ceil(p*bins).clip(1), bins)
    want = sum((at==k).mean()*abs(p[at==k].mean()-right[at==k].mean()) for k in np.unique(at))
    assert interp.ece(bins)==pytest.approx(want, abs=1e-6) and f'{want:.1%} in {bins} bins' in interp.plot_calibration(bins).get_title()

def test_equal_losses_speak_for_no_temperature(birds):
    learn = learner(birds)
    learn.model.head.fc.weight.data.zero_(), learn.model.head.fc.bias.data.zero_()
    learn.model.temperature.fill_(1.5)
    assert learn.calibrate()==1.5==learn.model.temperature.item()
    sure = torch.eye(4)*50
    for scores,y in ((sure, torch.arange(4)), (sure, (torch.arange(4)+1)%4), (torch.eye(4)*1e30, torch.arange(4)), (torch.zeros(4,4)+1e-30, torch.arange(4))):
        t = _lowest(_losses_at(scores, y).double().mean(0))
        assert t is None or .05<t<20
    with pytest.raises(FineGrainedError, match='not finite'): _lowest(_losses_at(torch.full((4,4), torch.nan), torch.arange(4)).double().mean(0))

def test_labels_at_random_are_not_told_apart(birds):
    "The network knows its training pictures by heart, and no probe may say so"
    data = fine_grained_data('toy_birds', families=1, species=4, per_class=40, size=32).split(valid=.5, seed=0)
    items = data.items.copy()
    items['label'] = np.random.default_rng(0).permutation(items.label.astype(str).to_numpy())
    data = fine_grained_data(items, root=data.root)
    torch.manual_seed(0)
    learn = fine_grained_learner(data.dls(size=32, bs=16, num_workers=0, device='cpu', seed=0, aug='none'), 'toy_resnet')
    with learn.no_bar(), learn.no_logging(): learn.fit(12, 3e-3)
    with torch.no_grad(): right = torch.cat([learn.model.eval()(x).argmax(1)==y for x,y in learn.dls.test_dl(data['train'].index, with_labels=True)])
    assert right.float().mean()>.8 # it has learned them
    v = list(data.vocab)
    got = FeatureHierarchy.from_learner(learn).linear_probes([(v[0],v[1]), (v[2],v[3])])
    n = got.pictures.sum()
    assert n>=50 and ((got.drop(columns='pictures').mean()-.5).abs()<3*.5/n**.5).all(), got

def test_a_pair_without_validation_pictures(birds):
    a,b = list(birds.vocab)[:2]
    data = birds.drop(birds['valid'].index[birds['valid'].label==a])
    with pytest.raises(FineGrainedError, match=f'no validation pictures of {a}'): FeatureHierarchy.from_learner(learner(data)).linear_probes([(a,b)])

def test_pictures_that_were_replaced(birds, tmp_path):
    "The same file name with another picture in it is another question"
    import shutil
    from fgvc_fast.data.table import FineGrainedData
    from PIL import Image
    shutil.copytree(birds.root, tmp_path/'birds')
    data = FineGrainedData(birds.items, tmp_path/'birds', levels=birds.levels)
    learn = learner(data)
    path = data.path(data['valid'].index[0])
    learn.test()
    rows,interp = learn.embeddings('valid')[0],FineGrainedInterpretation.from_learner(learn)
    for split in ('valid','test'):
        for i in data[split].index: Image.new('RGB', (32,32), 'white').save(data.path(i))
    assert remembered(learn) is None and learn.test().top1.item()==pytest.approx(truth(learn))
    assert not torch.equal(learn.embeddings('valid')[0], rows)
    with pytest.raises(FineGrainedError, match='pictures are others'): interp.plot_top_losses(1)
    by_path = learn.dls.test_dl([path])
    key = loader_key(by_path)
    Image.new('RGB', (32,32), 'black').save(path)
    assert loader_key(by_path)!=key
