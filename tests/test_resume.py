"A run that was killed goes on in a new process, from plain files, to the curve of one that was left alone"
import json, os, shutil, signal, subprocess, sys, textwrap
import numpy as np, pandas as pd, pytest
from fgvc_fast.core import FineGrainedError

pytestmark = pytest.mark.usefixtures('one_thread')

script = textwrap.dedent('''
    import os, signal, sys, json, torch
    torch.set_num_threads(1)
    from fgvc_fast.all import *
    kind,folder,out,kill = sys.argv[1:5]
    data = fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=48, seed=0)
    set_seed(0)
    learn = fine_grained_learner(data.dls(size=32, bs=8, seed=3 if kind=='grows' else None, num_workers=0), 'toy_resnet', metrics=accuracy, drop=.2, cbs=Accumulate(2) if kind=='callbacks' else None)
    plans = dict(grows=[Phase('head', 2, lr=1e-2, cached_views=2), Phase('all', 2, lr=2e-3, size=48, freeze_bn=True)],
        callbacks=[Phase('head', 1), Phase('all', 3, lr=slice(1e-4,5e-3), reinit=1, patience=2)])
    cbs = [EMA(.9), L2SP(.1), MixUp()] if kind=='callbacks' else []
    class Kill(Callback):
        order,run_valid = 300,False
        def after_batch(self):
            if len(self.recorder.losses)==int(kill): os.kill(os.getpid(), signal.SIGKILL)
    with learn.no_bar(), learn.no_logging():
        if kill=='resume':
            torch.rand(5) # a process of its own has other random numbers
            learn.fit_phases(resume=folder, cbs=cbs)
        else: learn.fit_phases(plans[kind], cbs=cbs+[Kill()]*(kill!='0'), folder=folder)
    json.dump(dict(losses=[float(o) for o in learn.recorder.losses], log=learn.phase_log.drop(columns='seconds').values.tolist(), w=[p.double().sum().item() for p in learn.model.parameters()]), open(out, 'w'))
''')

def start(tmp_path, kind, folder, kill):
    (tmp_path/'train.py').write_text(script)
    out = tmp_path/f'{kill}.json'
    env = os.environ | dict(OMP_NUM_THREADS='1')
    res = subprocess.run([sys.executable, '-W', 'ignore', str(tmp_path/'train.py'), kind, str(folder), str(out), str(kill)], capture_output=True, text=True, env=env, timeout=1800)
    return res,json.loads(out.read_text()) if out.exists() else None

@pytest.mark.parametrize('kind,kill', [('grows', 11), ('callbacks', 9)])
def test_killed_and_resumed(tmp_path, kind, kill):
    res,whole = start(tmp_path, kind, tmp_path/'whole', 0)
    assert res.returncode==0, res.stderr[-3000:]
    res,_ = start(tmp_path, kind, tmp_path/'run', kill)
    assert res.returncode==-signal.SIGKILL, res.stderr[-3000:]
    kept = sorted(o.name for o in (tmp_path/'run').iterdir() if o.suffix!='.safetensors')
    assert kept==['lock','phase_log.csv','snapshot.json'] # no pickle; a lock that nobody holds
    res,again = start(tmp_path, kind, tmp_path/'run', 'resume')
    assert res.returncode==0, res.stderr[-3000:]
    np.testing.assert_allclose(again['losses'], whole['losses'], atol=1e-5)
    np.testing.assert_allclose(again['log'], whole['log'], atol=1e-4)
    np.testing.assert_allclose(again['w'], whole['w'], atol=1e-3, rtol=1e-4)
    assert pd.read_csv(tmp_path/'run'/'phase_log.csv').shape==pd.read_csv(tmp_path/'whole'/'phase_log.csv').shape

def learner(seed=0, **kwargs):
    from fgvc_fast.all import fine_grained_data, fine_grained_learner, set_seed
    data = fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=48, seed=0)
    set_seed(seed)
    learn = fine_grained_learner(data.dls(size=32, bs=8, num_workers=0), 'toy_resnet', **kwargs)
    learn.remove_cb(learn.progress)
    return learn

def fit(learn, *args, **kwargs):
    with learn.no_logging(): learn.fit_phases(*args, **kwargs)
    return learn

def test_bad_folders(tmp_path):
    from fgvc_fast.all import Phase
    learn = fit(learner(), 1, folder=tmp_path/'run')
    with pytest.raises(FineGrainedError, match='there is a run in'): fit(learn, 1, folder=tmp_path/'run')
    with pytest.raises(FineGrainedError, match='no file snapshot.json'): fit(learn, resume=tmp_path/'elsewhere')
    with pytest.raises(FineGrainedError, match='leave `folder` out'): fit(learn, resume=True, folder=tmp_path/'other')
    with pytest.raises(FineGrainedError, match='leave `plan` out'): fit(learn, Phase('head', 1), resume=tmp_path/'run')
    with pytest.raises(FineGrainedError, match=r'model \(toy_resnet avg linear then, toy_resnet cov linear now\)'): fit(learner(pool='cov'), resume=tmp_path/'run') # and not half of it
    ts, = (tmp_path/'run').glob('*.safetensors')
    ts.write_bytes(ts.read_bytes()[:-9])
    with pytest.raises(FineGrainedError, match='is damaged'): fit(learn, resume=tmp_path/'run')

def small(folder, **kwargs):
    "Two epochs of a learner of birds in `folder`, and what may be changed of data and learner"
    from fgvc_fast.all import CrossEntropyLossFlat, fine_grained_learner, set_seed
    kwargs = dict(data=None, loss_func=CrossEntropyLossFlat(), dls={}, cbs=None) | kwargs
    data,dls,cbs = kwargs.pop('data') or birds(),kwargs.pop('dls'),kwargs.pop('cbs')
    set_seed(0)
    learn = fine_grained_learner(data.dls(**dict(size=32, bs=8, num_workers=0, seed=1) | dls), 'toy_resnet', **kwargs)
    learn.remove_cb(learn.progress)
    return learn

def birds():
    from fgvc_fast.all import fine_grained_data
    return fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=48, seed=0)

def test_one_run_in_a_folder(tmp_path):
    "Who would write where another run writes is told so, before anything is read or trained"
    from filelock import FileLock
    learn = fit(learner(), 1, folder=tmp_path/'run')
    was = (tmp_path/'run'/'snapshot.json').read_bytes()
    (tmp_path/'new').mkdir()
    for folder,kwargs in ((tmp_path/'run', dict(resume=tmp_path/'run')), (tmp_path/'new', dict(plan=1, folder=tmp_path/'new'))):
        with FileLock(folder/'lock'), pytest.raises(FineGrainedError, match='Another process trains in'): fit(learn, **kwargs)
    assert (tmp_path/'run'/'snapshot.json').read_bytes()==was and not (tmp_path/'new'/'snapshot.json').exists()
    fit(learner(), 1, folder=tmp_path/'new')
    assert 'lock' not in [o.name for o in (tmp_path/'new').iterdir()]
    (tmp_path/'run'/'phase_log.csv').unlink()
    (tmp_path/'run'/'phase_log.csv').mkdir()
    with pytest.raises(FineGrainedError, match='phase_log.csv.* cannot be written'): fit(learner(), resume=tmp_path/'run')

def test_killed_between_two_phases(tmp_path, monkeypatch):
    "A run goes on to the same losses from whatever it wrote last, also an average of weights whose phase was over"
    from fgvc_fast.all import EMA, Phase
    from fgvc_fast.train.runner import PhaseRun
    write,n = PhaseRun.write,[0]
    def kept(self, learn):
        write(self, learn)
        n[0] += 1
        shutil.copytree(self.folder, tmp_path/f'{n[0]}')
    def go(**kwargs):
        learn = small(None)
        return fit(learn, **kwargs, cbs=EMA(.5)).phase_log.drop(columns='seconds')
    with monkeypatch.context() as m:
        m.setattr(PhaseRun, 'write', kept)
        whole = go(plan=[Phase('head', 1), Phase('all', 1)], folder=tmp_path/'run')
    assert n[0]==5 # begun, an epoch; begun, an epoch; the end
    for i in (2, 4): pd.testing.assert_frame_equal(go(resume=tmp_path/f'{i}'), whole)

def changed(**cols):
    "The birds with other columns: a function of the old one each"
    data = birds()
    data.items = data.items.assign(**{k: f(data.items) for k,f in cols.items()})
    return data

def reversed_classes(t): return pd.Categorical(t.label.astype(str), categories=sorted(t.label.astype(str).unique())[::-1])
def shuffled(t): return t.label.to_numpy()[np.random.default_rng(0).permutation(len(t))]
def other_split(t): return t.split.to_numpy()[::-1].copy()
def renamed(t): return t.label.astype(str)+' X'
def other_rows(t): return t.path.to_numpy()[::-1].copy()

def given():
    import torch
    from fgvc_fast.all import AddLoss, EMA, SGD, Adam, Focal, Mix, OptimWrapper, CrossEntropyLossFlat, by_layer, partial
    w = torch.tensor([1.,2.,3.,4.])
    return dict(reversed=('classes', dict(data=changed(label=reversed_classes))), renamed=('classes', dict(data=changed(label=renamed))),
        labels=('labels', dict(data=changed(label=shuffled))),
        split=('training pictures; validation pictures', dict(data=changed(split=other_split))), rows=('training pictures', dict(data=changed(path=other_rows))),
        seed=(r'seed of the loaders \(1 then, 2 now\)', dict(dls=dict(seed=2))), unseeded=(r'seed of the loaders \(1 then, None now\)', dict(dls=dict(seed=None))), bs=(r'bs of the loaders \(8 then, 6 now\)', dict(dls=dict(bs=6))),
        aug=('aug of the loaders', dict(dls=dict(aug='strong'))), flip=(r'flip of the loaders \(0.5 then, 0.0 now\)', dict(dls=dict(flip=0.))), scale=('min_scale of the loaders', dict(dls=dict(min_scale=.3))),
        crop=('crop of the loaders', dict(dls=dict(crop='box'))), balanced=('balanced of the loaders', dict(dls=dict(balanced=True))),
        opt=(r'optimizer \(Adam then, SGD now\)', dict(opt_func=SGD)), eps=('optimizer options', dict(opt_func=partial(Adam, eps=.1))), sqr_mom=('optimizer options', dict(opt_func=partial(Adam, sqr_mom=.5))),
        torch_opt=('optimizer', dict(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW))), wd=('weight decay', dict(wd=.5)), moms=('momentum', dict(moms=(.5,.5,.5))),
        bn=('weight decay', dict(wd_bn_bias=True)),
        loss=('loss', dict(loss_func=Focal())), smooth=('loss', dict(loss_func=CrossEntropyLossFlat(label_smoothing=.2))),
        weights=('loss', dict(loss_func=CrossEntropyLossFlat(weight=w))), own=('loss', dict(loss_func=lambda x, y: x.mean())),
        head=('model', dict(head='cosine')), drop=('model', dict(drop=.3)), pool=('model', dict(pool='gem')), groups=('parameter groups', dict(splitter=by_layer)), mix=(r'callbacks \(none then, Mix now\)', dict(cbs=Mix(mixup=.4))),
        ema=('callbacks', dict(cbs=EMA())), more=('callbacks', dict(cbs=AddLoss('center'))), amp=('precision', dict(amp='bf16')))

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')/'run'
    fit(small(folder), 2, folder=folder)
    return folder

def test_another_training_is_refused_by_name(run):
    "... before anything of the learner has changed"
    import torch
    for k,(what,kwargs) in given().items():
        cbs = kwargs.pop('cbs', None)
        learn = small(run, **kwargs)
        was,dls,names = {k: v.clone() for k,v in learn.model.state_dict().items()},learn.dls,[o.name for o in learn.cbs]
        with pytest.raises(FineGrainedError, match=what): fit(learn, resume=run, cbs=cbs)
        assert (all(torch.equal(v, was[n]) for n,v in learn.model.state_dict().items()) and learn.dls is dls and [o.name for o in learn.cbs]==names
            and not hasattr(learn, '_phase_run')), k

def test_other_weights_of_the_loaders_are_refused(tmp_path):
    from fgvc_fast.all import fine_grained_learner
    data = birds()
    def weighted(w):
        learn = fine_grained_learner(data.block(32).weighted_dataloaders(None, w, bs=8, num_workers=0, seed=1), 'toy_resnet')
        learn.remove_cb(learn.progress)
        return learn
    w = np.arange(len(data))%3+1.
    fit(weighted(w), 2, folder=tmp_path/'run')
    with pytest.raises(FineGrainedError, match='wgts of the loaders'): fit(weighted(w[::-1]), resume=tmp_path/'run')
    with pytest.raises(FineGrainedError, match='wgts of the loaders'): fit(small(None), resume=tmp_path/'run')
    fit(weighted(w*2), resume=tmp_path/'run') # which says the same

def test_rates_are_those_of_the_run(tmp_path):
    fit(small(None), 2, lr=1e-3, wd=.1, folder=tmp_path/'run')
    with pytest.raises(FineGrainedError, match='lr=0.001 of the run'): fit(small(None), resume=tmp_path/'run', lr=1e-2)
    with pytest.raises(FineGrainedError, match='wd=0.1 of the run'): fit(small(None), resume=tmp_path/'run', wd=.2)
    fit(small(None), resume=tmp_path/'run', lr=1e-3, wd=.1)
    (tmp_path/'file').write_text('')
    for bad in (dict(folder=tmp_path/'file'), dict(folder=''), dict(folder=3), dict(resume=''), dict(resume=3), dict(lr='x'), dict(lr=0), dict(lr=float('nan')),
        dict(wd=float('nan')), dict(wd=-1), dict(cbs='x')):
        with pytest.raises(FineGrainedError, match=f'{next(iter(bad))}='): fit(small(None), **dict(plan=None if 'resume' in bad else 1) | bad)

def test_the_same_is_taken(tmp_path):
    "Made a second time, at another place, with other workers, and described by objects of its own"
    import shutil, torch
    from fgvc_fast.all import Adam, CrossEntropyLossFlat, FineGrainedData, Focal, OptimWrapper, partial, AddLoss, EMA, Mix
    def scaled(k): return lambda x, y: k*torch.nn.functional.cross_entropy(x, y)
    def weighted(): return CrossEntropyLossFlat(weight=torch.tensor([1.,2.,3.,4.]))
    data = birds()
    shutil.copytree(data.root, tmp_path/'moved')
    moved = FineGrainedData(data.items.copy(), tmp_path/'moved', levels=data.levels, parts=data.parts, card=data.card)
    makes = [lambda: dict(loss_func=weighted(), opt_func=partial(Adam, eps=1e-3)), lambda: dict(loss_func=scaled(2)),
        lambda: dict(loss_func=partial(torch.nn.functional.cross_entropy, label_smoothing=.1), opt_func=partial(OptimWrapper, opt=torch.optim.AdamW, eps=1e-6)),
        lambda: dict(loss_func=Focal(weight=[1.,2,3,4]), opt_func=lambda ps, lr: Adam(ps, lr, eps=1e-4))]
    for i,make in enumerate(makes):
        cbs = (lambda: [AddLoss('center', .01), EMA(.9), Mix(mixup=.4, cutmix=1.)]) if i==0 else lambda: None
        fit(small(None, **make()), 1, folder=tmp_path/f'run{i}', cbs=cbs())
        learn = fit(small(None, data=moved, dls=dict(num_workers=1, cache=False), **make()), resume=tmp_path/f'run{i}', cbs=cbs())
        assert len(learn.phase_log)==1
        if i==1:
            with pytest.raises(FineGrainedError, match='loss'): fit(small(None, loss_func=scaled(3)), resume=tmp_path/'run1')

def test_a_run_of_this_kernel_is_looked_at_too():
    from stops import StopAt
    from fgvc_fast.all import CrossEntropyLossFlat, SGD
    learn = fit(small(None), 3, cbs=StopAt('before_validate', 2))
    own = learn.dls
    for k,other,what in (('dls', changed(label=reversed_classes).dls(32, bs=8, num_workers=0, seed=1), 'classes'),
        ('dls', changed(split=other_split).dls(32, bs=8, num_workers=0, seed=1), 'training pictures'),
            ('loss_func', CrossEntropyLossFlat(label_smoothing=.3), 'loss'), ('opt_func', SGD, 'optimizer'), ('wd', .3, 'weight decay')):
        was = getattr(learn, k)
        setattr(learn, k, other)
        with pytest.raises(FineGrainedError, match=what): fit(learn, resume=True)
        setattr(learn, k, was)
    learn.dls = own
    assert len(fit(learn, resume=True, cbs=[]).phase_log)==3

def test_snapshots_of_before_are_taken_with_a_line(run, tmp_path, capsys):
    from fgvc_fast.train.checkpoint import read_snapshot, write_snapshot
    o = read_snapshot(run)
    o.pop('marks'), o['snap'].pop('scaler')
    write_snapshot(tmp_path, o)
    fit(small(None), resume=tmp_path)
    assert 'did not note data, loss and optimiser' in capsys.readouterr().out
    with pytest.raises(FineGrainedError, match='batches an epoch'): fit(small(None, dls=dict(bs=4)), resume=tmp_path)

def half_precision(**kwargs):
    "A small learner that trains in float16 with a scaler of gradients, on the CPU"
    import torch
    from fgvc_fast.all import AMPMode, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, MixedPrecision
    from torch.utils.data import TensorDataset
    class CPUHalf(MixedPrecision):
        order = MixedPrecision.order
        def before_fit(self):
            super().before_fit()
            self.autocast,self.learn.scaler = torch.autocast('cpu', torch.float16),torch.amp.GradScaler('cpu', init_scale=2.**24, growth_interval=3, enabled=True)
    torch.manual_seed(0)
    y = torch.arange(32)%2
    ds = TensorDataset(torch.randn(32, 4)+y[:,None], y)
    learn = Learner(DataLoaders(*[DataLoader(ds, bs=8, num_workers=0) for _ in range(2)]), torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(),
        torch.nn.Linear(8, 2)), loss_func=CrossEntropyLossFlat(), lr=.01)
    learn.remove_cb(learn.progress)
    learn.add_cb(CPUHalf(AMPMode.BF16))
    return learn

def test_the_scale_of_float16_goes_on(tmp_path):
    from stops import StopAt
    from fgvc_fast.all import Callback, Phase
    class Scales(Callback):
        order = 300
        def __init__(self): self.seen = []
        def before_batch(self):
            if self.training: self.seen.append((self.scaler.get_scale(), self.scaler._get_growth_tracker()))
    whole,seen = half_precision(),Scales()
    plan = Phase('all', 5, lr=1e-2)
    fit(whole, plan, cbs=seen)
    assert len({s for s,_ in seen.seen})>2, 'the scale moved'
    for how in ('memory','folder'):
        folder = tmp_path/how if how=='folder' else None
        learn,a,b = half_precision(),Scales(),Scales()
        fit(learn, plan, cbs=[a, StopAt('before_validate', 3, training=None)], folder=folder)
        if folder is not None: learn = half_precision()
        fit(learn, resume=folder or True, cbs=b)
        n = len(whole.dls.train)
        assert b.seen==seen.seen[2*n:] and b.seen[0]!=(2.**24, 0)
        assert [float(o) for o in learn.recorder.losses]==[float(o) for o in whole.recorder.losses]

def test_features_of_one_pass_in_a_phase():
    from fgvc_fast.all import Callback, Phase
    seen = []
    class Look(Callback):
        def before_batch(self): seen.append(self.model.body.training)
    learn = learner()
    calls = []
    learn.model.body.register_forward_hook(lambda *_: calls.append(1))
    fit(learn, [Phase('head', 5, lr=1e-2, cached_views=1), Phase('all', 1)], cbs=Look())
    n,v = len(learn.dls.train),len(learn.dls.valid)
    assert len(calls)<5*(n+v) # one pass, some probes, and the last epoch; not five epochs
    assert learn.dls.one_batch()[0].ndim==4
    with pytest.raises(FineGrainedError, match='more than the head trains'): fit(learn, Phase('all', 1, cached_views=1))

def test_what_weights_do_not_say_is_refused_by_name(run, tmp_path):
    from fgvc_fast.all import Callback
    class Flip(Callback):
        "Turns the pictures that are learned from upside down"
        def __init__(self, side=-2): self.side = side
        def before_batch(self): self.learn.xb = (self.xb[0].flip(self.side),)
    class Watch(Callback):
        def after_batch(self): pass
    class Straight(Flip):
        def before_batch(self): pass
    def hooked(learn, k=-1): return learn.model.head.register_forward_hook(lambda m, i, o: o*k)
    def refused(what, change=lambda learn: None, folder=run, **kwargs):
        learn = small(folder, **kwargs)
        change(learn)
        with pytest.raises(FineGrainedError, match=what): fit(learn, resume=folder)
    refused('layers', output_stride=8)
    refused(r'hooks on the model \(none then, head now\)', hooked)
    refused(r'callbacks of your own \(none then, Flip now\)', lambda o: o.add_cb(Flip()))
    refused('callbacks of your own', lambda o: o.add_cb(Callback(after_loss=lambda cb: None)))
    refused('precision by callbacks', lambda o: o.to_fp16())
    refused('layers', lambda o: setattr(o.model.body.model.conv1[3], 'dilation', (2,2)))
    learn = small(None)
    learn.add_cb(Flip()), hooked(learn)
    fit(learn, 1, folder=tmp_path/'run')
    for cb,k in ((Flip(-1), -1), (Straight(), -1), (Flip(), 2)): refused('callbacks of your own|hooks on the model', lambda o: (o.add_cb(cb), hooked(o, k)), tmp_path/'run')
    again = small(None)
    again.add_cbs([Flip(), Watch()]), hooked(again) # made anew, the same; and who only looks on
    assert len(fit(again, resume=tmp_path/'run').phase_log)==1

own = '''
import torch
from fastai.vision.all import RandTransform, TensorImage
from torch.nn import functional as F
ALPHA = 0.
class Module(torch.nn.Module):
    def forward(self, x, y): return F.cross_entropy(x, y)
class Object:
    y_int = True
    def __init__(self, a=0.): self.alpha_ = a
    def __call__(self, x, y, **kwargs): return F.cross_entropy(x, y, label_smoothing=self.alpha_, **kwargs)
class Child(Module): pass
class Flipped(RandTransform):
    split_idx = 0
    def encodes(self, x:TensorImage): return 1-x
def scaled(x): return x*1
def reads(x, y): return F.cross_entropy(x, y, label_smoothing=ALPHA)
def calls(x, y): return F.cross_entropy(scaled(x), y)
def chooses(x, y): return F.cross_entropy(x, y) if str(x.dtype) not in {'a','b','c','d','e','f'} else x.sum()
'''
makes = dict(Module=lambda o: dict(loss_func=o.Module()), Child=lambda o: dict(loss_func=o.Child()), Object=lambda o: dict(loss_func=o.Object()),
    reads=lambda o: dict(loss_func=o.reads), calls=lambda o: dict(loss_func=o.calls),
    chooses=lambda o: dict(loss_func=o.chooses), Flipped=lambda o: dict(dls=dict(batch_tfms=o.Flipped())))
edits = dict(Module=('F.cross_entropy(x, y)\nclass Object', 'F.cross_entropy(x, y)*2\nclass Object'), Object=('a=0.', 'a=.5'), reads=('ALPHA = 0.', 'ALPHA = .5'), calls=('x*1', 'x*2'), chooses=("'f'}", "'g'}"), Flipped=('1-x', '2-x'))
edits['Child'] = edits['Module']

def own_code(tmp_path, monkeypatch, text):
    "What the user has written in a file of their own, as it is now"
    import importlib.util
    path = tmp_path/f'own{len(list(tmp_path.glob("own*.py")))}.py'
    path.write_text(text)
    spec = importlib.util.spec_from_file_location('own_losses', path)
    mod = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'own_losses', mod)
    spec.loader.exec_module(mod)
    return mod

@pytest.mark.parametrize('kind', makes)
def test_code_of_ones_own_that_was_edited_is_named(tmp_path, monkeypatch, kind):
    from fgvc_fast.train.marks import check_same, run_marks
    def marks(text): return run_marks(small(None, **makes[kind](own_code(tmp_path, monkeypatch, text))))
    was,(a,b) = marks(own),edits[kind]
    check_same(was, marks(own+'\n# a remark'))
    assert own.count(a)==1
    with pytest.raises(FineGrainedError, match='tfms of the loaders' if kind=='Flipped' else 'loss'): check_same(was, marks(own.replace(a, b)))

more = '''
from fastai.callback.core import Callback
from types import SimpleNamespace
cfg,THICK = SimpleNamespace(g=1.),3
class Hidden(torch.nn.Module):
    k = 1.
    def __init__(self, t=4.):
        super().__init__()
        self._t = t
    def forward(self, x, y): return F.cross_entropy(x*self._t*self.k, y)
class Noise(Callback):
    std = .1
    def __init__(self, strength=.5): self.amount,self.seen,self.n = strength*2,[],0
    def before_batch(self):
        self.n += 1
        self.seen.append(self.n)
        self.learn.xb = (self.xb[0]+self.amount*self.std,)
class Held:
    g = 2.
def spaced(x, y): return F.cross_entropy(x*cfg.g*Held.g, y)
'''
@pytest.mark.parametrize('kind,a,b', [('Hidden','t=4.','t=2.'), ('Hidden','k = 1.','k = 2.'), ('Noise','strength=.5','strength=.7'), ('Noise','std = .1','std = .2'), ('spaced','g=1.','g=3.'), ('spaced','g = 2.','g = 3.')])
def test_values_that_ones_own_code_holds_are_compared(tmp_path, monkeypatch, kind, a, b):
    from fgvc_fast.train.marks import check_same, run_marks
    def marks(text):
        made = getattr(own_code(tmp_path, monkeypatch, text), kind)
        learn = small(None, **{} if kind=='Noise' else dict(loss_func=made if kind=='spaced' else made()))
        if kind=='Noise': learn.add_cb(made())
        return run_marks(learn)
    was = marks(own+more)
    check_same(was, marks(own+more))
    assert more.count(a)==1
    with pytest.raises(FineGrainedError, match='callbacks of your own' if kind=='Noise' else 'loss'): check_same(was, marks(own+more.replace(a, b)))

head = '''
class Head(torch.nn.Module):
    k = 1.
    def __init__(self, nf, n):
        super().__init__()
        self.lin = torch.nn.Linear(nf, n)
    def forward(self, x): return self.lin(x)*self.k
'''
@pytest.mark.parametrize('a,b', [('*self.k','*self.k+1'), ('k = 1.','k = 2.')])
def test_modules_of_ones_own_are_compared(tmp_path, monkeypatch, a, b):
    from fgvc_fast.train.marks import check_same, run_marks
    def marks(text):
        learn = small(None)
        learn.model.head = own_code(tmp_path, monkeypatch, own+text).Head(4, 4)
        return run_marks(learn)
    was = marks(head)
    check_same(was, marks(head))
    with pytest.raises(FineGrainedError, match='modules of your own'): check_same(was, marks(head.replace(a, b)))

def test_transforms_put_there_by_hand_are_compared(tmp_path, monkeypatch):
    from fastai.vision.augment import Brightness, Contrast
    from fgvc_fast.train.marks import check_same, run_marks
    def marks(*fs):
        learn = small(None)
        for f in fs: learn.dls.train.after_batch.add(f)
        return run_marks(learn)
    was = marks(Brightness(.3))
    check_same(was, marks(Brightness(.3)))
    for other in ((), (Brightness(.4),), (Contrast(.3),)):
        with pytest.raises(FineGrainedError, match='tfms of the loaders'): check_same(was, marks(*other))

def test_a_used_object_is_the_same(tmp_path, monkeypatch):
    "What fastai notes on a transform, batch by batch, is no option of it"
    from fgvc_fast.train.marks import check_same, run_marks
    from fgvc_fast.all import aug_transforms
    o = own_code(tmp_path, monkeypatch, own)
    learn = small(None, dls=dict(batch_tfms=[*aug_transforms(), o.Flipped()]))
    was = run_marks(learn)
    for _ in range(3): learn.dls.one_batch()
    check_same(was, run_marks(learn))
    check_same(was, run_marks(small(None, dls=dict(batch_tfms=[*aug_transforms(), o.Flipped()]))))
    noisy = small(None)
    noisy.add_cb(own_code(tmp_path, monkeypatch, own+more).Noise())
    was = run_marks(noisy)
    fit(noisy, 1)
    check_same(was, run_marks(noisy))

def test_code_is_the_same_in_every_process(tmp_path):
    (tmp_path/'own_losses.py').write_text(own)
    go = 'import json, own_losses; from fgvc_fast.memory import function_parts; print(json.dumps(function_parts(own_losses.chooses)[0]))'
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), os.getcwd()]), 'OMP_NUM_THREADS': '1'}
    a,b = [subprocess.run([sys.executable, '-W', 'ignore', '-c', go], env={**env, 'PYTHONHASHSEED': o}, capture_output=True, text=True, check=True).stdout for o in '13']
    assert a==b and "'f'" in a
