"Mixed pictures: against a loop over pixels, soft targets in float64, and timm; and what a stopped fit leaves behind"
import numpy as np, pytest, torch
from fastai.basics import (BCEWithLogitsLossFlat, Callback, CancelBatchException, CancelFitException, CrossEntropyLossFlat, DataLoader, DataLoaders,
    LabelSmoothingCrossEntropyFlat, Learner)
from fastai.callback.training import GradientAccumulation
from fgvc_fast.augment.evidence import evidence
from fgvc_fast.augment.mix import CutMix, Mix, MixUp, SnapMix, cut_box, cutmix, mixed_loss, mixup, own_loss, picture_losses, snapmix
from fgvc_fast.core import FineGrainedError
from functools import partial
from timm.data import Mixup
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from stops import StopAt

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

@pytest.mark.parametrize('ex', [CancelFitException, CancelBatchException, KeyboardInterrupt])
@pytest.mark.parametrize('ev', ['before_batch', 'after_pred', 'after_loss', 'before_step'])
def test_nothing_stays_behind(ev, ex):
    loss_func = nn.CrossEntropyLoss()
    learn = learner(loss_func, dtype=torch.float32)
    cb = Mix(.4, 1.)
    try: fit(learn, cbs=[cb, StopAt(ev, 2, ex, training=True)])
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
    learn = fit(learner(nn.CrossEntropyLoss(), cbs=[MixUp(), Spy(), StopAt('after_pred', 2, CancelBatchException, training=True)], bs=4), 1)
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

# snapmix

@pytest.mark.parametrize('lams', [(.5,.5), (.2,.9), (0.,.4), (1.,.5)])
def test_snapmix_is_the_loop(lams):
    x,perm = torch.randn(3, 2, 9, 7, dtype=torch.float64),[2,0,1]
    seen = torch.rand(3, 9, 7, dtype=torch.float64)
    seen /= seen.sum((1,2), keepdim=True)
    for centers in (((4,3),(2,5)), ((0,0),(8,6)), ((8,1),(4,3))):
        (t,b,l,r),(t2,b2,l2,r2) = [cut_box(9, 7, lam, c) for lam,c in zip(lams, centers)]
        res,own,other = snapmix(x, perm, seen, lams, centers)
        for i in range(3):
            want,a,o = x[i].clone(),1.,0.
            if min(b-t, r-l, b2-t2, r2-l2)>0:
                piece = x[perm[i]][:,t2:b2,l2:r2]
                for row in range(t, b):
                    for col in range(l, r):
                        v,u = [min(max((p-lo+.5)*(hi2-lo2)/(hi-lo)-.5, 0), hi2-lo2-1) for p,lo,hi,lo2,hi2 in ((row,t,b,t2,b2), (col,l,r,l2,r2))] # where the piece is read
                        v0,u0 = int(v),int(u)
                        v1,u1 = min(v0+1, b2-t2-1),min(u0+1, r2-l2-1)
                        top,bottom = [piece[:,w,u0]*(1-u+u0)+piece[:,w,u1]*(u-u0) for w in (v0, v1)]
                        want[:,row,col] = top*(1-v+v0)+bottom*(v-v0)
                        a -= seen[i,row,col].item()
                o = sum(seen[perm[i],row,col].item() for row in range(t2, b2) for col in range(l2, r2))
            torch.testing.assert_close(res[i], want, atol=1e-10, rtol=0)
            assert abs(own[i]-a)<1e-10 and abs(other[i]-o)<1e-10

class Conv(nn.Sequential):
    "A body and a head as fastai builds them"
    def __init__(self): super().__init__(nn.Conv2d(3, 8, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, nc)))

def snapper(loss_func, dtype=torch.float64, bs=8, **kwargs):
    learn = learner(loss_func, cbs=[SnapMix(), Spy()], dtype=dtype, bs=bs, **kwargs)
    learn.model = Conv().to(dtype)
    return learn

@pytest.mark.parametrize('bs', [8, 7, 1])
@pytest.mark.parametrize('name', [o for o in losses if o!='a_lambda'])
def test_snapmix_weighs_each_picture(name, bs):
    loss_func,soft = losses[name]
    learn = fit(snapper(loss_func, bs=bs), 1)
    train = [o for o in learn.spy.seen if o['training']]
    for o in train:
        (perm,(own,other)),(y,) = o['mixed'],o['yb']
        want = sum(a*soft(p[None], as_probs(t[None])) + b*soft(p[None], as_probs(u[None])) for p,t,u,a,b in zip(o['pred'], y, y[perm], own, other))/len(y)
        torch.testing.assert_close(o['loss_grad'], want, atol=1e-6, rtol=0) # fastai's flattened losses cast to float32
    assert max((o['mixed'][1][0]+o['mixed'][1][1]-1).abs().max() for o in train)>.01 or bs==1 # they need not sum to one

def test_snapmix_asks_the_model_of_the_step():
    seen = []
    class Peek(Callback):
        order = -5.5
        def before_batch(self):
            if self.training: seen.append(evidence(self.model, self.xb[0], self.yb[0]))
    learn = snapper(nn.CrossEntropyLoss())
    torch.manual_seed(1)
    fit(learn, cbs=Peek())
    for e,o in zip(seen, [o for o in learn.spy.seen if o['training']]):
        perm,(own,other) = o['mixed']
        changed = (o['xb'][0]!=o['clean'][0]).any(1)
        if len(changed)==0 or not changed.any(): continue
        box = changed.any(0) # where all pictures were pasted over
        torch.testing.assert_close(own, 1-(e*box).sum((1,2)).to(own.dtype), atol=1e-6, rtol=0)

def test_snapmix_class_weights_and_what_is_ignored():
    w = torch.arange(1., nc+1).double()
    y = torch.arange(21)%nc
    y[::4] = -100
    out = torch.randn(21, nc).double()
    f = nn.CrossEntropyLoss(weight=w, ignore_index=-100)
    got = picture_losses(f, out, y)
    logp,keep = torch.log_softmax(out, 1),y!=-100
    want = torch.where(keep, -w[y.clamp(min=0)]*logp[range(21),y.clamp(min=0)], 0.)/w[y[keep]].sum()*21
    torch.testing.assert_close(got, want)
    assert f.reduction=='mean'
    torch.testing.assert_close(picture_losses(nn.CrossEntropyLoss(reduction='sum'), out, y).mean(), F.cross_entropy(out, y, reduction='sum'))

def test_gradients_of_snapmix_are_those_of_its_weights():
    learn,grads = snapper(nn.CrossEntropyLoss(), bs=7),[]
    class Keep(Callback):
        order = 60
        def after_pred(self):
            if self.training: self.pred.retain_grad()
        def before_step(self): grads.append(self.pred.grad.clone())
    fit(learn, cbs=Keep())
    for o,g in zip([o for o in learn.spy.seen if o['training']], grads):
        (perm,(own,other)),(y,) = o['mixed'],o['yb']
        p = torch.softmax(o['pred'].detach(), 1)
        want = own[:,None]*(p-as_probs(y)) + other[:,None]*(p-as_probs(y[perm]))
        torch.testing.assert_close(g, want/7, atol=1e-10, rtol=0)

def test_snapmix_says_before_training_what_it_needs():
    learn = learner(lambda p,y: F.cross_entropy(p, y), cbs=SnapMix())
    learn.model = Conv().double()
    with pytest.raises(FineGrainedError, match='<lambda> gives only one loss for the batch'): fit(learn)
    with pytest.raises(FineGrainedError, match='Net does not say where its last map is'): fit(learner(nn.CrossEntropyLoss(), cbs=SnapMix()))
    learn = learner(nn.BCEWithLogitsLoss(), (torch.rand(21, nc)>.5).double(), cbs=SnapMix())
    learn.model = Conv().double()
    with pytest.raises(FineGrainedError, match='one label of each picture'): fit(learn)

def test_mixed_loss_is_for_whoever_adds_to_it():
    seen = []
    class Add(Callback):
        order = 5
        def after_loss(self):
            each = mixed_loss(self.learn, lambda y: F.cross_entropy(self.pred, y, reduction='none'))
            one = mixed_loss(self.learn, lambda y: F.cross_entropy(self.pred, y))
            seen.append((self.training, each.item(), one.item(), self.learn.loss.item(), own_loss(self.learn, self.pred).item()))
    for cb in (MixUp(), CutMix(), SnapMix(), None):
        seen.clear()
        learn = learner(nn.CrossEntropyLoss(), cbs=[Add(), *([cb] if cb else [])])
        learn.model = Conv().double()
        fit(learn)
        for training,each,one,loss,own in seen:
            assert abs(each-loss)<1e-9 and abs(own-loss)<1e-9
            if not isinstance(cb, SnapMix): assert abs(one-loss)<1e-9 # a number weighs all pictures alike

@pytest.mark.parametrize('ex', [CancelFitException, KeyboardInterrupt])
def test_a_stopped_fit_mixes_no_loss_afterwards(ex):
    cb = SnapMix()
    learn = learner(nn.CrossEntropyLoss(), cbs=cb)
    learn.model = Conv().double()
    try: fit(learn, cbs=StopAt('after_pred', 2, ex, training=True))
    except KeyboardInterrupt: assert ex is KeyboardInterrupt
    learn.training,learn.yb = False,(torch.tensor([0,1]),)
    assert mixed_loss(learn, lambda y: y.double())==.5

def test_three_kinds_by_weight(monkeypatch):
    seen = []
    def note(name): return lambda self, xb, perm, lam: (seen.append(name), (xb, lam))[1]
    for o in ('_blend','_paste','_snap'): monkeypatch.setattr(Mix, o, note(o))
    cb = Mix(.4, 1., 5., weights=(1,0,3))
    for _ in range(1000): cb.mix((torch.rand(2, 3, 4, 4),))
    assert seen.count('_paste')==0 and abs(seen.count('_snap')/1000-.75)<.06
    assert repr(cb)=='Mix(mixup=0.4, cutmix=1, snapmix=5)'
