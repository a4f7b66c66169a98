"Training that goes to NaN stops in the batch in which it does, says what to try, and gives the last good weights back"
import math
import pytest, torch
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, L, Learner, params
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.callback.schedule import lr_find # chkstyle: ignore (patches Learner)
from fastai.callback.tracker import TerminateOnNaNCallback
from functools import partial
from torch import nn
from torch.utils.data import TensorDataset
from fgvc_fast.core import FineGrainedError
from fgvc_fast.train.all import EMA, FiniteLoss, NonFiniteLoss, Phase

pytestmark = pytest.mark.usefixtures('one_thread')

def learner(n=32, cbs=True, n_dls=2, **kwargs):
    torch.manual_seed(0)
    y = torch.arange(n)%2
    x = torch.randn(n, 4)+y[:,None]
    dls = DataLoaders(*[DataLoader(TensorDataset(x.clone(), y), bs=8, num_workers=0) for _ in range(n_dls)])
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), splitter=lambda m: L(m[:3], m[3:]).map(params), cbs=FiniteLoss() if cbs else None, **kwargs)
    learn.remove_cb(learn.progress)
    return learn

def weights(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def equal(a, b): return all(torch.equal(a[k], b[k]) for k in b)

class Spoil(Callback):
    "Do something to the learner at the beginning of batch `i` of training epoch `e`, or in validation"
    order = 70
    def __init__(self, do, e=2, i=1, training=True): self.do,self.e,self.i,self.where,self.was = do,e,i,training,[]
    def after_epoch(self): self.was.append(weights(self.learn))
    def before_batch(self):
        if (self.training, self.epoch)==(self.where, self.e) and self.iter==self.i: self.do(self.learn)

def rate(v): return lambda learn: learn.opt.set_hyper('lr', v)
def bad_pictures(v): return lambda learn: setattr(learn, 'xb', (learn.xb[0].clone().fill_(v),))
def bad_weight(learn): learn.model[3].weight.data[0,0] = math.nan

# what is spoilt, the batch that is named (None: the end of the epoch), and a word of the reason
spoilt = dict(rate=(rate(1e30), 3, 'lower rate'), nan_input=(bad_pictures(math.nan), 2, 'hold NaN or infinity'), inf_input=(bad_pictures(math.inf), 2, 'hold NaN or infinity'), weight=(bad_weight, 2, 'lower rate'))

@pytest.mark.parametrize('how', ['fit', 'one_cycle', 'phases'])
@pytest.mark.parametrize('what', spoilt)
def test_stops_with_the_last_good_weights(what, how):
    do,batch,why = spoilt[what]
    learn,spoil = learner(),Spoil(do)
    with learn.no_logging(), pytest.raises(NonFiniteLoss, match=f'batch {batch} of epoch 2.*{why}'):
        if how=='phases': learn.fit_phases(Phase('all', 4, lr=1e-2), cbs=spoil)
        else: getattr(learn, 'fit' if how=='fit' else 'fit_one_cycle')(4, 1e-2, cbs=spoil)
    if how=='phases': assert equal(weights(learn), spoil.was[int(learn.phase_log.valid_loss.argmin())]) and len(learn.phase_log)==2
    else: assert equal(weights(learn), spoil.was[1]) and len(spoil.was)==2
    assert not learn.model.training and all(p.grad is None or not p.grad.any() for p in learn.model.parameters())
    with learn.no_logging(): learn.fit(1, 1e-3) # the optimiser remembers nothing of it
    assert math.isfinite(learn.validate()[0])

@pytest.mark.parametrize('how', ['fit', 'phases'])
@pytest.mark.parametrize('what', spoilt)
def test_in_the_first_epoch_those_of_before(what, how):
    learn = learner()
    was = weights(learn)
    with learn.no_logging(), pytest.raises(FineGrainedError, match='of epoch 0'):
        if how=='phases': learn.fit_phases([Phase('all', 2, lr=1e-2)], cbs=Spoil(spoilt[what][0], e=0))
        else: learn.fit(2, 1e-2, cbs=Spoil(spoilt[what][0], e=0))
    assert equal(weights(learn), was)

@pytest.mark.parametrize('n_dls', [1, 2])
def test_the_last_step_of_an_epoch(n_dls):
    "No loss of a batch shows it"
    from fgvc_fast.train.all import NoValid
    learn,spoil = learner(n_dls=n_dls),Spoil(rate(math.nan), i=3)
    with learn.no_logging(), pytest.raises(FineGrainedError, match='after the last batch of epoch 2'): learn.fit(4, 1e-2, cbs=[spoil, *[NoValid()]*(n_dls==1)])
    learn2 = learner(n_dls=n_dls)
    with learn2.no_logging(): learn2.fit(2, 1e-2, cbs=[*[NoValid()]*(n_dls==1)])
    assert equal(weights(learn), weights(learn2))

@pytest.mark.parametrize('how', ['fit', 'phases'])
def test_only_the_validation_loss(how):
    learn,spoil = learner(),Spoil(bad_pictures(math.nan), training=False, e=1)
    with learn.no_logging(), pytest.raises(FineGrainedError, match='validation loss is nan at the end of epoch 1'):
        if how=='fit': learn.fit(3, 1e-2, cbs=spoil)
        else: learn.fit_phases([Phase('all', 3, lr=1e-2)], cbs=spoil)
    assert equal(weights(learn), spoil.was[0])
    if how=='phases': assert len(learn.phase_log)==1 and learn.phase_log.valid_loss.notna().all()

def test_rates_and_decays_that_are_no_numbers():
    learn = learner()
    was = weights(learn)
    for bad in (math.nan, math.inf):
        with learn.no_logging(), pytest.raises(FineGrainedError, match=f'wd={bad}'): learn.fit(1, wd=bad)
        with learn.no_logging(), pytest.raises(FineGrainedError, match='wd='): learn.fit_phases(1, wd=bad)
        with learn.no_logging(), pytest.raises(FineGrainedError, match='lr='): learn.fit(1, bad)
    assert equal(weights(learn), was)
    with learn.no_logging(): learn.fit(1) # and the next knows nothing of it
    learn.opt_func = partial(learn.opt_func, eps=math.nan)
    with learn.no_logging(), pytest.raises(FineGrainedError, match='eps=nan'): learn.fit(1, reset_opt=True)

def test_averages_are_taken_back_too():
    learn,spoil = learner(),Spoil(rate(1e30))
    with learn.no_logging(), pytest.raises(FineGrainedError, match='of epoch 2'): learn.fit(4, 1e-2, cbs=[EMA(.5), spoil])
    assert equal(weights(learn), spoil.was[1]) # the average that was validated
    assert math.isfinite(learn.validate()[0])

def test_losses_that_are_high_but_finite_go_on():
    learn = learner()
    learn.loss_func = lambda x, y: 1e30*CrossEntropyLossFlat()(x, y)
    with learn.no_logging(): learn.fit(1, 1e-9)

def test_the_rate_finder_and_fastais_own_go_on():
    learn = learner()
    was = weights(learn)
    learn.lr_find(end_lr=1e30, num_it=20, show_plot=False, stop_div=False)
    assert equal(weights(learn), was)
    ended = []
    with learn.no_logging(): learn.fit(3, 1e30, cbs=[TerminateOnNaNCallback(), Callback(after_fit=lambda self: ended.append(1))])
    assert ended and not equal(weights(learn), was)

class CPUHalf(MixedPrecision):
    order,scale = MixedPrecision.order,2.**60
    def before_fit(self):
        super().before_fit()
        self.autocast,self.learn.scaler = torch.autocast('cpu', torch.float16),torch.amp.GradScaler('cpu', init_scale=self.scale, enabled=True)

def test_skipped_steps_of_float16_are_no_nan():
    learn,steps = learner(),[]
    learn.add_cb(CPUHalf(AMPMode.BF16))
    with learn.no_logging(): learn.fit(20, 1e-3, cbs=Callback(after_step=lambda self: steps.append(1)))
    assert 0<len(steps)<=80 and learn.scaler is None

def half(learn):
    learn.add_cb(cb := CPUHalf(AMPMode.BF16))
    cb.scale = 2.**16
    return learn

class NoSlope(Callback):
    "A loss that is 0 and has no slope"
    def after_loss(self): self.learn.loss_grad = self.loss_grad + (self.pred-self.pred).abs().sqrt().sum()

@pytest.mark.parametrize('how', ['fit', 'phases'])
def test_a_gradient_that_no_scale_helps(how):
    "After 37 skipped steps the scale is below a millionth; the loss that is shown is well all the time"
    learn = half(learner())
    was = weights(learn)
    with learn.no_logging(), pytest.raises(NonFiniteLoss, match='at whatever loss scale, so that the last 37 steps were skipped, in batch 1 of epoch 9'):
        if how=='fit': learn.fit(12, 1e-2, cbs=NoSlope())
        else: learn.fit_phases([Phase('all', 12, lr=1e-2)], cbs=NoSlope())
    assert all(torch.equal(v, was[k]) for k,v in learn.model.named_parameters())
    with learn.no_logging(): learn.fit(1, 1e-2) # the next begins with a scale of its own
    assert not equal(weights(learn), was)

def test_too_short_to_know():
    learn = half(learner())
    with learn.no_logging(), pytest.warns(UserWarning, match='Nothing was learned.* in all 8 steps'): learn.fit(2, 1e-2, cbs=NoSlope())

@pytest.mark.parametrize('amp', [True, False])
def test_a_side_loss_that_is_nan(amp):
    "It is named, in the batch in which it is, although the loss that is shown is well"
    from fgvc_fast.all import AddLoss, fine_grained_data, fine_grained_learner
    data = fine_grained_data('toy_birds', families=2, species=2, per_class=8, size=48, seed=0)
    learn = fine_grained_learner(data.dls(32, bs=8, num_workers=0), 'toy_resnet', amp=None)
    learn.remove_cb(learn.progress)
    if amp: half(learn)
    seen = []
    def mine(x, y):
        seen.append(1)
        return x.sum()*(math.nan if len(seen)>1 else 1)
    was = weights(learn)
    with learn.no_logging(), pytest.raises(NonFiniteLoss, match="the loss 'mine' is NaN or infinite in batch 2 of epoch 0"): learn.fit(2, 1e-3, cbs=AddLoss(mine))
    assert equal(weights(learn), was)

def test_fit_phases_brings_it_along():
    learn = learner(cbs=False)
    with learn.no_logging(), pytest.raises(NonFiniteLoss): learn.fit_phases([Phase('all', 4, lr=1e-2)], cbs=Spoil(rate(1e30)))
    assert not hasattr(learn, 'finite_loss') and math.isfinite(learn.validate()[0])

def test_no_question_is_asked_of_the_gpu_twice():
    "What is looked at in a step lies on the CPU already"
    learn,seen = learner(),[]
    with learn.no_logging(): learn.fit(1, 1e-3, cbs=Callback(after_batch=lambda self: seen.append(self.recorder.smooth_loss.val.device.type)))
    assert set(seen)=={'cpu'}
    real = learn.finite_loss.after_batch
    class Elsewhere:
        def __getattr__(self, k): raise AssertionError('the loss itself was asked')
    learn.finite_loss.good,learn.training,learn.loss = {},True,Elsewhere()
    learn.recorder.smooth_loss.val = torch.tensor(1.)
    real()

def test_our_learners_have_it():
    from fgvc_fast.all import fine_grained_data, fine_grained_learner
    data = fine_grained_data('toy_birds', families=2, species=2, per_class=8, size=48, seed=0)
    learn = fine_grained_learner(data.dls(32, bs=8, num_workers=0), 'toy_resnet')
    learn.remove_cb(learn.progress)
    was = weights(learn)
    with learn.no_logging(), pytest.raises(FineGrainedError, match='lower rate'): learn.fit(3, 1e30)
    assert equal(weights(learn), was)
    for std in ([0,0,0], [.2,0,.2], [math.nan]*3, [-1,1,1], [math.inf]*3):
        with pytest.raises(FineGrainedError, match='std'): fine_grained_learner(learn.dls, 'toy_resnet', stats=([0]*3, std))
    with pytest.raises(FineGrainedError, match='mean'): fine_grained_learner(learn.dls, 'toy_resnet', stats=([math.nan]*3, [1]*3))
    learn.model.norm.std.zero_() # by hand
    with learn.no_logging(), pytest.raises(FineGrainedError, match='other `stats`'): learn.fit(1, 1e-3)

@pytest.mark.parametrize('how', ['fit', 'one_cycle', 'phases', 'rate'])
def test_a_calibration_is_back_with_the_weights_it_was_of(how):
    from fgvc_fast.all import fine_grained_data, fine_grained_learner
    data = fine_grained_data('toy_birds', families=2, species=2, per_class=8, size=48, seed=0)
    learn = fine_grained_learner(data.dls(32, bs=8, num_workers=0), 'toy_resnet')
    learn.remove_cb(learn.progress)
    learn.model.temperature.fill_(1.7)
    was = weights(learn)
    with learn.no_logging(), pytest.raises(NonFiniteLoss):
        if how=='phases': learn.fit_phases(Phase('all', 2, lr=1e-2), cbs=Spoil(rate(1e30), e=0))
        elif how=='rate': learn.fit(1, 1e-3, wd=math.nan)
        else: getattr(learn, 'fit' if how=='fit' else 'fit_one_cycle')(2, 1e-2, cbs=Spoil(rate(1e30), e=0))
    assert equal(weights(learn), was) and learn.model.temperature==torch.tensor(1.7)
    with learn.no_logging(): learn.fit(1, 1e-3)
    assert learn.model.temperature==1 # other weights, other calibration
    learn.model.temperature.fill_(1.7)
    with learn.no_logging(), pytest.raises(NonFiniteLoss): learn.fit(2, 1e-3, cbs=Spoil(rate(1e30), e=1))
    assert learn.model.temperature==1


def test_what_is_well(monkeypatch):
    "A frozen mask of infinities, a loss of each picture that others reduce, a small loss scale: training goes on"
    learn = learner()
    learn.model.register_parameter('mask', nn.Parameter(torch.full((2,), -torch.inf), requires_grad=False))
    learn.model.register_parameter('flags', nn.Parameter(torch.ones(2, dtype=torch.bool), requires_grad=False))
    with learn.no_logging(): learn.fit(1, 1e-3)
    each = learner()
    def rows(*args): return nn.functional.cross_entropy(*args, reduction='none')
    each.loss_func = rows
    def mean(cb): cb.learn.loss_grad = cb.loss_grad.mean()
    with each.no_logging():
        each.fit(1, 1e-3, cbs=Callback(before_backward=mean, after_loss=None, before_validate=lambda cb: setattr(cb.learn, 'loss_func', nn.CrossEntropyLoss())))
    low = learner()
    low.add_cb(cb := CPUHalf(AMPMode.BF16))
    cb.scale = 2.**-4
    with low.no_logging(): low.fit(2, 1e-3, cbs=Skip(3))

class Skip(Callback):
    "The first `n` steps are skipped"
    order = 90
    def __init__(self, n): self.n = n
    def before_step(self):
        from fastai.callback.core import CancelStepException
        self.n -= 1
        if self.n>=0: raise CancelStepException
