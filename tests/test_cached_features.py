"Features kept of a frozen body: the head learns from them what it learns through the body, and nothing is left behind"
import os, pickle, pytest, random, torch
from contextlib import contextmanager, nullcontext
from fastai.basics import Callback, CancelFitException, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, accuracy
from fastai.callback.mixup import MixUp as FastaiMixUp
from fastai.callback.progress import ProgressCallback
from fastai.callback.training import GradientAccumulation
from functools import partial
from pathlib import Path
from torch import nn
from fgvc_fast.augment.mix import Mix
from fgvc_fast.core import FineGrainedError
from fgvc_fast.datasets.all import fine_grained_data
from fgvc_fast.data.loader import FineGrainedDL
from fgvc_fast.learner import fine_grained_learner
from fgvc_fast.train.aux_loss import AuxLosses
from fgvc_fast.train.precision import CPUAutocast
from fgvc_fast.models.all import pools
from fgvc_fast.models.annotated import AnnotatedPartPool
from fgvc_fast.models.model import fine_grained_model
from fgvc_fast.models.pool import MeanPool
from fgvc_fast.models.second import CompactPool
from fgvc_fast.train import cached_features
from fgvc_fast.train.cached_features import _even, _fused, frozen_features
from fgvc_fast.train.groups import freeze_below
from fgvc_fast.train.distributed import FineGrainedLearner
from fgvc_fast.train.all import Phase
from timm.layers import Conv2dSame
from torchvision.models import convnext_tiny, resnet18

pytestmark = pytest.mark.usefixtures('one_thread')
nc = 3

class Pictures:
    "Coloured noise, and with `points` the places of two parts; `wild` pictures are other ones every time"
    def __init__(self, n, size=32, points=False, wild=False):
        g = torch.Generator().manual_seed(n)
        self.y,self.wild,self.stop = torch.arange(n)%nc,wild,None
        self.x = torch.rand(n, 3, size, size, generator=g) + .3*nn.functional.one_hot(self.y, 3)[...,None,None]
        self.points = torch.rand(n, 2, 2, generator=g) if points else None
    def __len__(self): return len(self.y)
    def __getitem__(self, i):
        if i==self.stop: raise KeyboardInterrupt
        x = self.x[i] + torch.rand(3,1,1) if self.wild else self.x[i]
        return (x, *([] if self.points is None else [self.points[i]]), self.y[i])

def loaders(seed=3, bs=8, drop_last=False, cls=FineGrainedDL, n_inp=1, **kwargs):
    train,valid = (Pictures(n, points=n_inp==2, **kwargs) for n in (22, 10))
    own = dict(seed=seed) if cls is FineGrainedDL else {}
    dls = DataLoaders(*[cls(ds, bs=bs, shuffle=ds is train, drop_last=drop_last and ds is train, num_workers=0, **own) for ds in (train, valid)])
    dls.n_inp,dls.vocab = n_inp,list('abc')
    return dls

bodies = dict(cnn=dict(arch='toy_resnet'), vit=dict(arch='vit_tiny_patch16_224', depth=2, embed_dim=48, img_size=32))


def learner(arch='cnn', dls=None, cbs=(), amp=False, **kwargs):
    torch.manual_seed(1)
    if isinstance(arch, str) and arch in bodies: kwargs = {**bodies[arch], **kwargs}
    else: kwargs['arch'] = arch
    model = fine_grained_model(n_out=nc, pretrained=False, **{'img_size': 32, **kwargs})
    for m in model.body.modules(): # as if it had seen something
        if isinstance(m, nn.BatchNorm2d): m.running_mean.uniform_(-.2, .2), m.running_var.uniform_(.7, 1.5)
    learn = Learner(dls or loaders(), model.to(memory_format=torch.channels_last), loss_func=CrossEntropyLossFlat(), splitter=lambda m: m.groups(),
        metrics=accuracy, cbs=[AuxLosses(), *cbs])
    if amp: learn.add_cb(CPUAutocast())
    learn.remove_cb(ProgressCallback)
    return learn

def fit(learn, features=True, epochs=2, cached_views=1, cbs=None, **kwargs):
    with learn.no_logging(), freeze_below(learn, 'head'), frozen_features(learn, cached_views, **kwargs) if features else nullcontext():
        torch.manual_seed(2)
        learn.fit_one_cycle(epochs, 1e-2, cbs=cbs)
    return learn

def assert_same(a, b, atol=1e-4):
    torch.testing.assert_close(torch.stack(a.recorder.losses), torch.stack(b.recorder.losses), rtol=1e-4, atol=atol)
    torch.testing.assert_close(torch.tensor(a.recorder.values), torch.tensor(b.recorder.values), rtol=1e-4, atol=atol)
    moved = dict(b.model.state_dict())
    free = 'pool.look.kv.bias' # the keys' part moves all places alike, so its gradient is rounding, and Adam makes steps of it
    for k,v in a.model.state_dict().items():
        if k!=free: torch.testing.assert_close(v, moved[k], rtol=1e-2, atol=max(atol, 1e-3), msg=k)

# the same as through the body

of_tokens = 'class_token', 'tokens', 'part_tokens'
small = dict(compact=partial(CompactPool, dim=64), annotated_parts=partial(AnnotatedPartPool, parts=2, given=1.))
def fits(body, pool): return (body=='vit' or pool not in of_tokens) and not (body=='vit' and pool in ('stages','pyramid','closer'))

@pytest.mark.parametrize('body,pool', [(b,p) for b in bodies for p in pools if fits(b, p)])
def test_as_through_the_body(body, pool):
    def both(features):
        learn = learner(body, loaders(n_inp=2 if pool=='annotated_parts' else 1), pool=small.get(pool, pool))
        start = [p.clone() for p in learn.model.head.parameters()]
        fit(learn, features)
        assert not all(torch.equal(p, q) for p,q in zip(learn.model.head.parameters(), start))
        return learn
    assert_same(both(True), both(False))

kinds = dict(branch=dict(branch=-2), branch_of_rows=dict(branch=-2, pool='gem'), streams=dict(arch=('toy_resnet','toy_resnet'), pool='bilinear'), block_behind=dict(blocks={-1: 'se'}),
    dropout_in_the_head=dict(head='fastai'), cosine=dict(head='cosine'), accumulated=dict(cbs=[GradientAccumulation(12)]), balanced=dict(), drop_last=dict(),
    fastai_loader=dict(), torchvision=dict(arch=resnet18))

@pytest.mark.parametrize('kind', kinds)
def test_whatever_the_learner(kind):
    def both(features):
        kwargs = dict(drop_last=dict(drop_last=True), fastai_loader=dict(cls=DataLoader)).get(kind, {})
        random.seed(0) # of fastai's loaders
        learn = learner(**{'arch': 'cnn', 'dls': loaders(**kwargs), **kinds[kind]})
        if kind=='balanced': learn.dls.train.balance = torch.tensor([0]*15+[1]*4+[2]*3).numpy()
        return fit(learn, features)
    assert_same(both(True), both(False), 1e-4)

def test_in_mixed_precision():
    a,b = (fit(learner('cnn', pool='gem', amp=True), o) for o in (True, False))
    assert_same(a, b, .05) # bfloat16 has three digits

class Asks(AuxLosses): asks = 'maps',

def test_rows_or_maps():
    def width(**kwargs):
        learn = learner('cnn', **kwargs)
        if kwargs.get('pool')=='avg': learn.add_cb(Asks()) # as a loss does that looks at maps
        with freeze_below(learn, 'head'), frozen_features(learn) as dls: return dls[0].cached_views[0].shape
    nf = learner('cnn').model.body.nf
    assert (width(), width(pool='gem'), width(pool='avg'), width(pool='compact')) == ((22,nf), (22,4*nf), (22,4*nf), (22,4096)) # maps of 2 × 2

def test_a_loss_that_comes_late_for_maps_is_told():
    class Late(AuxLosses):
        asks = ()
        def before_fit(self): self.asks = 'maps',
    with pytest.raises(FineGrainedError, match='before the features are computed'): fit(learner('cnn'), cbs=Late())

# views

class Spy(Callback):
    "What was dealt in training, in the order of the labels"
    def before_fit(self): self.seen = []
    def before_train(self): self.now = []
    def before_batch(self):
        if self.training: self.now.append(self.x.sum(1))
    def after_train(self): self.seen.append(torch.cat(self.now).sort()[0])

def test_views_take_turns():
    spy = Spy()
    fit(learner('cnn', loaders(wild=True)), epochs=5, cached_views=2, cbs=spy)
    a,b,*more = spy.seen
    assert not torch.allclose(a, b)
    for o,want in zip(more, (a,b,a)): torch.testing.assert_close(o, want)

@pytest.mark.parametrize('cls', [FineGrainedDL, DataLoader])
def test_a_seed_gives_the_same_views(cls):
    def cached_views(seed):
        learn = learner('cnn', loaders(seed=None, cls=cls, wild=True))
        with freeze_below(learn, 'head'), frozen_features(learn, 2, seed=seed) as dls: return torch.stack(dls[0].cached_views)
    a,b,c = cached_views(5),cached_views(5),cached_views(6)
    assert torch.equal(a, b) and not torch.allclose(a, c) and not torch.allclose(a[0], a[1])

def test_plain_view_is_that_of_validation(tmp_path):
    data = fine_grained_data('toy_birds').subset(classes=2, per_class=3)
    data.items['split'] = ['train','valid']*(len(data)//2) + ['train']*(len(data)%2)
    learn = fine_grained_learner(data.dls(size=48, bs=2, num_workers=0, aug='strong', cache=False, seed=0), 'toy_resnet')
    x = torch.cat([b[0].as_subclass(torch.Tensor) for b in learn.dls.test_dl(data['train'].index)])
    with torch.no_grad(): want = learn.model.eval().features(x)
    with learn.no_bar(), freeze_below(learn, 'head'):
        with frozen_features(learn) as dls: torch.testing.assert_close(dls[0].cached_views[0], want, rtol=1e-3, atol=1e-4)
        with frozen_features(learn, 1) as dls: assert not torch.allclose(dls[0].cached_views[0], want, atol=1e-2)
        assert learn.dls.train_ds.split_idx==0
        with pytest.MonkeyPatch.context() as m:
            def fails(*args): raise MemoryError('no more')
            m.setattr(cached_features._Layout, 'pack', fails)
            with pytest.raises(MemoryError) as held, frozen_features(learn): pass
        assert held.traceback and learn.dls.train_ds.split_idx==0 # though a notebook keeps the error, and with it all that was going on

def test_nothing_else_is_drawn_differently():
    learn = learner('cnn', loaders(wild=True))
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    with freeze_below(learn, 'head'), frozen_features(learn, 2): assert torch.equal(torch.rand(3), want)

def test_order_goes_on_afterwards():
    def labels(features):
        learn = fit(learner('cnn'), features)
        return torch.cat([b[-1] for b in learn.dls.train])
    assert torch.equal(labels(True), labels(False))

# phases

@pytest.mark.parametrize('stop', [None, 4])
def test_in_phases_stopped_and_resumed(stop, capsys):
    class Stop(Callback):
        left = stop
        def after_pred(self):
            if self.training and self.left is not None:
                self.left -= 1
                if self.left==0: raise KeyboardInterrupt
    def run(features, stops):
        learn = learner('cnn', cbs=[Stop()] if stops else [])
        for resume in (False,True)[:1+stops]:
            with learn.no_logging(), freeze_below(learn, 'head'), frozen_features(learn) if features else nullcontext():
                learn.fit_phases(**dict(resume=True) if resume else dict(plan=[Phase('head', 3, lr=1e-2)]))
        return learn
    a,b = run(True, stop is not None),run(False, False)
    assert_same(a, b)
    assert a.phase_log.drop(columns='seconds').round(3).equals(b.phase_log.drop(columns='seconds').round(3))

# what comes back

@contextmanager
def leaves_nothing(learn):
    model,was = learn.model,(learn.dls, learn.dls.loaders, [*learn.cbs], {*vars(learn.model)}, {*vars(learn.model.pool)})
    yield
    assert learn.dls is was[0] and learn.dls.loaders is was[1] and [*learn.cbs]==was[2]
    assert ({*vars(model)},{*vars(model.pool)})==was[3:] and vars(learn).get('dl') is None
    torch.testing.assert_close(pickle.loads(pickle.dumps(model)).eval()(torch.ones(2,3,32,32)), model.eval()(torch.ones(2,3,32,32)))
    fit(learn, False, 1)

@pytest.mark.parametrize('ev,ex', [('after_pred', KeyboardInterrupt), ('before_validate', CancelFitException), ('before_fit', ZeroDivisionError), ('after_pred', None)])
def test_stopped_in_training(ev, ex):
    learn,stop = learner('cnn', pool='compact'),Callback()
    def f():
        if ex: raise ex('stop')
    setattr(stop, ev, f)
    with leaves_nothing(learn):
        if ex in (CancelFitException, None): fit(learn, cbs=stop)
        else:
            with pytest.raises(ex): fit(learn, cbs=stop)

def test_stopped_while_looking():
    learn = learner('cnn')
    with leaves_nothing(learn):
        learn.dls.valid.dataset.stop = 9
        with pytest.raises(KeyboardInterrupt): fit(learn)
        learn.dls.valid.dataset.stop = None

def test_pictures_still_go():
    learn,x = learner('cnn'),torch.rand(2,3,32,32)
    want = learn.model.eval()(x)
    with freeze_below(learn, 'head'), frozen_features(learn):
        torch.testing.assert_close(learn.model(x), want)
        preds,targs = learn.get_preds(dl=learn.dls.valid.dl)
        mine,same = learn.get_preds(dl=learn.dls.valid, reorder=False)
        torch.testing.assert_close(preds, mine, rtol=0, atol=1e-4)
        assert torch.equal(targs, same) and len(learn.dls.train)==3 and learn.dls.vocab==list('abc') and learn.validate()

# refused

class Erase(Callback):
    def before_batch(self): self.change()
    def change(self): self.learn.xb = tuple(o*0 for o in self.xb)

class Count(Callback):
    "Looks, changes nothing"
    def before_batch(self): self.n = len(self.yb[0])

class RandomPool(MeanPool):
    def __init__(self, nf):
        super().__init__(nf)
        self.drop = nn.Dropout(.5)
    def forward(self, x): return self.drop(super().forward(x))

refused = dict(pool=(dict(arch='cnn', pool=RandomPool), 'random while it trains .Dropout'), drop_path=(dict(arch='vit', drop_path_rate=.5), 'random while it trains .DropPath'), dropout=(dict(arch='vit', proj_drop_rate=.2), 'random while it trains .Dropout'),
    torchvision=(dict(arch=convnext_tiny, layer_scale=1.), 'StochasticDepth'), block_inside=(dict(arch='cnn', blocks={-2: 'eca'}), 'attention block after stage'),
    zoom=(dict(arch='cnn', pool='parts', zoom=True), 'zoom=True'), mix=(dict(arch='cnn', cbs=[Mix(mixup=.4)]), 'Mix changes the pictures'),
    fastai=(dict(arch='cnn', cbs=[FastaiMixUp()]), 'MixUp changes the pictures'), erase=(dict(arch='cnn', cbs=[Erase()]), 'Erase changes the pictures'))

@pytest.mark.parametrize('kind', refused)
def test_refused(kind):
    kwargs,why = refused[kind]
    learn = learner(**kwargs)
    learn.dls.valid.dataset.stop = 1 # they are not looked at before it is said
    with leaves_nothing(learn) if kind=='mix' else nullcontext():
        with pytest.raises(FineGrainedError, match=why): fit(learn)
        learn.dls.valid.dataset.stop = None

def test_a_spoiled_body_is_called_spoiled():
    learn = learner('cnn')
    with torch.no_grad(): next(learn.model.body.parameters()).fill_(float('nan'))
    with pytest.raises(FineGrainedError, match='frozen body says nan or inf'): fit(learn)

def test_refused_when_it_comes_with_the_fit():
    learn = learner('cnn')
    with leaves_nothing(learn):
        with pytest.raises(FineGrainedError, match='Mix changes'): fit(learn, cbs=Mix(cutmix=1.))

def test_a_callback_that_looks_may_stay(): fit(learner('cnn'), cbs=Count())

def test_refused_unless_frozen():
    learn = learner('cnn')
    def to(*args): return freeze_below(learn, *args)
    for freeze,why in ((nullcontext(), 'The body trains'), (to('all'), 'The body trains'), (to(-2), 'The body trains'), (to('head', 'all'), 'renew their statistics')):
        with freeze, pytest.raises(FineGrainedError, match=why), frozen_features(learn): pass
    learn.freeze() # fastai's, which trains the norms
    with pytest.raises(FineGrainedError, match='The body trains'), frozen_features(learn): pass

@pytest.mark.parametrize('ask', ['get_preds', 'validate'])
def test_a_refused_look_is_not_the_last(ask):
    learn = learner('cnn')
    learn.__class__ = FineGrainedLearner
    logger,cbs = learn.logger,[*learn.cbs]
    with freeze_below(learn, 'head'), frozen_features(learn):
        inside = [*learn.cbs]
        learn.unfreeze()
        with pytest.raises(FineGrainedError, match='The body trains'): getattr(learn, ask)()
        assert not learn.lock.locked() and learn.logger is logger and [*learn.cbs]==inside # else the next look waits for ever
    assert [*learn.cbs]==cbs
    assert len(learn.get_preds()[0])==10 and learn.validate()

def test_refused_of_other_learners_and_views():
    other = Learner(loaders(), nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 3)), loss_func=CrossEntropyLossFlat())
    with pytest.raises(FineGrainedError, match='models of `fine_grained_learner`.*Sequential does not'), frozen_features(other): pass
    learn = learner('cnn')
    with freeze_below(learn, 'head'):
        for cached_views in (-1, True, 1.5, None):
            with pytest.raises(FineGrainedError, match='cached_views='), frozen_features(learn, cached_views): pass

# where they are kept

def test_half_precision_on_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(cached_features, '_free_memory', lambda: 0)
    monkeypatch.setattr(cached_features.tempfile, 'gettempdir', lambda: str(tmp_path))
    learn = learner('cnn', pool='gem')
    with freeze_below(learn, 'head'), frozen_features(learn) as dls: assert dls[0].cached_views[0].dtype is torch.float16
    assert not list(tmp_path.iterdir())
    assert_same(fit(learner('cnn', pool='gem')), fit(learner('cnn', pool='gem'), False), 5e-3)
    with freeze_below(learn, 'head'), pytest.raises(FineGrainedError, match='even in half precision.*max_gb=1e-09'), frozen_features(learn, max_gb=1e-9): pass

# sizes

class Sizes(Pictures):
    "The last pictures are larger"
    def __getitem__(self, i):
        x,y = super().__getitem__(i)
        return (nn.functional.pad(x, (0,5,0,8), mode='reflect') if i>=16 else x),y

def test_pictures_of_other_sizes():
    "Rows of the average take any size, and so does the padding that depends on it; maps must be of one"
    def mixed(**kwargs):
        dls = loaders()
        dls.train.dataset = Sizes(22)
        return learner('mobilenetv2_035', dls, pad_type='same', **kwargs)
    learn = mixed()
    with freeze_below(learn, 'head'), frozen_features(learn, 1) as dls: got = dls[0].cached_views[0]
    ds,model = Sizes(22),learn.model.eval()
    with torch.no_grad(): want = torch.cat([model.features(ds[i][0][None]) for i in range(22)])
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3*want.abs().max().item())
    learn = mixed(pool='gem')
    with leaves_nothing(learn):
        with pytest.raises(FineGrainedError, match='different sizes'): fit(learn)
        learn.dls.train.dataset = Pictures(22)

def test_of_many_sizes_few_are_folded(monkeypatch):
    class Grows(Pictures):
        def __getitem__(self, i):
            x,y = super().__getitem__(i)
            return nn.functional.pad(x, (0,i//2,0,i//2), mode='reflect'),y
    folds,dls = [],loaders(bs=1)
    dls.train.dataset = Grows(22)
    monkeypatch.setattr(cached_features, '_fused', lambda *args: folds.append(1) or _fused(*args))
    learn = learner('mobilenetv2_035', dls, pad_type='same')
    with freeze_below(learn, 'head'), frozen_features(learn, 1) as dls: got = dls[0].cached_views[0]
    with torch.no_grad(): want = torch.cat([learn.model.eval().features(Grows(22)[i][0][None]) for i in range(22)])
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3*want.abs().max().item())
    assert len(folds)==3

# folded norms

@pytest.mark.parametrize('size', [(32,32), (31,32), (32,7), (5,9)])
@pytest.mark.parametrize('k,stride,groups', [(3,2,1), (5,2,4), (3,1,4), ((3,5),(2,3),2), (2,2,1), (1,2,4), (7,4,1)])
def test_even_padding_changes_nothing(k, stride, groups, size):
    same,x = Conv2dSame(4, 8, k, stride=stride, groups=groups),torch.randn(2,4,*size)
    even = _even(same, size)
    assert type(even) is nn.Conv2d
    torch.testing.assert_close(even(x), same(x), rtol=1e-5, atol=1e-5)

@pytest.mark.parametrize('arch', ['mobilenetv2_035', 'tf_efficientnet_lite0', 'resnet10t', 'resnetv2_50x1_bit', resnet18])
def test_folded_norms_change_nothing(arch):
    model = learner(arch).model.eval().requires_grad_(False)
    x = torch.rand(2,3,32,32)
    quick = _fused(model, x)
    want = model.maps(x)
    assert (quick.maps(x)-want).abs().max()<=1e-4*want.abs().max()
    folded = sum(isinstance(m, nn.BatchNorm2d) for o in (model, quick) for m in o.body.modules())
    assert folded==sum(isinstance(m, nn.BatchNorm2d) for m in model.body.modules()) # none is left
    assert {*model.head.parameters()}<={*quick.parameters()} # not a copy of all weights
    assert not any(isinstance(m, Conv2dSame) for m in quick.modules())

def spoil_weight(learn): next(learn.model.body.parameters()).data[0] += .5
def spoil_statistics(learn): next(o for o in learn.model.body.buffers() if o.is_floating_point()).data.add_(1)
def spoil_norm(learn): learn.model.norm.std.mul_(2)
def spoil_swap(learn):
    p = next(o for o in learn.model.body.parameters() if o.ndim==4)
    p.data.copy_(p.data.flip(0)) # of the same numbers

@pytest.mark.parametrize('spoil', [spoil_weight, spoil_statistics, spoil_norm, spoil_swap])
def test_features_of_other_weights_are_not_learned_from(spoil):
    "However they were changed: features are of what the body was when they were computed"
    learn = learner()
    with learn.no_logging(), freeze_below(learn, 'head'), frozen_features(learn):
        learn.fit_one_cycle(1, 1e-3)
        spoil(learn)
        for again in (lambda: learn.fit_one_cycle(1, 1e-3), learn.validate, learn.get_preds):
            with pytest.raises(FineGrainedError, match='other weights'): again()

@pytest.mark.parametrize('kwargs', [dict(cached_views='x'), dict(cached_views=-1), dict(cached_views=True), dict(cached_views=1.5), dict(cached_views=None), dict(seed='x'),
    dict(seed=1.5), dict(max_gb='x'), dict(max_gb=-1), dict(max_gb=None), dict(max_gb=float('nan'))], ids=str)
def test_what_is_no_option_of_features(kwargs):
    learn = learner()
    with freeze_below(learn, 'head'), pytest.raises(FineGrainedError, match=f'{next(iter(kwargs))}='):
        with frozen_features(learn, **kwargs): pass

def test_a_body_that_looks_three_times_is_folded_too():
    "Each convolution hears three maps, and one norm hears each of them"
    model,x = fine_grained_model('resnet10t', 4, pool='closer', pretrained=False).eval(),torch.rand(2, 3, 128, 128)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(0, .1), m.running_var.uniform_(.5, 2)
    quick = _fused(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in quick.body.modules()) and any(isinstance(m, nn.BatchNorm2d) for m in model.body.modules())
    with torch.no_grad(): torch.testing.assert_close(quick.features(x), model.features(x), rtol=1e-3, atol=1e-3)

def test_looks_that_rounding_moves_are_folded_too():
    "Each look is cut out where the one before says, so that what norms leave of rounding grows; the body is the same"
    shared = Path(os.environ.get('FGVC_SHARED', '../shared'))
    weights = shared/'weights'/'mobilenetv2_100.imagenet1k.safetensors'
    if not weights.exists(): pytest.skip(f'{weights} is not here: set FGVC_SHARED')
    data = fine_grained_data(shared/'data'/'cub50'/'CUB_200_2011')
    learn = fine_grained_learner(data.dls(256, bs=2, num_workers=0, cache=False), 'mobilenetv2_100', pool='closer', weights=weights, pad_type='same')
    model,x = learn.model.eval(),learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)
    quick = _fused(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in quick.body.modules())
    with torch.no_grad(): a,b = quick.features(x),model.features(x)
    assert (a-b).norm()<1e-2*b.norm() and (a[:,:1280]-b[:,:1280]).norm()<1e-4*b.norm()
