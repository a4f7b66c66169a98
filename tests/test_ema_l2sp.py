"What goes with training: EMA, L2-SP, accumulated gradients and what decays, against slow loops, over phases, stopped and resumed"
import random, numpy as np, pytest, timm, torch, torchvision
from copy import deepcopy
from fastai.basics import (Adam, Callback, CancelFitException, CrossEntropyLossFlat, DataLoader, DataLoaders, L, Learner, SGD, params)
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.callback.schedule import lr_find # chkstyle: ignore (patches Learner)
from fastai.callback.training import GradientClip
from functools import partial
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from fgvc_fast.augment.mix import Mix
from fgvc_fast.core import FineGrainedError
from fgvc_fast.learner import fine_grained_learner
from fgvc_fast.models.trace import Trace
from fgvc_fast.train.aux_loss import AuxLosses
from fgvc_fast.train.precision import CPUAutocast
from fgvc_fast.train.accumulate import Accumulate
from fgvc_fast.train.weight_decay import DecayWeights, undecayed
from fgvc_fast.train.ema import EMA
from fgvc_fast.train.l2sp import L2SP
from fgvc_fast.train.all import Phase, PhaseRun
from stops import StopAt

pytestmark = pytest.mark.usefixtures('one_thread')

def stage(ni, nf): return nn.Sequential(nn.Conv2d(ni, nf, 3, stride=2, padding=1), nn.BatchNorm2d(nf), nn.ReLU())

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem,self.top = stage(3, 4),stage(4, 6)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(.2), nn.Linear(6, 3))
    def forward(self, x): return self.head(self.top(self.stem(x)))
    def group_names(self): return ['stem', 'top', 'head']
    def reinit(self, n):
        for s in (self.stem, self.top)[2-n:]: s[0].reset_parameters(), s[1].reset_parameters()

def learner(n=28, bs=8, seed=1, dtype=torch.float32, **kwargs):
    "28 pictures in batches of 8, 8, 8 and 4"
    torch.manual_seed(seed), random.seed(seed)
    y = torch.arange(n)%3
    x = torch.rand(n, 3, 8, 8, dtype=dtype) + .4*F.one_hot(y, 3)[...,None,None]
    dls = DataLoaders(*[DataLoader(TensorDataset(x, y), bs=bs, shuffle=s, num_workers=0) for s in (True,False)])
    learn = Learner(dls, Net().to(dtype), **(dict(loss_func=CrossEntropyLossFlat(), splitter=lambda m: L(m.stem, m.top, m.head).map(params)) | kwargs))
    learn.remove_cb(learn.progress)
    if dtype is torch.float64: # fastai's own casts to float32
        learn.remove_cb(learn.recorder)
        learn.loss_func = nn.CrossEntropyLoss()
    return learn

def plan(): return [Phase('head', 2, lr=3e-2), Phase('top', 2, lr=2e-2, reinit=1), Phase('all', 2, lr=1e-2, freeze_bn=True)]

def quiet(learn, f, *args, **kwargs):
    with learn.no_logging(): getattr(learn, f)(*args, **kwargs)
    return learn

def fit(learn, *args, **kwargs): return quiet(learn, 'fit_phases', *args, **kwargs)
def state(m): return {k: v.detach().clone() for k,v in m.state_dict().items()}
def close(a, b, tol=1e-5):
    assert set(a)==set(b)
    for k in a: assert torch.allclose(a[k].double(), b[k].double(), atol=tol, rtol=tol), k

class Scaled(MixedPrecision):
    "Autocast and a working loss scale on a CPU; the gradients of the batches `bad` overflow"
    def __init__(self, bad=()):
        super().__init__(AMPMode.FP16)
        self.bad,self.batch = set(bad),0
    def before_fit(self): self.autocast,self.learn.scaler,self.scales = torch.autocast('cpu', torch.bfloat16),torch.amp.GradScaler('cpu', init_scale=2.**10),L()
    def before_step(self):
        if self.batch in self.bad: self.model.head[-1].weight.grad.fill_(float('inf'))
        super().before_step()
    def after_batch(self): self.batch += self.training

# EMA

class SlowEMA(Callback):
    "The average in float64, by a loop over all that a model holds"
    order,run_valid = 54,False # just before EMA, while the weights are those of the step
    def __init__(self, decay): self.decay,self.after = decay,[]
    def before_train(self):
        if self.epoch==0: self.t,self.avg = 0,{k: v.double() for k,v in state(self.model).items()}
        self.moves = ({k for k,p in self.model.named_parameters() if p.requires_grad} | {f'{n}.{k}' for n,m in self.model.named_modules() if m.training
            for k in ('running_mean','running_var') if hasattr(m, k)})
    def before_batch(self): self.was = {k: p.detach().clone() for k,p in self.model.named_parameters()}
    def after_step(self):
        now = state(self.model)
        if all(torch.equal(now[k], v) for k,v in self.was.items()): return # skipped
        self.t += 1
        d = min(self.decay, (1+self.t)/(10+self.t))
        for k,v in now.items():
            if k in self.moves: self.avg[k] = d*self.avg[k] + (1-d)*v.double()
            else: self.avg[k] = v.double()
    def after_train(self):
        for k,v in state(self.model).items():
            if k not in self.moves: self.avg[k] = v.double() # counters
        self.after.append({k: v.clone() for k,v in self.avg.items()})

class Validated(Callback):
    "The weights that were validated"
    def before_fit(self): self.seen = getattr(self, 'seen', [])
    def before_validate(self): self.seen.append(state(self.model))

@pytest.mark.parametrize('cbs', [(), (Mix(mixup=.4, cutmix=1.),), (CPUAutocast(),), (Accumulate(3),), (Scaled(bad=(1,6)),)],
    ids=lambda o: type(o[0]).__name__ if o else 'plain')
def test_ema_is_the_slow_average_in_each_epoch_of_each_phase(cbs, decay=.5):
    slow,seen = SlowEMA(decay),Validated()
    learn = fit(learner(), plan(), cbs=[*map(deepcopy, cbs), EMA(decay), slow, seen])
    assert len(slow.after)==len(seen.seen)==6
    for a,b in zip(slow.after, seen.seen): close(a, b)
    close(state(learn.model), seen.seen[-1], 0)
    assert all(p.dtype==torch.float32 for p in learn.model.parameters())

def test_ema_in_float64_is_exact():
    slow = SlowEMA(.9)
    learn = quiet(learner(dtype=torch.float64), 'fit', 3, 1e-2, cbs=[EMA(.9), slow])
    close(state(learn.model), slow.after[-1], 1e-13)

class Held(Callback):
    "What EMA holds in each phase"
    def before_fit(self): self.names = getattr(self, 'names', [])
    def after_train(self): self.names.append(set(self.ema.now))

def test_ema_holds_only_what_trains():
    held = Held()
    learn = fit(learner(), plan(), cbs=[EMA(), held])
    head = {'head.3.weight','head.3.bias'}
    top = {f'top.{k}' for k in ('0.weight','0.bias','1.weight','1.bias','1.running_mean','1.running_var')}
    stem = {k.replace('top', 'stem') for k in top}
    assert held.names[0]==head and held.names[2]==head|top and held.names[4]=={k for k in head|top|stem if 'running' not in k}
    assert all(p.requires_grad for p in learn.model.parameters())

def test_the_best_weights_are_those_that_were_validated():
    seen,ema = Validated(),EMA(.9)
    learn = learner()
    learn.dls.valid.dataset.tensors[1].copy_(learn.dls.valid.dataset.tensors[1].roll(1)) # the better it learns, the worse
    fit(learn, Phase('all', 8, lr=3e-2, patience=2), cbs=[ema, seen])
    losses = learn.phase_log.valid_loss.tolist()
    close(state(learn.model), seen.seen[int(np.argmin(losses))], 0)
    assert abs(quiet(learn, 'validate') and learn.validate()[0]-min(losses))<1e-6

def test_no_validation_set():
    learn = learner()
    learn.dls.loaders = learn.dls.loaders[:1]
    slow = SlowEMA(.9)
    fit(learn, Phase('all', 2, lr=1e-2), cbs=[EMA(.9), slow])
    close(state(learn.model), slow.after[-1])

@pytest.mark.parametrize('ex', [CancelFitException, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize('ev, training', [('after_loss', True), ('after_step', True), ('after_train', True), ('before_batch', False), ('after_epoch', False)])
def test_a_stopped_fit_leaves_nothing_behind(ev, training, ex):
    ema,pull,seen = EMA(.9),L2SP(.5),Validated()
    learn = learner()
    stop = StopAt(ev, {'after_train': 2, 'after_epoch': 2}.get(ev, 6), ex, training)
    try: fit(learn, Phase('all', 3, lr=1e-2), cbs=[ema, pull, Accumulate(2), seen, stop])
    except RuntimeError: assert ex is RuntimeError
    assert ema.now is None and ema.other is None and not learn.cbs.filter(lambda o: isinstance(o, (EMA,L2SP,Accumulate)))
    assert all(p.requires_grad and p.grad is None for p in learn.model.parameters())
    if ex is not CancelFitException: close(state(learn.model), seen.seen[int(np.argmin(learn.phase_log.valid_loss))], 0)
    was = state(learn.model)
    quiet(learn, 'fit', 1, 0.)
    for k,p in learn.model.named_parameters(): assert torch.equal(p, was[k])

def test_a_cancelled_plain_fit_has_the_average_and_an_interrupted_one_can_go_on():
    learn,slow = learner(),SlowEMA(.9)
    quiet(learn, 'fit', 2, 1e-2, cbs=[ema := EMA(.9), slow, StopAt('before_batch', 7, CancelFitException, training=True)])
    close({k: v for k,v in state(learn.model).items() if 'batches' not in k}, {k: v for k,v in slow.avg.items() if 'batches' not in k})
    for training in (True,False):
        learn = learner()
        with pytest.raises(KeyboardInterrupt): quiet(learn, 'fit', 2, 1e-2, cbs=[ema, StopAt('before_batch', 2, training=training)])
        slow = SlowEMA(.9)
        quiet(learn, 'fit', 1, 1e-2, cbs=[ema, slow])
        close(state(learn.model), slow.after[-1])

def test_ema_keeps_out_of_lr_find_and_validate():
    learn = learner(cbs=EMA(.9))
    was = state(learn.model)
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=6, show_plot=False)
    close(state(learn.model), was, 0)
    fit(learn, 2)
    loss = learn.recorder.values[-1][1]
    was = state(learn.model)
    for _ in range(2): assert abs(learn.validate()[0]-loss)<1e-6
    close(state(learn.model), was, 0)

def test_ema_says_what_it_cannot_average():
    learn = learner()
    learn.model.top.to(torch.bfloat16)
    with pytest.raises(FineGrainedError, match=r'bfloat16 of `top.0.weight`'): quiet(learn, 'fit', 1, cbs=EMA())
    for o in (-.1, 1., 2):
        with pytest.raises(FineGrainedError, match='decay='): EMA(o)
    ema = EMA()
    ema.load_state_dict(dict(t=1, inside=False, other=dict(a=torch.ones(1))))
    with pytest.raises(FineGrainedError, match='other weights trained'): quiet(learner(), 'fit', 1, cbs=ema)

def test_who_only_looks_needs_no_optimizer():
    learn = learner(cbs=[EMA(), L2SP(.1), Accumulate(2), DecayWeights()])
    was = state(learn.model)
    learn.get_preds(), learn.validate()
    close(state(learn.model), was, 0)
    fit(learn, 1)
    learn.get_preds(), learn.validate()

# A run that goes on: what a snapshot of phases has to hold besides its own

@pytest.fixture
def with_callbacks(monkeypatch):
    "Runs of phases remember what callbacks with a state tell, by name"
    save,restore = PhaseRun.save,PhaseRun.restore
    def stateful(run, learn): return {o.name: o for o in L(learn.cbs)+L(run.cbs) if hasattr(o, 'load_state_dict')}
    def save2(self, learn, *args):
        save(self, learn, *args)
        self.snap['cbs'] = {k: o.state_dict() for k,o in stateful(self, learn).items()}
    def restore2(self, learn):
        restore(self, learn)
        for k,o in stateful(self, learn).items(): o.load_state_dict(self.snap['cbs'][k])
    monkeypatch.setattr(PhaseRun, 'save', save2), monkeypatch.setattr(PhaseRun, 'restore', restore2)

def extras(): return [EMA(.9), L2SP(2., beta=1.), Accumulate(3)]

@pytest.mark.parametrize('new', [False, True], ids=['same callbacks','new callbacks'])
@pytest.mark.parametrize('n, training', [(3, True), (10, True), (6, False), (22, True)])
def test_a_resumed_run_is_as_one_that_was_left_alone(n, training, new, with_callbacks):
    whole = fit(learner(), plan(), cbs=extras())
    cbs = extras()
    learn = fit(learner(), plan(), cbs=cbs + [StopAt('before_batch', n, training=training)])
    assert len(learn.phase_log)<6
    fit(learn, resume=True, cbs=extras() if new else cbs)
    assert learn.recorder.values==whole.recorder.values and len(whole.recorder.values)==6
    close(state(learn.model), state(whole.model), 0)

# L2-SP

def slow_adam(xs, ys, w, start, steps, lr, wd, alpha, beta, mom=.9, sqr_mom=.99, eps=1e-5):
    "fastai's Adam with its decay written out, in float64, for two linear layers without biases"
    w = [o.double().clone().requires_grad_() for o in w]
    m,v = [torch.zeros_like(o) for o in w],[torch.zeros_like(o) for o in w]
    for t in range(1, steps+1):
        loss = F.cross_entropy(xs.double()@w[0].T@w[1].T, ys)
        for i,g in enumerate(torch.autograd.grad(loss, w)):
            m[i],v[i] = mom*m[i]+(1-mom)*g,sqr_mom*v[i]+(1-sqr_mom)*g*g
            pull = alpha*(w[i]-start.double()) if i==0 else (wd if beta is None else beta)*w[i]
            with torch.no_grad(): w[i] -= lr*pull + lr/(1-mom**t)*m[i]/((v[i]/(1-sqr_mom**t)).sqrt()+eps)
    return w

@pytest.mark.parametrize('alpha, beta, wd', [(3., None, .5), (.5, 2., .5), (0., 0., .5), (2., None, None)])
def test_l2sp_with_adam_is_the_formula(alpha, beta, wd):
    torch.manual_seed(0)
    x,y = torch.randn(12, 5),torch.arange(12)%3
    dl = DataLoader(TensorDataset(x, y), bs=12, num_workers=0)
    net = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False))
    was = [p.detach().clone() for p in net.parameters()]
    learn = Learner(DataLoaders(dl, dl), net, loss_func=CrossEntropyLossFlat(), splitter=lambda m: L(m[0], m[1]).map(params), opt_func=partial(Adam, mom=.9),
        wd=wd)
    quiet(learn, 'fit', 20, .05, cbs=L2SP(alpha, beta))
    want = slow_adam(x, y, was, was[0], 20, .05, .01 if wd is None else wd, alpha, beta)
    for p,w in zip(net.parameters(), want): assert torch.allclose(p.double(), w, atol=2e-5)
    assert learn.opt.hypers.attrgot('wd')==L([.01 if wd is None else wd]*2)

def test_what_does_not_decay_is_not_pulled():
    learn = learner(lr=0., wd=.1)
    pull = L2SP(5.)
    quiet(learn, 'fit', 1, 0., cbs=pull)
    for p in learn.model.parameters(): p.data.add_(1.)
    was = state(learn.model)
    learn.opt_func = partial(Adam, eps=1e12) # steps of nothing but decay
    quiet(learn, 'fit', 1, .01, cbs=pull, reset_opt=True)
    for k,p in learn.model.named_parameters():
        if p.ndim<2: assert torch.allclose(p, was[k], atol=1e-6), k
        elif k.startswith('head'): assert torch.allclose(p, was[k]*(1-.01*.1)**4, atol=1e-6)
        else: assert torch.allclose(p-(was[k]-1), torch.full_like(p, (1-.01*5.)**4), atol=1e-5), k

def test_the_start_outlives_phases_and_stages_begun_afresh_lose_it():
    learn,pull,seen = learner(),L2SP(1.),[]
    was = state(learn.model)
    class Look(Callback):
        def after_fit(self): seen.append({k: v.clone() for k,v in self.l2_sp.start.items()})
    fit(learn, plan(), cbs=[pull, Look()])
    body = {k for k,_ in learn.model.named_parameters() if not k.startswith('head')}
    close(seen[0], {k: was[k] for k in body}, 0)
    for o in seen[1:]: close(o, {k: was[k] for k in body if k.startswith('stem')}, 0)
    learn,pull = learner(),L2SP(1.)
    fit(learn, Phase('top', 1, reinit=1), cbs=pull) # when it meets the learner, the stage is new
    assert all(k.startswith('stem') for k in pull.start)

def test_a_strong_pull_holds_and_frozen_weights_stay():
    far = []
    for a in (0., 40.):
        learn = learner()
        was = state(learn.model)
        fit(learn, [Phase('head', 1, lr=1e-2), Phase('all', 4, lr=2e-2, ratio=1)], cbs=L2SP(a))
        far.append((learn.model.top[0].weight-was['top.0.weight']).norm())
    assert far[1] < far[0]/2
    learn = learner()
    was = state(learn.model)
    fit(learn, Phase('head', 2, lr=1e-2), cbs=L2SP(1.))
    assert all(torch.equal(p, was[k]) for k,p in learn.model.named_parameters() if not k.startswith('head'))

def test_a_step_that_overflows_pulls_nothing():
    learn = learner(n=16)
    for p in learn.model.parameters(): p.data.mul_(2)
    pull = L2SP(5.)
    quiet(learn, 'fit', 1, 0., cbs=pull)
    for p in learn.model.parameters(): p.data.add_(.5)
    was = state(learn.model)
    quiet(learn, 'fit', 1, .1, cbs=[pull, Scaled(bad=(0,1))], reset_opt=True)
    for k,p in learn.model.named_parameters(): assert torch.equal(p, was[k])

def test_l2sp_with_a_fine_grained_learner_starts_from_the_body(birds):
    learn = fine_grained_learner(birds, 'toy_resnet', pool='gem')
    pull = L2SP(1.)
    fit(learn, Phase('head', 1), cbs=pull)
    assert set(pull.start)=={k for k,_ in learn.model.named_parameters() if k.startswith('body')}
    learn = fine_grained_learner(birds, 'toy_resnet', pretrained=False)
    with pytest.raises(FineGrainedError, match='began with random ones'): fit(learn, 1, cbs=L2SP(1.))

# Accumulation

class Gradients(Callback):
    "For each step its gradient, and what it should be: the mean over the items since the last, of what the loss was before it was weighted"
    order,run_valid = 5,False # after Mix and AuxLosses, before Accumulate
    def before_fit(self): self.got,self.want,self.now = [],[],[]
    def after_loss(self):
        self.now.append((len(self.yb[0]), torch.autograd.grad(self.loss_grad, list(self.model.parameters()), retain_graph=True)))
    def took(self):
        n = sum(b for b,_ in self.now)
        self.want.append([sum(b*g[i] for b,g in self.now)/n for i in range(len(self.now[0][1]))])
        self.got.append([p.grad.clone() for p in self.model.parameters()])
        self.now = []

class Took(Callback):
    order,run_valid = 9,False
    def before_step(self): self.gradients.took()

@pytest.mark.parametrize('extra', [(), (Mix(mixup=.4, cutmix=1.),)], ids=['plain','Mix'])
@pytest.mark.parametrize('n', [1, 2, 3, 10])
@pytest.mark.parametrize('items', [28, 17])
def test_the_gradient_is_the_mean_over_all_items(n, items, extra):
    see = Gradients()
    learn = quiet(learner(items, dtype=torch.float64), 'fit', 2, 1e-2, cbs=[*map(deepcopy, extra), Accumulate(n), see, Took()])
    batches = -(-items//8)
    assert len(see.got)==2*-(-batches//n)
    for a,b in zip(see.got, see.want):
        for x,y in zip(a, b): assert torch.allclose(x, y, atol=1e-13, rtol=1e-10)
    assert all(not p.grad.any() for p in learn.model.parameters())

def test_side_losses_are_weighted_alike():
    class Says(Net):
        def forward(self, x):
            res = super().forward(x)
            for t in self.traces: t.take(aux_losses=[('squares', .3, (res**2).mean())])
            return res
        traces = []
        def trace(self, *parts, detach): return Trace(self, *parts)
    see,learn = Gradients(),learner(20, dtype=torch.float64)
    learn.model = Says().double()
    quiet(learn, 'fit', 1, 1e-2, cbs=[AuxLosses(), Accumulate(2), see, Took()])
    for a,b in zip(see.got, see.want):
        for x,y in zip(a, b): assert torch.allclose(x, y, atol=1e-13)

def test_without_norms_it_trains_as_with_the_large_batch():
    def net_learner(bs):
        learn = learner(28, bs, dtype=torch.float64, opt_func=partial(SGD, mom=.9))
        torch.manual_seed(3)
        learn.model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        learn.splitter,learn.dls.train.shuffle = params,False
        return learn
    a = quiet(net_learner(28), 'fit', 4, .1)
    b = quiet(net_learner(8), 'fit', 4, .1, cbs=Accumulate(4))
    for p,q in zip(a.model.parameters(), b.model.parameters()): assert torch.allclose(p, q, atol=1e-12)

def test_clipping_sees_the_whole_and_the_schedule_goes_by_batches():
    norms = []
    class Norm(Callback):
        order = 12
        def before_step(self): norms.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm().item())
    learn = quiet(learner(), 'fit_one_cycle', 2, 1e-2, cbs=[Accumulate(3), GradientClip(1e-3), Norm()])
    assert len(norms)==4 and max(abs(o-1e-3) for o in norms)<1e-5
    want = quiet(learner(), 'fit_one_cycle', 2, 1e-2)
    assert learn.recorder.lrs==want.recorder.lrs and len(learn.recorder.losses)==8

@pytest.mark.parametrize('cb', [CPUAutocast, Scaled])
def test_accumulated_in_mixed_precision(cb):
    whole,parts = [],[]
    def note(to): return type('Note', (Callback,), dict(order=12, before_step=lambda self: to.append([p.grad.clone() for p in self.model.parameters()])))()
    def still(bs):
        learn = learner(28, bs)
        learn.model.head[2].p,learn.dls.train.shuffle = 0.,False
        learn.model.stem[1],learn.model.top[1] = nn.Identity(),nn.Identity()
        return learn
    quiet(still(28), 'fit', 1, 0., cbs=[cb(), note(whole)])
    quiet(still(8), 'fit', 1, 0., cbs=[cb(), Accumulate(4), note(parts)])
    assert len(whole)==len(parts)==1
    for a,b in zip(whole[0], parts[0]): assert torch.allclose(a, b, atol=.02*a.abs().max().item())

def test_an_overflow_drops_the_batches_gathered_and_no_more():
    steps = []
    class Steps(Callback):
        def after_cancel_step(self): steps.append('skipped')
    learn = quiet(learner(), 'fit', 2, 1e-2, cbs=[Scaled(bad=(1,)), Accumulate(2), Steps()])
    assert steps==['skipped'] and all(p.isfinite().all() for p in learn.model.parameters())

def test_leftovers_of_a_cancelled_fit_do_not_reach_the_next():
    learn = learner()
    quiet(learn, 'fit', 1, 0., cbs=[Accumulate(3), StopAt('before_batch', 3, CancelFitException, training=True)])
    assert all(not p.grad.any() for p in learn.model.parameters())
    see = Gradients()
    with pytest.raises(KeyboardInterrupt): quiet(learn, 'fit', 1, 0., cbs=[Accumulate(3), StopAt('before_batch', 3, training=True)])
    quiet(learn, 'fit', 1, 0., cbs=[Accumulate(3), see, Took()])
    for a,b in zip(see.got, see.want):
        for x,y in zip(a, b): assert torch.allclose(x, y, atol=1e-6)

def test_ema_counts_steps_not_batches():
    ts = []
    class Count(Callback):
        order = 56
        def after_train(self): ts.append(self.ema.t)
    quiet(learner(), 'fit', 2, 1e-2, cbs=[EMA(), Accumulate(3), Count()])
    assert ts==[2,4]

# What decays

bodies = '''resnet18 efficientnet_b0 convnext_atto convnext_zepto_rms vit_tiny_patch16_224 vit_wee_patch16_reg1_gap_256 deit_tiny_distilled_patch16_224 eva02_tiny_patch14_224 beit_base_patch16_224
    swin_tiny_patch4_window7_224 levit_128s mvitv2_tiny volo_d1_224 hiera_tiny_224 maxvit_pico_rw_256'''.split()

def spared_here(m):
    names = {p: k for k,p in m.named_parameters()}
    return {names[p] for p in undecayed(m)}

def spared_by_timm(m):
    names = {p: k for k,p in m.named_parameters()}
    return {names[p] for p in param_groups_weight_decay(m, .1, no_weight_decay_list=m.no_weight_decay() if hasattr(m, 'no_weight_decay') else ())[0]['params']}

@pytest.mark.parametrize('arch', bodies)
def test_what_timm_spares_and_no_more(arch):
    with torch.device('meta'): m = timm.create_model(arch)
    assert spared_here(m)==spared_by_timm(m)

@pytest.mark.parametrize('arch, more', [('xcit_nano_12_p16_224', 'temperature'), ('vit_base_patch16_siglip_224', 'latent'), ('samvit_base_patch16', 'rel_pos_')])
def test_what_timm_forgets(arch, more):
    with torch.device('meta'): m = timm.create_model(arch)
    left = spared_here(m)-spared_by_timm(m)
    assert left and all(more in k for k in left)

@pytest.mark.parametrize('arch', ['vit_b_16','swin_t','swin_v2_t','convnext_tiny'])
def test_torchvision(arch):
    with torch.device('meta'): m = getattr(torchvision.models, arch)()
    none = undecayed(m)
    for k,p in m.named_parameters():
        spared = p in none
        if p.ndim<2 or any(o in k for o in ('class_token','pos_embedding','bias_table','logit_scale','layer_scale')): assert spared, k
        else: assert not spared and k.endswith('weight'), k

def test_norms_of_every_kind_embeddings_and_our_own():
    m = nn.ModuleList([nn.GroupNorm(1, 4), nn.RMSNorm(4), nn.LayerNorm(4), nn.InstanceNorm2d(4, affine=True), nn.Embedding(5, 4), nn.PReLU(4)])
    assert undecayed(m)==set(m.parameters())

@pytest.fixture(scope='module')
def birds():
    from fgvc_fast.datasets.all import fine_grained_data
    return fine_grained_data('toy_birds', families=2, species=2, per_class=8, size=32).dls(size=32, bs=8, num_workers=0, seed=0)

class Decays(Callback):
    "Which parameters the optimizer decays, in each fit"
    def __init__(self): self.seen = []
    def before_train(self):
        names = {p: k for k,p in self.model.named_parameters()}
        self.seen.append({names[p] for p,_,s,_ in self.opt.all_params() if s.get('do_wd', True)})

@pytest.mark.parametrize('arch, kw', [('toy_resnet', dict(pool='gem', blocks={-1: 'cbam'}, branch=-2)), ('toy_resnet', dict(pool='parts', head='cosine')), ('vit_tiny_patch16_224', dict(pretrained=False, depth=2))])
def test_in_every_phase_of_a_fine_grained_learner(arch, kw, birds):
    learn,see = fine_grained_learner(birds, arch, **kw),Decays()
    fit(learn, [Phase('head', 1), Phase('all', 1)], cbs=see)
    want = {k for k,p in learn.model.named_parameters() if p.ndim>1 and k.endswith('weight')}
    assert see.seen==[want, want] and not any(o in k for k in want for o in ('pos_embed','cls_token','pool.p','gamma','log_scale','norm'))

def test_who_wants_norms_to_decay_gets_it(birds):
    learn,see = fine_grained_learner(birds, 'toy_resnet', wd_bn_bias=True),Decays()
    fit(learn, Phase('head', 1), cbs=see)
    assert see.seen==[{k for k,_ in learn.model.named_parameters()}]

def test_only_matrices_shrink_over_phases():
    learn = learner(wd=.1, opt_func=partial(Adam, eps=1e12), cbs=DecayWeights())
    was = state(learn.model)
    fit(learn, [Phase('head', 1, lr=.1), Phase('all', 1, lr=.1)])
    for k,p in learn.model.named_parameters(): assert torch.allclose(p, was[k], atol=1e-6)==(p.ndim<2), k

def cnn(splitter=None):
    from fgvc_fast.models.all import fine_grained_model
    torch.manual_seed(0)
    model = fine_grained_model('toy_resnet', 3, img_size=32)
    x,y = torch.rand(8, 3, 32, 32),torch.arange(8)%3
    dls = DataLoaders(*[DataLoader(TensorDataset(x, y), bs=4, num_workers=0) for _ in range(2)])
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), splitter=splitter or (lambda m: m.groups()))
    learn.remove_cb(learn.progress)
    return learn

@pytest.mark.parametrize('cut', ['stages','layers'])
@pytest.mark.parametrize('how', ['phase','hand'])
def test_no_pull_to_what_was_begun_afresh(cut, how):
    "Only weights of stages that kept theirs are pulled, whatever the splitter makes a group of, and whoever began them afresh"
    from fgvc_fast.train.all import by_layer
    learn,pull = cnn(by_layer if cut=='layers' else None),L2SP(1.)
    fit(learn, [Phase('all', 1, lr=1e-4)], cbs=pull)
    late = {f'body.model.{k}' for k,_ in learn.model.body.model.named_parameters() if learn.model.body.group_of(k)>=len(learn.model.body.stages)-2}
    kept = {f'body.model.{k}' for k,_ in learn.model.body.model.named_parameters()}-late
    assert set(pull.start)==kept|late and late and kept
    if how=='phase': fit(learn, [Phase('all', 1, lr=1e-4, reinit=2)], cbs=pull)
    else:
        learn.model.reinit(2)
        fit(learn, [Phase('all', 1, lr=1e-4)], cbs=pull)
    assert set(pull.start)==kept
    fresh = L2SP(1.) # one that comes later takes random values for no start either
    if how=='hand':
        fit(learn, [Phase('all', 1, lr=1e-4)], cbs=fresh)
        assert set(fresh.start)==kept

@pytest.mark.parametrize('device', ['mps','xpu','hpu'])
def test_precision_that_a_device_does_not_have_is_refused(device):
    from fgvc_fast.train.precision import precision_callback
    class Device: type = device
    for amp in ('bf16','fp16'):
        with pytest.raises(FineGrainedError, match=f"amp='{amp}' does nothing on {device}"): precision_callback(amp, Device)
    for amp in ('auto',None): assert precision_callback(amp, Device)==(None, 'float32')
    for bad in ('bf32', 16, True, ''):
        with pytest.raises(FineGrainedError, match='amp='): precision_callback(bad, torch.device('cpu'))
    assert isinstance(precision_callback('bf16', torch.device('cpu'))[0], CPUAutocast)

def test_a_pull_that_is_given_to_another_learner_meets_it_anew(tmp_path):
    import pickle
    pull,a,b = L2SP(1.),learner(seed=1),learner(seed=2)
    was = {k: v.clone() for k,v in b.model.named_parameters()}
    fit(a, [Phase('all', 1, lr=1e-3)], cbs=pull)
    fit(b, [Phase('all', 1, lr=1e-3)], cbs=pull)
    assert pull.start and all(torch.equal(v, was[k]) for k,v in pull.start.items())
    again = pickle.loads(pickle.dumps(pull))
    assert again.start.keys()==pull.start.keys()
    other = L2SP(1.)
    other.load_state_dict(dict(start={'elsewhere.weight': torch.ones(2)}))
    with pytest.raises(FineGrainedError, match='another model'): fit(b, [Phase('all', 1, lr=1e-3)], cbs=other)

@pytest.mark.parametrize('call,what', [(lambda: Accumulate(0), 'n='), (lambda: Accumulate('x'), 'n='), (lambda: Accumulate(True), 'n='), (lambda: Accumulate(None), 'n='), (lambda: EMA('x'), 'decay='),
    (lambda: EMA(1), 'decay='), (lambda: EMA(-.1), 'decay='),
    (lambda: EMA(float('nan')), 'decay='), (lambda: EMA(None), 'decay='), (lambda: L2SP('x'), 'alpha='), (lambda: L2SP(None), 'alpha='), (lambda: L2SP(float('inf')), 'alpha='), (lambda: L2SP(1, -1), 'beta='),
    (lambda: L2SP(1, 'x'), 'beta=')])
def test_what_is_no_option_of_an_extra(call, what):
    with pytest.raises(FineGrainedError, match=what): call()
