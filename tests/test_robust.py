"Adversarial training and robustness: against the formulas, with whatever else trains, and the learner as it was"
import copy
import numpy as np, pytest, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.data.transforms import Normalize
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fgvc_fast.augment.mix import Mix
from fgvc_fast.core import FineGrainedError
from fgvc_fast.datasets.all import toy_birds
from fgvc_fast.learner import fine_grained_learner
from fgvc_fast.train.precision import CPUAutocast
from fgvc_fast.robust.attack import bim, fgsm
from fgvc_fast.robust.corrupt import corrupt, corruptions
from fgvc_fast.robust.curve import FineGrainedInterpretation # with `robustness`
from fgvc_fast.interpret.probe import PixelModel
from fgvc_fast.robust.train import AdversarialTraining

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture(scope='module')
def data(tmp_path_factory): return toy_birds(families=2, species=2, per_class=12, size=64, path=tmp_path_factory.mktemp('toys'))

def learner(data, cbs=None, bs=8, **kw):
    set_seed(0)
    dls = data.dls(size=64, bs=bs, seed=0, num_workers=0, device='cpu', **{k: kw.pop(k) for k in ('batch_tfms',) if k in kw})
    return fine_grained_learner(dls, 'toy_resnet', metrics=accuracy, cbs=cbs, **kw)

class Keep(Callback):
    order = 9 # after all that changes the loss
    def before_fit(self): self.model_before,self.seen = copy.deepcopy(self.model),[]
    def after_loss(self):
        if self.training: self.seen.append((self.xb[0].clone(), self.yb[0].clone(), self.loss.item(), self.loss_grad.item()))
    def after_batch(self):
        if self.training: raise CancelFitException

@pytest.mark.parametrize('alpha', [0., .3, 1.])
@pytest.mark.parametrize('head', ['linear','levels'])
def test_the_loss_is_the_formula(data, alpha, head):
    learn = learner(data, [AdversarialTraining(4/255, alpha, 'bim', steps=2), keep := Keep()], head=head)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    (x,y,shown,loss),m = keep.seen[0],keep.model_before.train()
    x,y = x.as_subclass(torch.Tensor),y.as_subclass(torch.Tensor)
    f = torch.nn.functional.cross_entropy
    with m.trace('aux_losses') as t: clean = f(m(x), y)
    sides = sum(w*(v if v.ndim==0 else f(v, y)) for _,w,v in t.aux_losses) if t.aux_losses else 0.
    attacked = f(m(bim(m, x, y, 4/255, 2)), y)
    np.testing.assert_allclose(shown, clean.item(), rtol=1e-4)
    np.testing.assert_allclose(loss, (alpha*clean+(1-alpha)*attacked+sides).item(), rtol=1e-4)
    if head=='levels': assert sides>0

@pytest.mark.parametrize('more', [dict(cbs=[lambda: Mix(mixup=.4)]), dict(cbs=[lambda: Mix(cutmix=1.)]), dict(cbs=[lambda: Mix(snapmix=5.)]),
    dict(cbs=[CPUAutocast]), dict(cbs=[], head='levels'), dict(cbs=[], loss_func=CrossEntropyLossFlat(label_smoothing=.1))],
    ids=['mixup','cutmix','snapmix','bf16','levels','smooth'])
def test_with_whatever_else_trains(data, more):
    more = dict(more)
    learn = learner(data, [AdversarialTraining(2/255), *[o() for o in more.pop('cbs')]], **more)
    with learn.no_bar(), learn.no_logging(): learn.fit_phases(2)
    log = learn.phase_log
    assert 'adversarial' in log and np.isfinite(log.adversarial.astype(float)).all() and (log.adversarial.astype(float)>0).all()
    assert np.isfinite(log.train_loss.astype(float)).all() and learn.model.traces==[]

@pytest.mark.parametrize('pool,zoom,looks', [('parts',False,3), ('parts',True,5), ('avg',False,3)])
def test_what_is_learned_besides_is_learned_once(data, pool, zoom, looks):
    "Clean, (crop, drop,) attack, attacked: so many looks, and centres go one step"
    learn = learner(data, [AdversarialTraining(2/255), keep := Keep()], pool=pool, zoom=zoom)
    seen = []
    with learn.model.body.register_forward_hook(lambda *_: seen.append(1)):
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.)
    assert len(seen)==looks and not learn.model.alone
    bn = next(m for m in learn.model.body.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert bn.num_batches_tracked-next(m for m in keep.model_before.body.modules() if isinstance(m, torch.nn.BatchNorm2d)).num_batches_tracked==looks-1 # all but the attack's
    if pool!='parts': return
    m,x = keep.model_before.train(),keep.seen[0][0].as_subclass(torch.Tensor)
    rows = m.features(x)
    torch.testing.assert_close(learn.model.pool.centers, m.pool.beta*rows.detach().mean(0), atol=1e-5, rtol=1e-4)

def test_pixels_just_beyond_white_stop_nothing(data):
    class Bright(Callback):
        order = -6
        def before_batch(self): self.learn.xb = (self.xb[0]+(1-self.xb[0].max())+1e-7,)
    learn = learner(data, [AdversarialTraining(2/255), Mix(snapmix=5.), Bright()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert np.isfinite(learn.recorder.values[-1]).all()
    class Wrong(Bright):
        def before_batch(self): self.learn.xb = (self.xb[0]*4-2,)
    with learn.no_bar(), learn.no_logging(), pytest.raises(FineGrainedError, match='Normalize'): learner(data, [AdversarialTraining(2/255), Wrong()]).fit(1)

def test_noise_is_each_pictures_own():
    x = torch.full((3, 3, 32, 32), .5)
    x[1,0,0,0],x[2] = .6,x[0]
    d = corrupt(x, 'noise', 3)-x
    assert torch.equal(d[0], d[2]) and not torch.equal(d[0], d[1]) and torch.equal(corrupt(x[1:2], 'noise', 3)[0], x[1]+d[1])
    flat = d[:2].flatten(1)
    assert abs(torch.corrcoef(flat)[0,1])<.1
    for bad in (dict(kind='dust'), dict(kind=None), dict(strength=0), dict(strength=True), dict(strength=2.5), dict(x=x*300), dict(x=x[:,:1]), dict(x=x*torch.nan)):
        with pytest.raises(FineGrainedError): corrupt(**{**dict(x=x, kind='jpeg', strength=1), **bad})

def test_after_a_cancelled_fit_it_goes_on(data):
    class Stop(Callback):
        def after_loss(self):
            if self.training and self.train_iter==1: raise KeyboardInterrupt
    learn = learner(data, AdversarialTraining(2/255))
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Stop())
        before = {k: v.clone() for k,v in learn.model.state_dict().items()}
        learn.validate()
        assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
        learn.fit(1)
    assert learn.recorder.metric_names.count('adversarial')==1

def test_where_loaders_normalise(data):
    "`eps` is one of pixels there too"
    learn = learner(data, [cb := AdversarialTraining(4/255, 0.), keep := Keep()], batch_tfms=Normalize.from_stats([.4]*3, [.2]*3, cuda=False))
    seen = []
    cb.attack = lambda net, x, y, eps: seen.append((x, fgsm(net, x, y, eps))) or seen[-1][1]
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.)
    x,a = seen[0]
    assert 0<=x.min() and x.max()<=1 and (a-x).abs().max()<=4/255+1e-6
    batch = keep.seen[0][0].as_subclass(torch.Tensor)
    torch.testing.assert_close(batch*.2+.4, x, atol=1e-5, rtol=0)
    m = keep.model_before.train()
    m(batch) # the clean look, which renews statistics
    want = torch.nn.functional.cross_entropy(m((a-.4)/.2), keep.seen[0][1].as_subclass(torch.Tensor))
    np.testing.assert_allclose(keep.seen[0][3], want.item(), rtol=1e-3)
    r = FineGrainedInterpretation.from_learner(learn).robustness(eps=[.02], corrupted=False)
    with learn.no_bar(): assert abs(r.table.accuracy[0]-learn.validate()[1])<1e-6

def test_robustness_against_a_loop(data):
    learn = learner(data)
    with learn.no_bar(), learn.no_logging(): learn.fit_phases(2)
    interp = FineGrainedInterpretation.from_learner(learn)
    learn.model.train()
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    r = interp.robustness(['fgsm','bim'], [.01,.05], steps=2, norm='l2')
    assert learn.model.training and all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    model,dl = learn.model.eval(),learn.dls.valid.new(shuffle=False, drop_last=False)
    def loop(f):
        right = [(model(f(x.as_subclass(torch.Tensor), y)).argmax(1)==y).float() for x,y in dl]
        return torch.cat([o.as_subclass(torch.Tensor) for o in right]).mean().item()
    t = r.table.set_index(['kind','strength']).accuracy
    assert t['clean',0.]==pytest.approx(loop(lambda x, y: x))
    for e in (.01,.05):
        assert t['fgsm',e]==pytest.approx(loop(lambda x, y: fgsm(model, x, y, e, 'l2')))
        assert t['bim',e]==pytest.approx(loop(lambda x, y: bim(model, x, y, e, 2, norm='l2')))
    for k in corruptions: assert t[k,3.]==pytest.approx(loop(lambda x, y: corrupt(x, k, 3)))
    assert ('pgd',.01) in t.index # always beside it
    few = FineGrainedInterpretation.from_learner(learn).robustness('pgd', [.05], corrupted=False, n=3)
    assert (few.table.pictures==3).all() and list(few.table.kind)==['clean','pgd']
    a,b = (FineGrainedInterpretation.from_learner(learn).robustness('pgd', [.05], corrupted=False, seed=1).table for _ in range(2))
    assert a.equals(b)

def test_noise_and_blur_are_what_they_say():
    x = torch.full((1, 3, 200, 200), .5)
    assert (corrupt(x, 'noise', 1)-x).std().item()==pytest.approx(.03, rel=.05)
    spot = torch.zeros(1, 3, 101, 101)
    spot[:,:,50,50] = 1
    b = corrupt(spot, 'blur', 5)[0,0].double()
    at = torch.arange(101).double()-50
    assert b.sum().item()==pytest.approx(1, abs=1e-4) and ((b.sum(0)*at**2).sum()**.5).item()==pytest.approx(.03*101, rel=.03)

def test_no_pictures_no_labels(data):
    learn = learner(data)
    with pytest.raises(FineGrainedError, match='no option `stesp`'): FineGrainedInterpretation.from_learner(learn).robustness(stesp=3)
    assert isinstance(PixelModel(learn).model, torch.nn.Module)

@pytest.mark.parametrize('h,w', [(24,320), (400,20), (3,90), (64,64)])
def test_narrow_pictures_are_blurred_too(h, w):
    "As scipy blurs each side, with as much beyond the edge as there is"
    from scipy.ndimage import gaussian_filter1d
    x = torch.rand(2, 3, h, w, dtype=torch.float64)
    for strength,s in ((1,.004),(5,.03)):
        sigma,want = s*max(h, w),x.numpy()
        for axis,side in ((2,h),(3,w)): want = gaussian_filter1d(want, sigma, axis, mode='mirror', radius=min(max(int(3*sigma), 1), side-1))
        np.testing.assert_allclose(corrupt(x, 'blur', strength), want, atol=1e-5)

def test_accuracies_have_an_error():
    from scipy.stats import binomtest
    data = toy_birds(families=2, species=2, per_class=12, size=32)
    learn = fine_grained_learner(data.dls(size=32, bs=8, num_workers=0, device='cpu'), 'toy_resnet')
    t = FineGrainedInterpretation.from_learner(learn).robustness('fgsm', eps=.5, corrupted=False).table
    for r in t.itertuples():
        o = binomtest(round(r.accuracy*r.pictures), r.pictures).proportion_ci(method='wilson')
        assert r.error==pytest.approx((o.high-o.low)/2, abs=1e-6) and r.error>0
