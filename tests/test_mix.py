"Mixed pictures: against a loop over pixels, soft targets in float64, and timm; and what a stopped fit leaves behind"
import numpy as np, pytest, torch
from fastai.basics import (BCEWithLogitsLossFlat, Callback, CancelBatchException, CancelFitException, CrossEntropyLossFlat, DataLoader, DataLoaders,
    LabelSmoothingCrossEntropyFlat, Learner)
from fastai.callback.training import GradientAccumulation
from fgvc_fast.augment.mix import CutMix, Mix, MixUp, cut_box, cutmix, mixup
from fgvc_fast.core import FineGrainedError
from functools import partial
from timm.data import Mixup
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

nc = 5

@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)

# the tensor functions

@pytest.mark.parametrize('bs', [1, 4, 5])
@pytest.mark.parametrize('lam', [0., .3, 1.])
def test_mixup_is_the_loop(bs, lam):
    x,perm = torch.randn(bs, 2, 4, 3, dtype=torch.float64),torch.randperm(bs)
    want = np.zeros(x.shape)
    for i in range(bs):
        for idx in np.ndindex(2, 4, 3): want[i][idx] = lam*x[i][idx] + (1-lam)*x[perm[i]][idx]
    res,lam_ = mixup(x, perm, lam)
    np.testing.assert_allclose(res, want, atol=1e-12)
    assert lam_==lam

@pytest.mark.parametrize('size', [(7,9), (8,8), (1,5)])
@pytest.mark.parametrize('lam', [0., .2, .55, .9, 1.])
def test_cutmix_is_the_loop(size, lam):
    (h,w),seen = size,set()
    x,perm = torch.randn(3, 2, h, w, dtype=torch.float64),[2,0,1]
    for cy in range(h):
        for cx in range(w):
            bh,bw = int(h*np.sqrt(1-lam)),int(w*np.sqrt(1-lam))
            want,stay = x.numpy().copy(),0
            for r in range(h):
                for c in range(w):
                    cut = cy-bh//2 <= r < cy-bh//2+bh and cx-bw//2 <= c < cx-bw//2+bw
                    stay += not cut
                    if cut: want[:,:,r,c] = x.numpy()[perm][:,:,r,c]
            res,lam_ = cutmix(x, perm, lam, (cy,cx))
            np.testing.assert_array_equal(res, want)
            assert abs(lam_ - stay/(h*w)) < 1e-12
            seen.add(lam_)
    assert len(seen)>1 or lam in (0., 1.) or bh*bw==0 # somewhere a box is clipped

def test_boxes_are_anywhere():
    boxes = [cut_box(6, 4, .75) for _ in range(2000)]
    tops,lefts = np.array([o[0] for o in boxes]),np.array([o[2] for o in boxes])
    # centre 0..5 and a height of 3: tops 0,0,1,2,3,4; centre 0..3 and a width of 2: lefts 0,0,1,2
    np.testing.assert_allclose(np.bincount(tops)/2000, [2/6]+[1/6]*4, atol=.04)
    np.testing.assert_allclose(np.bincount(lefts)/2000, [.5,.25,.25], atol=.04)

@pytest.mark.parametrize('lam', [.15, .5, .8])
@pytest.mark.parametrize('use_cutmix', [False, True])
def test_as_timm(lam, use_cutmix):
    x,y = torch.randn(6, 3, 9, 11),torch.tensor([0,1,2,3,4,1])
    m = Mixup(mixup_alpha=1., cutmix_alpha=1., label_smoothing=0., num_classes=nc)
    m._params_per_batch = lambda: (lam, use_cutmix)
    np.random.seed(7)
    tx,ty = m(x.clone(), y)
    np.random.seed(7)
    center = int(np.random.randint(9, size=None)),int(np.random.randint(11, size=None))
    perm = torch.arange(6).flip(0)
    mx,lam_ = cutmix(x, perm, lam, center) if use_cutmix else mixup(x, perm, lam)
    torch.testing.assert_close(mx, tx, atol=1e-6, rtol=0)
    out = torch.randn(6, nc)
    mine = lam_*F.cross_entropy(out, y) + (1-lam_)*F.cross_entropy(out, y[perm])
    torch.testing.assert_close(mine, F.cross_entropy(out, ty), atol=1e-6, rtol=0)

# the callback

def learner(loss_func, y=None, n=21, bs=8, cbs=None, dtype=torch.float64, n_x=1, **kwargs):
    "21 pictures in batches of 8, 8 and 5"
    xs = [torch.randn(n, 3, 6, 6, dtype=dtype) for _ in range(n_x)]
    y = torch.arange(n)%nc if y is None else y
    dls = DataLoaders(*[DataLoader(TensorDataset(*xs, y), bs=bs, num_workers=0) for _ in range(2)])
    dls.n_inp = n_x
    class Net(nn.Linear):
        def forward(self, *xb): return super().forward(sum(xb).flatten(1))
    learn = Learner(dls, Net(108, nc).to(dtype), loss_func=loss_func, cbs=cbs, **kwargs)
    learn.remove_cb(learn.progress)
    if dtype is torch.float64: learn.remove_cb(learn.recorder) # which knows only float32
    return learn

def fit(learn, n=1, **kwargs):
    with learn.no_logging(): learn.fit(n, 1e-3, **kwargs)
    return learn

class Spy(Callback):
    "What went in, what was mixed with what, what came out"
    order = -6
    def before_fit(self): self.seen,self.cb = [],next(o for o in self.learn.cbs if isinstance(o, Mix))
    def before_batch(self): self.clean = self.xb
    def after_loss(self):
        self.note = dict(clean=self.clean, xb=self.xb, yb=self.yb, pred=self.pred, mixed=self.cb.mixed, training=self.training, plain=self.learn.loss_grad)
    def before_backward(self): self.note.update(loss=self.learn.loss, loss_grad=self.learn.loss_grad)
    def after_batch(self): self.seen.append(self.note)

def assert_same(loss, want):
    "To float64's precision, or to float32's where fastai's flattened losses have cast to it"
    torch.testing.assert_close(loss.double(), want, atol=1e-12 if loss.dtype is torch.float64 else 1e-6, rtol=0)

def as_probs(y): return F.one_hot(y, nc).double()

losses = dict(plain=(nn.CrossEntropyLoss(), F.cross_entropy), flat=(CrossEntropyLossFlat(), F.cross_entropy), function=(F.cross_entropy, F.cross_entropy),
    a_lambda=(lambda p,y: F.cross_entropy(p, y), F.cross_entropy),
    smooth=(nn.CrossEntropyLoss(label_smoothing=.1), partial(F.cross_entropy, label_smoothing=.1)),
    flat_smooth=(CrossEntropyLossFlat(label_smoothing=.1), partial(F.cross_entropy, label_smoothing=.1)),
    fastai_smooth=(LabelSmoothingCrossEntropyFlat(eps=.1), partial(F.cross_entropy, label_smoothing=.1)))

@pytest.mark.parametrize('cb', [MixUp, CutMix, partial(Mix, .4, 1.)])
@pytest.mark.parametrize('name', losses)
def test_loss_is_that_of_soft_targets(cb, name):
    loss_func,soft = losses[name]
    learn = learner(loss_func, cbs=[cb(), Spy()], bs=7)
    fit(learn, 2)
    train = [o for o in learn.spy.seen if o['training']]
    assert len(train)==6
    for o in train:
        perm,lam = o['mixed']
        y, = o['yb']
        want = soft(o['pred'], lam*as_probs(y) + (1-lam)*as_probs(y[perm]))
        assert_same(o['loss'], want)
        assert_same(o['loss_grad'], want)
    assert any((o['loss']-o['plain']).abs()>1e-3 for o in train), 'mixing should make a difference'

def test_gradients_are_those_of_soft_targets():
    grads = []
    learn = learner(nn.CrossEntropyLoss(), cbs=[MixUp(), Spy(), Callback(before_step=lambda self: grads.append(self.model.weight.grad.clone()))], bs=7)
    fit(learn)
    for o,g in zip([o for o in learn.spy.seen if o['training']], grads):
        perm,lam = o['mixed']
        p = torch.softmax(o['pred'].detach(), 1) - lam*as_probs(o['yb'][0]) - (1-lam)*as_probs(o['yb'][0][perm])
        torch.testing.assert_close(g, p.T @ o['xb'][0].flatten(1)/7, atol=1e-10, rtol=0)

def test_class_weights():
    w = torch.arange(1., nc+1).double()
    learn = fit(learner(nn.CrossEntropyLoss(weight=w), cbs=[MixUp(), Spy()]))
    for o in learn.spy.seen:
        if not o['training']: continue
        (perm,lam),(y,),logp = o['mixed'],o['yb'],torch.log_softmax(o['pred'], 1)
        one,two = [-(w[t]*logp[range(len(t)),t]).sum()/w[t].sum() for t in (y, y[perm])]
        torch.testing.assert_close(o['loss'], lam*one + (1-lam)*two, atol=1e-12, rtol=0)

@pytest.mark.parametrize('loss_func', [nn.BCEWithLogitsLoss(), BCEWithLogitsLossFlat()])
def test_many_labels(loss_func):
    y = (torch.rand(21, nc)>.5).double()
    learn = fit(learner(loss_func, y, cbs=[CutMix(), Spy()]))
    for o in learn.spy.seen:
        if not o['training']: continue
        (perm,lam),(t,) = o['mixed'],o['yb']
        assert_same(o['loss'], F.binary_cross_entropy_with_logits(o['pred'], lam*t + (1-lam)*t[perm]))

def test_inputs_are_mixed_and_validation_is_not():
    learn = fit(learner(nn.CrossEntropyLoss(), dtype=torch.float32, cbs=[MixUp(), Spy()]))
    assert [len(o['clean'][0]) for o in learn.spy.seen]==[8,8,5]*2
    for o in learn.spy.seen:
        if o['training']: torch.testing.assert_close(o['xb'][0], mixup(o['clean'][0], *o['mixed'])[0])
        else: assert torch.equal(o['xb'][0], o['clean'][0]) and o['mixed'] is None
    want = np.average([F.cross_entropy(o['pred'], o['yb'][0]).item() for o in learn.spy.seen[3:]], weights=[8,8,5])
    assert abs(learn.recorder.values[-1][1]-want)<1e-6

def test_a_batch_of_one():
    learn = fit(learner(nn.CrossEntropyLoss(), n=3, bs=1, cbs=[Mix(.4, 1.), Spy()]))
    for o in learn.spy.seen: torch.testing.assert_close(o['xb'][0], o['clean'][0])

@pytest.mark.parametrize('cb', [MixUp, CutMix])
def test_several_inputs_are_mixed_alike(cb):
    learn = learner(nn.CrossEntropyLoss(), cbs=[cb(), Spy()], n_x=2)
    a,b = learn.dls.train.dataset.tensors[:2]
    b.copy_(2*a)
    for o in fit(learn).spy.seen: torch.testing.assert_close(o['xb'][1], 2*o['xb'][0])

def test_what_is_not_a_picture():
    learn = learner(nn.CrossEntropyLoss(), n_x=2, cbs=MixUp())
    ds = learn.dls.train.dataset
    ds.tensors = ds.tensors[0],torch.arange(21),ds.tensors[2]
    with pytest.raises(FineGrainedError, match='input 1 of the batch'): fit(learn)

def test_kinds_are_chosen_by_weight(monkeypatch):
    seen = []
    def note(name): return lambda self, xb, perm, lam: (seen.append(name), (xb, lam))[1]
    monkeypatch.setattr(Mix, '_blend', note('mixup'))
    monkeypatch.setattr(Mix, '_paste', note('cutmix'))
    x = torch.rand(4, 1, 8, 8)
    for weights,share in (((1,1), .5), ((1,3), .75), ((0,1), 1.)):
        cb = Mix(.4, 1., weights=weights)
        seen.clear()
        for _ in range(1000): cb.mix((x,))
        assert abs(seen.count('cutmix')/1000 - share) < .06

@pytest.mark.parametrize('p', [0., .3, 1.])
def test_p(p):
    learn = fit(learner(nn.CrossEntropyLoss(), n=240, bs=1, cbs=[CutMix(p=p), Spy()]))
    got = np.mean([o['mixed'] is not None for o in learn.spy.seen if o['training']])
    assert abs(got-p) < (.09 if 0<p<1 else 1e-9)

def test_lam_is_from_beta():
    cb,x = Mix(mixup=.4),torch.rand(2, 1, 2, 2)
    lam = np.array([cb.mix((x,))[1][1] for _ in range(4000)])
    assert abs(lam.mean()-.5)<.03 and abs(lam.var() - 1/(4*(2*.4+1)))<.01 # the variance of Beta(a, a)

def test_one_at_a_time():
    learn = learner(nn.CrossEntropyLoss())
    with pytest.raises(FineGrainedError, match=r'MixUp and CutMix would each mix every batch.*Mix\(mixup=.4, cutmix=1.\)'): fit(learn, cbs=[MixUp(), CutMix()])
    fit(learn, cbs=[Mix(mixup=.4, cutmix=1.)])

class StopAt(Callback):
    order = 100
    def __init__(self, ev, ex): self.ev,self.ex,self.left = ev,ex,2
    def __call__(self, name):
        if name==self.ev and self.training:
            self.left -= 1
            if self.left==0: raise self.ex
        return super().__call__(name)

@pytest.mark.parametrize('ex', [CancelFitException, CancelBatchException, KeyboardInterrupt])
@pytest.mark.parametrize('ev', ['before_batch', 'after_pred', 'after_loss', 'before_step'])
def test_nothing_stays_behind(ev, ex):
    loss_func = nn.CrossEntropyLoss()
    learn = learner(loss_func, dtype=torch.float32)
    cb = Mix(.4, 1.)
    try: fit(learn, cbs=[cb, StopAt(ev, ex)])
    except KeyboardInterrupt: assert ex is KeyboardInterrupt
    assert learn.loss_func is loss_func and cb not in learn.cbs
    learn.model.eval()
    with torch.no_grad(): want = np.average([F.cross_entropy(learn.model(x), y).item() for x,y in learn.dls.valid], weights=[8,8,5])
    assert abs(learn.validate()[0]-want)<1e-6
    cb.p = 0. # the same callback again: what it remembered must not touch batches that it does not mix
    learn.add_cbs([cb, Spy()])
    fit(learn)
    assert all(o['mixed'] is None and torch.equal(o['loss_grad'], o['plain']) for o in learn.spy.seen if o['training'])

def test_a_cancelled_batch_does_not_change_the_next():
    learn = fit(learner(nn.CrossEntropyLoss(), cbs=[MixUp(), Spy(), StopAt('after_pred', CancelBatchException)], bs=4), 1)
    assert len(learn.spy.seen)>=6
    for o in learn.spy.seen:
        if 'loss' not in o or not o['training']: continue
        (perm,lam),(y,) = o['mixed'],o['yb']
        assert len(perm)==len(y)

class Amp(Callback):
    "As fastai's MixedPrecision in bfloat16, for the CPU"
    order = 10
    def before_batch(self):
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)
        self.autocast.__enter__()
    def after_pred(self): self.learn.pred = self.pred.float()
    def after_loss(self): self.autocast.__exit__(None, None, None)

@pytest.mark.parametrize('cb', [MixUp, CutMix])
def test_mixed_precision(cb):
    learn = fit(learner(nn.CrossEntropyLoss(), dtype=torch.float32, cbs=[Amp(), cb(), Spy()]))
    for o in learn.spy.seen:
        if not o['training']: continue
        (perm,lam),(y,) = o['mixed'],o['yb']
        assert o['loss_grad'].dtype==torch.float32
        want = F.cross_entropy(o['pred'].double(), lam*as_probs(y) + (1-lam)*as_probs(y[perm]))
        torch.testing.assert_close(o['loss'].double(), want, atol=1e-5, rtol=0)
    assert not torch.is_autocast_enabled('cpu')

def test_gradient_accumulation_finds_the_mixed_loss():
    seen = []
    class Peek(Callback):
        order = 50
        def after_loss(self):
            if self.training: seen.append((self.learn.loss_grad.item(), self.learn.loss.item()))
    fit(learner(nn.CrossEntropyLoss(), bs=7, cbs=[MixUp(), GradientAccumulation(14), Peek()]))
    for scaled,loss in seen: assert abs(scaled*2-loss)<1e-9
