"What a model learns besides its label: added to what is learned, judged as the logits are, mixed as they are"
import copy
from functools import partial
import pytest, torch
from fastai.callback.core import Callback
from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat
from fgvc_fast.all import AddLoss, CutMix, Mix, MixUp, PartPool, fine_grained_data, fine_grained_learner
from stops import StopAt

class Before(Callback):
    "Asks for the same as the learner does, beside it"
    order,run_valid = -100,False
    def before_batch(self): self.asked = self.model.trace('aux_losses').__enter__()
    def after_batch(self): self.asked.__exit__()
    def after_pred(self):
        self.said,self.out,self.y,self.mixed = self.asked.aux_losses,self.pred,self.yb[0],next((cb.mixed for cb in self.learn.cbs if isinstance(cb, Mix)), None)

class After(Callback):
    "Compares what is about to be learned with the sum"
    order,run_valid,n = 100,False,0
    def after_loss(self):
        b,n = self.before,0
        perm,lam = b.mixed or (torch.arange(len(b.y)),1.)
        def judge(v): return v if v.ndim==0 else lam*self.loss_func(v, b.y)+(1-lam)*self.loss_func(v, b.y[perm])
        torch.testing.assert_close(self.loss_grad, judge(b.out)+sum(w*judge(v) for _,w,v in b.said))
        torch.testing.assert_close(self.loss, judge(b.out)) # what is printed can be compared with validation
        assert len(b.said)==5
        After.n += 1

@pytest.fixture(scope='module')
def dls(): return fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=64).dls(64, bs=8, num_workers=0)

@pytest.mark.parametrize('cb', (None, MixUp, CutMix))
@pytest.mark.parametrize('loss', (CrossEntropyLossFlat, partial(LabelSmoothingCrossEntropyFlat, eps=.2)), ids=('plain','smooth'))
def test_learned_is_the_sum(dls, cb, loss):
    learn = fine_grained_learner(dls, 'toy_resnet', pool=partial(PartPool, parts=2), head='levels', branch=-2, zoom=True, loss_func=loss())
    After.n = 0
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=[Before(), After(), *([cb()] if cb else [])])
    assert After.n==len(dls.train)
    copy.deepcopy(learn.model) # nothing of a batch hangs on
    assert learn.model.traces==[]

def test_evaluation_says_nothing(dls):
    learn = fine_grained_learner(dls, 'toy_resnet', pool=partial(PartPool, parts=2), branch=-2, zoom=True)
    with learn.no_bar(), learn.no_logging(), learn.model.trace('aux_losses') as t: preds,_ = learn.get_preds()
    assert t.aux_losses==learn.model.traces==[]
    torch.testing.assert_close(preds.sum(1), torch.ones(len(preds))) # log-probabilities of the closer look are logits like any other

def test_a_copy_of_a_learner_that_broke_off(dls):
    "A pass that fails leaves a trace open until the next batch; a copy of learner and model has none, and trains too"
    class Breaks(Exception): pass
    def breaks(*_): raise Breaks
    learn = fine_grained_learner(dls, 'toy_resnet', branch=-2)
    with learn.model.head.register_forward_hook(breaks), learn.no_bar(), learn.no_logging(), pytest.raises(Breaks): learn.fit(1, 1e-3)
    for o in (copy.deepcopy(learn), learn):
        with o.no_bar(), o.no_logging(): o.fit(1, 1e-3)
        assert o.model.traces==[] and o.recorder.metric_names[-2]=='branch'

@pytest.mark.parametrize('ex', [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize('ev', ['before_batch','after_pred','after_loss','before_step'])
def test_a_batch_that_breaks_off_leaves_nobody_asking(dls, ev, ex):
    "With a loss that stays on the learner: a pass by hand afterwards teaches the body again; what a user asks round it all is still asked"
    learn = fine_grained_learner(dls, 'toy_resnet', cbs=AddLoss('supcon', alone=True))
    with learn.model.trace('maps') as own, learn.no_bar(), learn.no_logging():
        with pytest.raises(ex): learn.fit(1, 1e-3, cbs=StopAt(ev, 2, ex, training=True))
        assert learn.model.traces==[own]
    learn.model.zero_grad()
    learn.model(dls.one_batch()[0]).sum().backward()
    assert all(p.grad is not None for p in learn.model.body.parameters() if p.requires_grad)

@pytest.mark.parametrize('how', [dict(branch=-2), dict(pool='parts', zoom=True), dict(cbs='center')], ids=str)
def test_a_trained_learner_can_be_copied(dls, how):
    "What was learned besides the label leaves no graph behind"
    how = how | (dict(cbs=AddLoss('center')) if 'cbs' in how else {})
    learn = fine_grained_learner(dls, 'toy_resnet', **how)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    copy.deepcopy(learn)
