"Losses against slow loops in float64 and other libraries; added to what is learned, with and without mixing; and gone when the fit is over"
import copy, math, pickle
from functools import partial
import numpy as np, pytest, torch
from fastai.basics import Callback, CancelFitException, OptimWrapper
from fastai.callback.training import GradientAccumulation
from fgvc_fast.all import (AddLoss, CenterLoss, Focal, Mix, MixUp, MutualChannel, PairwiseConfusion, PartPool, Phase, class_weights, fine_grained_data,
    fine_grained_learner, load_bundle, losses)
from fgvc_fast.core import FineGrainedError
from torch import nn
from torchvision.ops import sigmoid_focal_loss
from stops import StopAt

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

# values

@pytest.mark.parametrize('bs', (1, 7))
@pytest.mark.parametrize('gamma', (0, .5, 2.))
@pytest.mark.parametrize('reduction', ('mean', 'sum', 'none'))
def test_focal_is_its_formula(bs, gamma, reduction):
    x,y,w = torch.randn(bs, 5).double(),torch.randint(5, (bs,)),torch.rand(5).double()+.1
    want = []
    for row,t in zip(x.numpy(), y.tolist()):
        p = np.exp(row[t])/np.exp(row).sum()
        want.append(-w[t].item()*(1-p)**gamma*np.log(p))
    want = dict(none=want, sum=sum(want), mean=sum(want)/w[y].sum().item())[reduction]
    torch.testing.assert_close(Focal(gamma, w, reduction)(x, y), torch.tensor(want).double())

def test_focal_of_two_classes_is_torchvisions():
    x,y = torch.randn(9, 2).double(),torch.randint(2, (9,))
    want = sigmoid_focal_loss(x[:,1]-x[:,0], y.double(), alpha=-1, gamma=2, reduction='mean')
    torch.testing.assert_close(Focal(2.)(x, y), want)

def test_focal_has_the_gradient_of_its_formula():
    assert torch.autograd.gradcheck(lambda x: Focal(2., torch.arange(1., 4))(x, torch.tensor([0,2,1])), torch.randn(3, 3).double().requires_grad_())

@pytest.mark.parametrize('bs', (1, 2, 5, 8))
def test_confusion_is_the_loop(bs):
    x,y = torch.randn(bs, 4).double(),torch.randint(3, (bs,))
    p,want = np.exp(x.numpy()),[]
    p = p/p.sum(1, keepdims=True)
    for i in range(bs):
        j = (i+bs//2)%bs
        want.append(((p[i]-p[j])**2).sum()*(y[i]!=y[j]).item())
    torch.testing.assert_close(PairwiseConfusion('none')(x, y), torch.tensor(want).double())
    torch.testing.assert_close(PairwiseConfusion()(x, y), torch.tensor(np.mean(want)))

@pytest.mark.parametrize('nf,n', ((6,6), (7,3), (12,4), (11,4)))
@pytest.mark.parametrize('training', (True, False))
def test_mutual_channel_is_the_loop(nf, n, training):
    loss,maps,y = MutualChannel(nf, n, div=3., reduction='none').train(training),torch.randn(5, nf, 3, 2).double(),torch.randint(n, (5,))
    size = [nf//n + (i<nf%n) for i in range(n)]
    table = torch.cat([torch.full((s,), i) for i,s in enumerate(size)]) # whose each channel is
    state = torch.get_rng_state()
    on = loss._on()
    torch.set_rng_state(state)
    got,want = loss(maps, y),[]
    kept = [[c for c,o in zip(loss.table[i].tolist(), on[i].tolist()) if o or (not training and table[c]==i)] for i in range(n)]
    for i in range(n):
        own = (table==i).nonzero()[:,0].tolist()
        assert set(kept[i])<=set(own) and len(set(kept[i])) == (size[i]-size[i]//2 if training else size[i])
    for b in range(5):
        x = maps[b].flatten(1).numpy()
        logits = np.array([np.mean([max(x[c][k] for c in kept[i]) for k in range(6)]) for i in range(n)])
        soft = np.exp(x)/np.exp(x).sum(1, keepdims=True)
        div = np.mean([sum(max(soft[c][k] for c in range(nf) if table[c]==i) for k in range(6))/size[i] for i in range(n)]) # of the authors' code: by the class's channels
        want.append(np.log(np.exp(logits).sum())-logits[y[b]] - 3*div)
    torch.testing.assert_close(got, torch.tensor(np.array(want)))

def test_each_channel_is_switched_off_equally_often():
    loss = MutualChannel(7, 3)
    share = sum(loss._on().float() for _ in range(2000))/2000
    want = torch.tensor([[2/3,2/3,2/3],[.5,.5,0],[.5,.5,0]]) # where a shorter class's row is filled up, nothing is ever on
    torch.testing.assert_close(share, want, atol=.05, rtol=0)

def test_centre_is_the_loop():
    loss,x,y = CenterLoss(3, 4, 'none').double(),torch.randn(5, 3).double(),torch.randint(4, (5,))
    nn.init.normal_(loss.centers)
    want = [sum((x[i,k]-loss.centers[y[i],k])**2 for k in range(3))/2 for i in range(5)]
    torch.testing.assert_close(loss(x, y), torch.stack(want))

@pytest.mark.parametrize('beta', (0, .9, .999))
def test_class_weights_are_the_papers(beta):
    n = [1,10,200,3000]
    e = np.array([sum(beta**i for i in range(o)) for o in n]) # the effective number, as a geometric sum
    want = (1/e)/(1/e).sum()*4
    np.testing.assert_allclose(class_weights(n, beta), want if beta else np.ones(4), rtol=1e-5)

@pytest.mark.parametrize('name', losses)
def test_half_precision_is_judged_in_single(name):
    loss = losses[name]
    loss = loss(nf=6, n_out=3) if name not in ('focal','confusion') else loss()
    x,y = torch.rand(6, 6, *[2,2]*(name=='mutual_channel')),torch.tensor([0,1,2,0,1,2])
    loss.eval()
    with torch.autocast('cpu', torch.bfloat16, enabled=False):
        for dtype in (torch.bfloat16, torch.float16):
            got = loss(x.to(dtype), y)
            assert got.dtype==torch.float32
            torch.testing.assert_close(got, loss(x.to(dtype).float(), y))

# added to what is learned

@pytest.fixture(scope='module')
def dls(): return fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=64).dls(64, bs=8, num_workers=0, per_class=2)

def learner(dls, **kwargs):
    learn = fine_grained_learner(dls, 'toy_resnet', **kwargs)
    learn.remove_cb(learn.progress)
    return learn

def fit(learn, cbs=None, phases=None, **kwargs):
    with learn.no_logging(): learn.fit_phases(phases, cbs=cbs, **kwargs) if phases else learn.fit(1, 1e-3, cbs=cbs, **kwargs)
    return learn

class Before(Callback):
    "Sees the batch before anybody has added to it"
    order,run_valid = -4,False # right after `Mix` has judged it
    def before_batch(self): self.asked = self.learn.model.trace('embeddings', 'maps').__enter__()
    def after_batch(self): self.asked.__exit__()
    def after_pred(self):
        self.embeddings,self.y_,self.mixed = dict(embeddings=self.asked.embeddings, maps=self.asked.maps),self.yb[0],next((cb.mixed
            for cb in self.learn.cbs if isinstance(cb, Mix)), None)
    def after_loss(self): self.plain = self.learn.loss_grad

class After(Callback):
    "What is about to be learned"
    order,run_valid = 100,False
    def before_fit(self): self.batches = []
    def after_loss(self):
        b = self.learn.before
        self.batches.append(dict(got=self.learn.loss_grad.detach(), shown=self.learn.loss.detach(), plain=b.plain.detach(), embeddings=b.embeddings,
            y=b.y_.as_subclass(torch.Tensor), mixed=b.mixed))

@pytest.mark.parametrize('mix,amp', ((None, None), (partial(Mix, mixup=.4, cutmix=1.), None), (MixUp, 'bf16')), ids=('plain','mixed','half'))
def test_learned_is_the_weighted_sum_and_shown_are_the_means(dls, mix, amp):
    def rows_loss(embeddings, y): return (embeddings.mean(1)*(y+1)).mean()
    def maps_loss(maps, y): return (maps.mean((1,2,3))*(y+2)).mean()
    learn,after = learner(dls, amp=amp),After()
    fit(learn, [AddLoss(rows_loss, .5, on='embeddings'), AddLoss(maps_loss, 2., on='maps'), Before(), after, *([mix()] if mix else [])])
    means = torch.zeros(2)
    for b in after.batches:
        n = len(b['y'])
        perm,lam = b['mixed'] or (torch.arange(n),1.)
        r,m = b['embeddings']['embeddings'].detach().float().mean(1),b['embeddings']['maps'].detach().float().mean((1,2,3))
        y = lam*b['y'] + (1-lam)*b['y'][perm] # both losses are linear in the label
        parts = torch.stack([(r*(y+1)).mean(), (m*(y+2)).mean()])
        torch.testing.assert_close(b['got'], b['plain'] + .5*parts[0] + 2*parts[1])
        torch.testing.assert_close(b['shown'], b['plain'])
        means += parts/len(after.batches)
    got = dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[0]))
    torch.testing.assert_close(torch.tensor([got['rows_loss'], got['maps_loss']]), means)
    assert list(got)==['train_loss','valid_loss','rows_loss','maps_loss']
    assert len(learn.validate())==1 # no columns outside of a fit

@pytest.mark.parametrize('mix', (False, True), ids=('plain','mixed'))
@pytest.mark.parametrize('name', losses)
def test_every_loss_trains_in_phases(dls, name, mix):
    learn,cb = learner(dls),AddLoss(name, .1, alone=name not in ('focal','confusion'))
    before = copy.deepcopy(learn.model.state_dict())
    fit(learn, [cb, *([Mix(mixup=.4, cutmix=1.)] if mix else [])], [Phase('head', 1), Phase('all', 1, patience=1)] if mix else [Phase('all', 1)])
    assert learn.phase_log[name].notna().all() and np.isfinite(learn.phase_log[name]).all()
    after = learn.model.state_dict()
    assert list(before)==list(after)
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith('body') and k.endswith('weight'))
    assert len(learn.opt.all_params())==len(list(learn.model.parameters()))
    assert learn.model.traces==[]

def test_side_losses_have_columns(dls):
    learn = fit(learner(dls, pool=partial(PartPool, parts=2), head='levels', branch=-2, zoom=True), AddLoss('center', .01), [Phase('all', 1)])
    assert list(learn.phase_log)[-7:-1]==['centers','level 1','branch','crop','drop','center']
    assert learn.phase_log.notna().all(None)

def test_through_branch_and_closer_look_the_rows_are_those_of_the_whole_pictures(dls):
    seen = []
    def note(embeddings, y):
        seen.append((embeddings, len(y)))
        return embeddings.square().mean()
    learn = fit(learner(dls, pool=partial(PartPool, parts=2), branch=-2, zoom=True), AddLoss(note, on='embeddings'))
    assert len(seen)==len(dls.train) and all(r.shape==(n, learn.model.pool.nf) for r,n in seen)

@pytest.mark.parametrize('how', ('new', 'old', 'torch'))
def test_own_parameters_learn_in_the_last_group(dls, how):
    class Groups(Callback):
        def after_step(self): self.sizes = [len(o) for o in self.opt.param_lists]
    opt = dict(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)) if how=='torch' else {}
    learn = learner(dls, **opt)
    if how!='new': learn.create_opt()
    sizes,cb,g = [len(o) for o in learn.model.groups()],AddLoss('arcface', .1),Groups()
    fit(learn, [cb, g])
    assert g.sizes==[*sizes[:-1], sizes[-1]+1]
    assert [len(o) for o in learn.opt.param_lists]==sizes
    first = cb.loss.loss.W.clone()
    fit(learn, cb) # goes on with what it has learned
    assert 0 < (cb.loss.loss.W-first).abs().max() < .1
    other = learner(dls)
    other.add_cb(cb) # another model, another start
    assert (cb.loss.loss.W-first).abs().max() > .1
    other.remove_cb(cb)

def test_a_loss_of_the_learner_stays_and_is_in_no_bundle(dls, tmp_path):
    learn = learner(dls, cbs=AddLoss('center', .01))
    fit(learn)
    assert 'added.center.centers' in learn.model.state_dict() and len(learn.validate())==1
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad(): want = learn.model.eval()(x)
    learn.save_bundle(tmp_path/'b')
    assert not any(k.startswith('losses') for k in load_bundle(tmp_path/'b').model.state_dict())
    torch.testing.assert_close(load_bundle(tmp_path/'b').model(x), want)
    file = learn.save(tmp_path/'weights')
    fresh = learner(dls)
    fresh.load(file.with_suffix('')) # without the loss
    pickle.loads(pickle.dumps(learn.model))
    learn.remove_cb(learn.add_loss)
    assert not len(learn.model.added) and len(learn.opt.all_params())==len(list(learn.model.parameters()))

@pytest.mark.parametrize('ex', (CancelFitException, KeyboardInterrupt))
@pytest.mark.parametrize('ev', ('after_pred', 'after_loss', 'after_step'))
def test_a_stopped_fit_leaves_nothing(dls, ev, ex):
    learn = learner(dls)
    try: fit(learn, [AddLoss('arcface', alone=True), StopAt(ev, 2, ex, training=True)])
    except KeyboardInterrupt: assert ex is KeyboardInterrupt
    assert not len(learn.model.added) and not any(o.detach for o in learn.model.traces)
    assert len(learn.opt.all_params())==len(list(learn.model.parameters()))
    assert len(learn.validate())==1

def test_resumed_is_as_if_never_stopped(dls):
    logs,centers = [],[]
    for stop in (False, True):
        torch.manual_seed(0)
        seeded = fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=64).dls(64, bs=8, num_workers=0, seed=1)
        learn,cb = learner(seeded),AddLoss('center', .01)
        fit(learn, [cb, *([StopAt('after_pred', 2*len(seeded.train)+2, training=True)] if stop else [])], [Phase('head', 1), Phase('all', 2, lr=1e-3)])
        if stop:
            assert len(learn.phase_log)<3 and not len(learn.model.added)
            with learn.no_logging(): learn.fit_phases(resume=True)
        logs.append(learn.phase_log.drop(columns='seconds'))
        centers.append(cb.loss.centers.detach().clone())
    assert len(logs[0])==3 and torch.equal(*centers)
    np.testing.assert_array_equal(*[o.to_numpy(float) for o in logs])

def test_accumulated_gradients_have_both(dls):
    seen = []
    def one(embeddings, y): return embeddings.mean()*0 + 1
    class Peek(Callback):
        order,run_valid = 100,False
        def after_loss(self): seen.append((self.learn.loss_grad.item(), self.learn.loss.item()))
    fit(learner(dls), [AddLoss(one, on='embeddings'), GradientAccumulation(16), Peek()])
    for scaled,loss in seen: assert math.isclose(2*scaled, loss+1, rel_tol=1e-5)

def test_alone_the_label_teaches_the_head_only(dls):
    learn = learner(dls, branch=-2)
    cb = AddLoss(lambda embeddings, y: embeddings.sum()*0, on='embeddings', name='nothing', alone=True)
    before = copy.deepcopy(learn.model.state_dict())
    fit(learn, cb, wd=0.)
    moved = {k.split('.')[0] for k,p in learn.model.named_parameters() if not torch.equal(before[k], p)}
    assert moved=={'head','branch'}

def test_bad_options_are_named(dls):
    learn = learner(dls)
    with pytest.raises(FineGrainedError, match='A map of .* channels has none'): _ = MutualChannel(3, 4)
    with pytest.raises(FineGrainedError, match="is no loss"): AddLoss('arc')
    from fastai.basics import Learner
    with pytest.raises(FineGrainedError, match='this is a Flatten'): Learner(dls, nn.Flatten(), cbs=AddLoss('center'))

def test_each_loss_counts_what_its_paper_says():
    from fgvc_fast.embed import metric_loss
    assert [AddLoss(o).weight for o in ('mutual_channel','center','focal','confusion','supcon')]==[.005,.003,1.,1.,1.]
    assert AddLoss(partial(MutualChannel, div=1.)).weight==.005 and AddLoss(CenterLoss).weight==.003 and AddLoss(CenterLoss(4, 3)).weight==.003
    assert AddLoss('center', alone=True).weight==1 and AddLoss('center', .5).weight==.5
    assert AddLoss(partial(metric_loss, 'arcface')).weight==AddLoss(lambda embeddings, y: embeddings.sum(), on='embeddings').weight==1

def test_diversity_is_a_share_of_what_is_possible():
    "However many channels a class has: each at a spot of its own 1, all at one spot one over their number"
    for nf,n in ((12, 3), (12, 2), (8, 8)):
        def div(spots):
            maps = 80*torch.nn.functional.one_hot(torch.tensor(spots), 16).float().view(1, nf, 4, 4)
            a,b = (MutualChannel(nf, n, div=d).eval()(maps, torch.tensor([0])).item() for d in (0., 1.))
            return a-b
        assert abs(div(list(range(nf)))-1)<1e-5 and abs(div([3]*nf)-n/nf)<1e-5

@pytest.mark.parametrize('call,what', [(lambda: Focal('x'), 'gamma='), (lambda: Focal(float('nan')), 'gamma='), (lambda: Focal(weight='x'), 'weight='), (lambda: Focal(weight=[]), 'weight='),
    (lambda: Focal(weight=[-1.,2]), 'weight='),
    (lambda: Focal(weight=[float('nan'),1]), 'weight='), (lambda: Focal(reduction=None), 'reduction='), (lambda: PairwiseConfusion(reduction=3), 'reduction='), (lambda: MutualChannel(0, 3), 'nf='),
    (lambda: MutualChannel(3, 2, div='x'), 'div='),
    (lambda: MutualChannel(3, 2.5), 'n_out='), (lambda: CenterLoss(-1, 2), 'nf='), (lambda: CenterLoss(3, None), 'n_out='), (lambda: class_weights([]), 'counts='),
    (lambda: class_weights('x'), 'counts='), (lambda: class_weights([[1,2]]), 'counts='),
    (lambda: class_weights([-1,2]), 'counts='), (lambda: class_weights([1,float('nan')]), 'counts='), (lambda: class_weights([1,2], 'x'), 'beta='), (lambda: class_weights([1,2], float('nan')), 'beta='),
    (lambda: class_weights(None), 'counts='),
    (lambda: AddLoss('center', 'x'), 'weight='), (lambda: AddLoss('center', float('nan')), 'weight='), (lambda: AddLoss('center', -1), 'weight='), (lambda: AddLoss('center', alone='yes'), 'alone='), (lambda: AddLoss('center', on=3), 'on='),
    (lambda: AddLoss('center', name=3), 'name='), (lambda: AddLoss(None), 'None')])
def test_what_is_no_option_of_a_loss(call, what):
    with pytest.raises(FineGrainedError, match=what): call()
