"Phases: what a stop leaves behind, and whether going on is as if nothing had happened"
import pickle, pytest, random, torch, warnings
from fastai.basics import (Callback, CancelFitException, CrossEntropyLossFlat, DataLoader, DataLoaders, L, Learner, OptimWrapper, accuracy, params)
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from functools import partial
from torch import nn, tensor
from torch.utils.data import TensorDataset
from fgvc_fast.core import FineGrainedError
from fgvc_fast.train.groups import FreezeBN, freeze_below
from fgvc_fast.train.all import Phase, phase_rates
from stops import StopAt

def stage(ni, nf): return nn.Sequential(nn.Conv2d(ni, nf, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(nf), nn.ReLU())

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem,self.top = stage(3, 6),stage(6, 8)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    def forward(self, x): return self.head(self.top(self.stem(x)))
    def group_names(self): return ['stem', 'top', 'head']
    def reinit(self, n):
        for s in (self.stem, self.top)[2-n:]: s[0].reset_parameters(), s[1].reset_parameters()

def split(m): return L(m.stem, m.top, m.head).map(params)

def noise(n):
    y = torch.arange(n)%2
    return TensorDataset(torch.rand(n, 3, 8, 8) + .2*y[:,None,None,None]*tensor([1.,0,0])[:,None,None], y)

def learner(n_dls=2, bar=False, **kwargs):
    torch.manual_seed(1)
    dls = DataLoaders(*[DataLoader(noise(o), bs=8, num_workers=0) for o in (48, 24)[:n_dls]])
    learn = Learner(dls, Net(), loss_func=CrossEntropyLossFlat(), splitter=split, **kwargs)
    if not bar: learn.remove_cb(learn.progress)
    return learn

def plan(): return [Phase('head', 2, lr=2e-2), Phase('top', 2, lr=2e-2, reinit=1), Phase('all', 3, lr=1e-2)]

def values(learn): return tensor([v for v in learn.recorder.values])

def fit(learn, *args, **kwargs):
    with learn.no_logging(): learn.fit_phases(*args, **kwargs)
    return learn

@pytest.fixture(scope='module')
def whole():
    torch.set_num_threads(1)
    return fit(learner(), plan())

def assert_same(a, b):
    torch.testing.assert_close(values(a), values(b), rtol=0, atol=1e-6)
    assert a.recorder.lrs==b.recorder.lrs and a.recorder.iters==b.recorder.iters
    torch.testing.assert_close(torch.stack(a.recorder.losses), torch.stack(b.recorder.losses), rtol=0, atol=1e-6)
    for (k,v),w in zip(a.model.state_dict().items(), b.model.state_dict().values()): torch.testing.assert_close(v, w, rtol=0, atol=1e-6, msg=k)
    cols = [o for o in a.phase_log if o!='seconds']
    assert a.phase_log[cols].round(5).equals(b.phase_log[cols].round(5))

# six training and three validation batches an epoch; the phases end after epochs 2, 4, 7
stops = dict(first_batch=('before_batch', 1), mid_epoch=('after_pred', 4), before_step=('before_step', 9), validating=('after_pred', 8), at_epochs_end=('after_epoch', 1),
    phase_begins=('before_fit', 2), phase_ends=('after_fit', 1), last_phase=('after_loss', 6*5+3*4+2), last_epoch_validating=('before_validate', 7), before_training=('before_fit', 1))

@pytest.mark.parametrize('ev,n', stops.values(), ids=stops)
def test_resume_is_as_if_nothing_had_happened(whole, ev, n, capsys):
    learn = fit(learner(), plan(), cbs=StopAt(ev, n))
    assert 'learn.fit_phases(resume=True) goes on' in capsys.readouterr().out
    fit(learn, resume=True)
    assert_same(learn, whole)

def test_stopped_between_phases(whole, monkeypatch):
    learn,real,calls = learner(), Net.reinit, []
    def reinit(self, n):
        calls.append(n)
        real(self, n)
        if len(calls)==1: raise KeyboardInterrupt
    monkeypatch.setattr(Net, 'reinit', reinit)
    fit(learn, plan())
    fit(learn, resume=True)
    assert len(calls)==2
    assert_same(learn, whole)

def test_stopped_twice(whole):
    learn = fit(learner(), plan(), cbs=StopAt('after_pred', 14))
    fit(learn, resume=True, cbs=StopAt('before_step', 16))
    fit(learn, resume=True)
    assert_same(learn, whole)

def test_random_numbers_go_on_too():
    def new():
        random.seed(1)
        learn = learner()
        learn.dls.train.shuffle = True
        learn.model.head.insert(2, nn.Dropout())
        learn.dls.train.rng = random.Random(1)
        return learn
    learn = fit(new(), plan(), cbs=StopAt('after_pred', 30))
    torch.rand(7), random.random()
    assert_same(fit(learn, resume=True), fit(new(), plan()))

def test_resume_after_other_training(whole):
    learn = fit(learner(), plan(), cbs=StopAt('after_pred', 30))
    with learn.no_logging(): learn.fit(1, 1e-2)
    fit(learn, resume=True)
    assert_same(learn, whole)

def test_resume_with_a_torch_optimizer():
    def new(): return learner(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW))
    learn = fit(new(), plan(), cbs=StopAt('after_pred', 6*4+3*3+2))
    assert_same(fit(learn, resume=True), fit(new(), plan()))

def test_resume_keeps_patience():
    def new():
        learn = learner()
        learn.dls.valid.dataset.tensors[1].copy_(1-learn.dls.valid.dataset.tensors[1]) # the better it learns, the worse it does
        return learn
    p = [Phase('all', 8, lr=2e-2, patience=3), Phase('head', 1)]
    a,b = fit(new(), p),fit(new(), p, cbs=StopAt('after_pred', 6*2+3*2+3))
    assert 4<=len(a.phase_log)<9
    assert_same(fit(b, resume=True), a)

def test_stop_leaves_the_best_weights():
    seen = []
    class Keep(Callback):
        order = 60
        def after_epoch(self): seen.append((self.recorder.values[-1][1], {k: v.clone() for k,v in self.model.state_dict().items()}))
    learn = fit(learner(), [Phase('all', 6, lr=.3)], cbs=[Keep(), StopAt('after_pred', 6*5+3*5+3)])
    assert len(seen)==5 and learn.phase_log.valid_loss.tolist()==[o[0] for o in seen]
    best = min(seen, key=lambda o: o[0])
    assert best is not seen[-1], 'the trial should not be won by the last epoch'
    for k,v in learn.model.state_dict().items(): assert torch.equal(v, best[1][k]), k
    assert not any('grad_avg' in o for o in learn.opt.state.values()), 'averages of other weights'

class Amp(Callback):
    "As fastai's MixedPrecision, for the CPU"
    order = 10
    def before_batch(self):
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)
        self.autocast.__enter__()
    def after_pred(self): self.learn.pred = self.pred.float()
    def after_loss(self): self.autocast.__exit__(None, None, None)

@pytest.mark.parametrize('ex', [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize('ev', ['after_pred', 'before_step', 'before_validate', 'after_epoch', 'before_fit', 'after_fit'])
def test_stop_leaves_nothing_behind(ev, ex):
    ended = []
    learn = learner(cbs=[Amp(), Callback(after_fit=lambda self: ended.append(1))])
    learn.freeze()
    cbs,logger,flags = list(learn.cbs),learn.logger,[p.requires_grad for p in learn.model.parameters()]
    try: learn.fit_phases(plan(), cbs=StopAt(ev, 1, ex))
    except RuntimeError: assert ex is RuntimeError
    else: assert ex is KeyboardInterrupt
    assert list(learn.cbs)==cbs and learn.logger is logger and '_do_fit' not in vars(learn)
    assert [p.requires_grad for p in learn.model.parameters()]==flags
    assert all(p.grad is None for p in learn.model.parameters())
    assert not learn.training and not any(m.training for m in learn.model.modules())
    assert not torch.is_autocast_enabled('cpu') and torch.autocast_increment_nesting()==1
    torch.autocast_decrement_nesting()
    assert ended or ev=='before_fit'
    assert learn.get_preds()[0].dtype==torch.float32
    with learn.no_logging(): learn.fit_one_cycle(1, 1e-3)

def test_a_progress_bar_survives_a_stop(capsys):
    learn = learner(bar=True)
    learn.fit_phases(plan(), cbs=StopAt('after_pred', 30))
    assert learn.logger is print
    learn.fit_phases(resume=True)
    out = capsys.readouterr().out
    rows = [o.split() for o in out.replace('\r', '\n').split('\n')]
    assert [int(o[0]) for o in rows if len(o)==4 and o[0].isdigit()]==list(range(7))
    assert 'Phase 2 of 3: from top · 2 epochs · reinit 1' in out
    capsys.readouterr()
    with learn.no_bar(), learn.no_logging(): learn.fit_phases(1)
    assert capsys.readouterr().out==''

def test_errors_propagate_and_can_be_resumed(whole):
    learn = learner()
    with pytest.raises(RuntimeError): fit(learn, plan(), cbs=StopAt('after_pred', 20, RuntimeError('out of memory')))
    assert_same(fit(learn, resume=True), whole)

@pytest.mark.parametrize('cb', [SaveModelCallback, EarlyStoppingCallback])
def test_trackers_see_no_skipped_epochs(cb, tmp_path):
    learn = learner(path=tmp_path)
    p = [Phase('all', 4, lr=1e-2)]
    fit(learn, p, cbs=StopAt('after_pred', 6*2+3*2+2))
    fit(learn, resume=True, cbs=cb(patience=9) if cb is EarlyStoppingCallback else cb())
    assert len(learn.phase_log)==4

def test_early_stopping():
    learn,seen = learner(),[]
    learn.dls.valid.dataset.tensors[1].copy_(1-learn.dls.valid.dataset.tensors[1]) # the better it learns, the worse it does
    keep = Callback(after_epoch=lambda self: seen.append({k: v.clone() for k,v in self.model.state_dict().items()}))
    fit(learn, [Phase('all', 12, lr=2e-2, patience=3)], cbs=keep)
    loss = learn.phase_log.valid_loss
    best = int(loss.argmin())
    assert len(loss)==best+1+3<12 and (loss[best+1:]>loss[best]).all()
    assert len(seen)==len(loss)
    for k,v in learn.model.state_dict().items(): assert torch.equal(v, seen[best][k]), k
    with torch.no_grad(): again = learn.validate()[0]
    assert abs(again-loss[best])<1e-6

class Claim(Callback):
    "Let the validation losses be these"
    order = 50
    def __init__(self, losses): self.losses = iter(losses)
    def after_epoch(self): self.learn.final_record[1] = next(self.losses)

def test_patience_of_one_phase_is_not_that_of_the_next():
    learn,seen = learner(),[]
    keep = Callback(after_epoch=lambda self: seen.append(self.model.head[2].weight.detach().clone()))
    plan = [Phase('all', 2, patience=1), Phase('all', 5, lr=1e-2, patience=2), Phase('head', 1, patience=1)]
    fit(learn, plan[:2], cbs=[keep, Claim([.1,.05, .9,.8,.85,.7,.75])]) # better and better, though never as good as phase 1
    assert learn.phase_log.phase.tolist()==[1,1,2,2,2,2,2] and learn.phase_log.valid_loss.tolist()[2]==.9
    assert torch.equal(learn.model.head[2].weight, seen[5])
    fit(learn, plan, cbs=Claim([.1,.2, .9,.95,.91,.5])) # each patience begins anew
    assert learn.phase_log.phase.tolist()==[1,1,2,2,2,3]

def test_planned_rates_are_the_recorded_ones(whole):
    for planned,real in zip(phase_rates(whole, plan()), whole._phase_run.rates): assert (planned==tensor(real, dtype=torch.float64).numpy()).all()
    assert whole.recorder.lrs==[o for r in phase_rates(whole, plan()) for o in r[:,-1].tolist()]

def test_rates_are_fit_one_cycles_own():
    a = learner()
    with a.no_logging(): a.fit_one_cycle(3, slice(1e-3/30, 1e-3))
    planned = phase_rates(a, Phase('all', 3, lr=1e-3))[0]
    torch.testing.assert_close(tensor(a.recorder.lrs), tensor(planned[:,-1]), rtol=1e-6, atol=0, check_dtype=False)

def test_one_phase_is_one_fit_one_cycle():
    a,b = learner(),learner()
    with a.no_logging(): a.fit_one_cycle(2, [1e-2/30, 1e-2/30**.5, 1e-2])
    fit(b, Phase('all', 2, lr=1e-2))
    torch.testing.assert_close(values(a), values(b), rtol=0, atol=1e-6)

def test_frozen_groups_rest():
    learn = learner(metrics=accuracy, wd=.1)
    fit(learn, [Phase('all', 1, lr=1e-2)])
    was = {k: v.clone() for k,v in learn.model.state_dict().items()}
    grads = []
    cb = Callback(before_step=lambda self: grads.append([n for n,p in self.model.named_parameters() if p.grad is not None]))
    modes = Callback(after_pred=lambda self: grads.append([m.training for m in (self.model.stem[1], self.model.top[1])]) if self.training else None)
    fit(learn, [Phase('top', 1, lr=1e-2)], cbs=[cb, modes])
    now = learn.model.state_dict()
    assert [k for k in was if k.startswith('stem') and not torch.equal(was[k], now[k])]==[]
    assert all(not torch.equal(was[k], now[k]) for k in now if k.startswith(('top', 'head')))
    assert [False,True] in grads and all(o==[False,True] or not any(n.startswith('stem') for n in o) for o in grads)

def test_old_gradients_move_nothing():
    learn,was = learner(wd=.1),[]
    note = Callback(before_fit=lambda self: was.append(self.model.stem[0].weight.detach().clone()))
    fit(learn, [Phase('all', 1, lr=1e-2), Phase('head', 1, lr=1e-2)], cbs=note) # an optimizer steps whatever has a gradient, be it zero
    assert torch.equal(learn.model.stem[0].weight, was[1]) and not torch.equal(*was)

def test_backward_stops_at_the_frozen_part():
    learn,seen = learner(),[]
    handle = learn.model.stem.register_full_backward_hook(lambda *a: seen.append(1))
    with learn.no_logging(), freeze_below(learn, 'head'): learn.fit(1, 1e-3)
    assert not seen
    with learn.no_logging(), freeze_below(learn, 'stem'): learn.fit(1, 1e-3)
    handle.remove()
    assert seen
    assert not any(isinstance(o, FreezeBN) for o in learn.cbs)

def test_reinit_forgets(monkeypatch):
    learn,calls = learner(),[]
    monkeypatch.setattr(Net, 'reinit', lambda self, n: calls.append((n, self.training)))
    fit(learn, [Phase('head', 1), Phase('all', 1, reinit=2)])
    assert [o[0] for o in calls]==[2]

@pytest.mark.parametrize('n_dls', [1, 2])
def test_without_validation(n_dls):
    learn = learner(n_dls, metrics=accuracy)
    if n_dls==2: learn.dls.loaders[1] = learn.dls.train.new(TensorDataset(torch.zeros(0,3,8,8), torch.zeros(0).long()), shuffle=False)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(FineGrainedError, match='phase 1 has patience=2, but there is no validation loss'): learn.fit_phases(Phase('all', 3, patience=2))
        fit(learn, plan(), cbs=StopAt('after_pred', 20))
        fit(learn, resume=True)
    assert len(learn.phase_log)==7 and learn.phase_log.valid_loss.isna().all() and learn.phase_log.train_loss.notna().all()
    assert len(learn.recorder.losses)==7*6
    learn.plot_phases()

def test_nothing_to_resume(whole):
    with pytest.raises(FineGrainedError, match='has not begun'): learner().fit_phases(resume=True)
    with pytest.raises(FineGrainedError, match='ran to its end'): whole.fit_phases(resume=True)
    learn = fit(learner(), plan(), cbs=StopAt('after_pred', 20))
    with pytest.raises(FineGrainedError, match='leave `plan` out'): learn.fit_phases(3, resume=True)

def test_no_recorder():
    learn = learner()
    learn.remove_cb(learn.recorder)
    with pytest.raises(FineGrainedError, match='Recorder'): learn.fit_phases(1)

def test_a_cancelled_phase_goes_to_the_next():
    learn = fit(learner(), plan(), cbs=StopAt('before_batch', 3, CancelFitException))
    assert sorted(set(learn.phase_log.phase))==[2,3]

def test_an_export_carries_no_snapshots(tmp_path):
    learn = fit(learner(path=tmp_path), plan(), cbs=StopAt('after_pred', 30))
    learn.remove_cbs(learn.cbs.filter(lambda o: isinstance(o, StopAt)))
    run = pickle.loads(pickle.dumps(learn._phase_run))
    assert run.snap is None and run.best is None and len(run.rows)==len(learn.phase_log)

nan = float('nan')

@pytest.mark.parametrize('kwargs', [dict(to=None), dict(to=True), dict(to=1.5), dict(to=['head']), dict(epochs=-1), dict(epochs=0), dict(epochs='x'), dict(epochs=1.5),
    dict(epochs=None), dict(epochs=True), dict(lr='x'), dict(lr=0), dict(lr=-1), dict(lr=nan),
    dict(lr=float('inf')), dict(lr=slice('x',1)), dict(lr=slice(1e-3,None)), dict(lr=slice(None,nan)), dict(lr=slice(1e-4,1e-3,2)), dict(lr=[1e-3]), dict(ratio=0),
    dict(ratio='x'), dict(ratio=nan), dict(ratio=None), dict(decay=0), dict(decay=1.1), dict(decay='x'),
    dict(decay=nan), dict(size='x'), dict(size=0), dict(size=(64,)), dict(size=-32), dict(cached_views='x'), dict(cached_views=-1), dict(cached_views=1.5),
    dict(reinit=-1), dict(reinit='x'), dict(reinit=None), dict(patience=-1), dict(patience=0), dict(patience='x'),
    dict(freeze_bn='yes'), dict(freeze_bn=None), dict(pct_start=0), dict(pct_start=1), dict(pct_start='x'), dict(pct_start=nan), dict(div=0), dict(div='x'),
    dict(div=nan), dict(div=float('inf'))], ids=str)
def test_what_no_phase_may_say(kwargs):
    with pytest.raises(FineGrainedError, match=f'{next(iter(kwargs))}='): Phase(**dict(to='all', epochs=2) | kwargs)

def test_numbers_of_numpy_are_numbers():
    import numpy as np
    assert Phase('all', np.int64(2), lr=np.float32(.1), patience=np.int64(1)).epochs==2

@pytest.mark.parametrize('to', [99, -99, 'beak', 'blocks:x'])
@pytest.mark.parametrize('call', ['fit_phases','plot_phases','lr_find_phase'])
def test_depths_that_are_not_there(to, call):
    import fgvc_fast.train.all # chkstyle: ignore (patches Learner)
    learn = learner()
    with pytest.raises(FineGrainedError, match='depth'): getattr(learn, call)(Phase(to, 1))

@pytest.mark.parametrize('plan', [0, -1, 'all', True, 2.5, [], [3], dict(epochs=2), {'head'}, nan, [Phase('head', 1), None]], ids=str)
@pytest.mark.parametrize('call', ['fit_phases','plot_phases','lr_find_phase'])
def test_what_is_no_plan(plan, call):
    learn = learner()
    was = {k: v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(FineGrainedError): getattr(learn, call)(plan)
    assert all(torch.equal(v, was[k]) for k,v in learn.model.state_dict().items()) and not hasattr(learn, '_phase_run')

@pytest.mark.parametrize('lr', ['x', 0, -1, nan, True, [1e-3], slice(None)], ids=str)
@pytest.mark.parametrize('call', ['fit_phases','plot_phases'])
def test_what_is_no_rate(lr, call):
    with pytest.raises(FineGrainedError, match='lr'): getattr(learner(), call)(2, lr=lr)

@pytest.mark.parametrize('figsize', ['x', 3, (1,), (1,-1), (1,'x')], ids=str)
def test_what_is_no_size_of_a_figure(figsize):
    with pytest.raises(FineGrainedError, match='figsize='): learner().plot_phases(2, figsize=figsize)
