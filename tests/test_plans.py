"Plans by name, rates by layer, sizes that change between phases, and the rate finder for a phase"
import numpy as np, pytest, torch
from fastai.basics import Callback, CrossEntropyLossFlat, Learner, set_seed
from fgvc_fast.core import FineGrainedError
from fgvc_fast.datasets.all import fine_grained_data
from fgvc_fast.learner import fine_grained_learner
from functools import cache
from fgvc_fast.train.all import Phase, by_layer, group_names, param_groups, phase_rates, plans
from stops import StopAt

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture(scope='module')
def birds(): return fine_grained_data('toy_birds', families=2, species=2, per_class=24, size=64)

def learner(birds, arch='toy_resnet', size=32, **kwargs):
    set_seed(0)
    learn = fine_grained_learner(birds.dls(size=size, bs=15, num_workers=0, seed=0), arch, **kwargs)
    learn.remove_cb(learn.progress)
    return learn

def vit(birds, **kwargs): return learner(birds, 'test_vit', pretrained=False, **kwargs)

def fit(learn, *args, **kwargs):
    with learn.no_logging(): learn.fit_phases(*args, **kwargs)
    return learn

def test_the_default_rate_is_what_the_body_bears(birds):
    "Whoever asks for epochs, and `lr` moves all rates alike"
    learn = learner(birds)
    rate = min(p.square().mean().sqrt().item() for p in learn.model.body.parameters() if p.ndim>1)/20
    head,everything = learn.plan('default', 3)
    assert everything.lr==pytest.approx(rate, rel=.05) and everything.lr>4e-3 and head.lr==.01
    fit(learn, 2, lr=.02)
    assert learn._phase_run.plan[1].lr==pytest.approx(2*everything.lr) and learn.plan('default', 3, drop=10)[1].lr==1e-3
    for p in learn.model.body.parameters(): p.data.mul_(.01)
    assert learn.plan('default', 3)[1].lr==1e-3

@pytest.mark.parametrize('name', plans)
def test_every_plan_runs(birds, name):
    learn = (vit if name=='blocks' else learner)(birds)
    plan = learn.plan(name, 6)
    fit(learn, plan)
    assert len(learn.phase_log)==6 and learn.phase_log.train_loss.notna().all()
    assert name=='reinit' or learn.phase_log.train_loss.iloc[-1]<learn.phase_log.train_loss.iloc[0]

def test_reinit_plan_keeps_shallow_stages(birds):
    learn = learner(birds)
    seen = []
    class Look(Callback):
        def before_fit(self): seen.append([g[0].detach().clone() for g in param_groups(self.learn)])
    plan = learn.plan('reinit', 3, n=2)
    for p in plan: p.lr = 1e-12 # what moves now was re-initialised
    fit(learn, plan, cbs=Look())
    same = [[torch.allclose(a, b, atol=1e-6) for a,b in zip(x, y)] for x,y in zip(seen, seen[1:])]
    n = len(seen[0])
    assert same[0]==[i!=n-2 for i in range(n)] and same[1]==[i not in (n-3,n-2) for i in range(n)]

def test_rates_by_layer(birds):
    learn = vit(birds, splitter=by_layer)
    names = group_names(learn)
    assert len(names)==len(learn.model.body.blocks())+2
    rates = phase_rates(learn, Phase('all', 1, lr=1e-2, decay=.5))[0]
    np.testing.assert_allclose(rates.max(0), 1e-2*.5**np.arange(len(names)-1, -1, -1), rtol=1e-3)
    seen = []
    class Look(Callback):
        def before_step(self): seen.append([h['lr'] for h in self.opt.hypers])
    fit(learn, Phase('all', 1, lr=1e-2, decay=.5), cbs=Look())
    np.testing.assert_allclose(seen, rates, rtol=1e-6)
    for p in (p for g in param_groups(learn) for p in g): assert p.requires_grad

def test_a_slice_means_what_it_means_in_fastai(birds):
    learn,seen = learner(birds),[]
    class Look(Callback):
        def before_step(self): seen.append([h['lr'] for h in self.opt.hypers])
    for lr in (slice(1e-4, 1e-2), slice(1e-2)):
        seen.clear()
        fit(learn, Phase('all', 1, lr=lr), cbs=Look())
        ours = np.array(seen)
        seen.clear()
        with learn.no_logging(): learn.fit_one_cycle(1, lr, cbs=Look())
        np.testing.assert_allclose(ours, seen, rtol=1e-6)

def test_keeping_statistics_by_layer_is_by_stage(birds):
    from fgvc_fast.train.runner import stats_from
    from fgvc_fast.train.groups import group_index
    a,b = learner(birds),learner(birds, splitter=by_layer)
    def before(learn, n): return {id(p) for g in param_groups(learn)[:group_index(learn, stats_from(learn, n))] for p in g}
    for n in range(3): assert len(before(a, n))==len(before(b, n))>0

@pytest.mark.parametrize('bad,say', [(dict(lr=slice(1e-3, 1e-2), decay=.5), 'leave decay'), (dict(decay=0.), 'decay='), (dict(decay=2.), 'decay='),
    (dict(lr=slice(None)), 'slice'), (dict(lr=slice(0., 1e-2)), 'above 0')])
def test_impossible_rates(bad, say):
    with pytest.raises(FineGrainedError, match=say): Phase('all', 2, **bad)

# sizes

sizes = [Phase('head', 1, lr=1e-2), Phase('all', 1, lr=1e-3, size=64), Phase('all', 1, lr=1e-3)]

@pytest.mark.parametrize('make', [learner, vit])
def test_pictures_grow(birds, make):
    learn,seen = make(birds),[]
    class Look(Callback):
        order = 1
        def before_batch(self): seen.append(tuple(self.xb[0].shape[-2:]))
    fit(learn, sizes, cbs=Look())
    n = len(seen)//3
    assert seen==[(32,32)]*n + [(64,64)]*2*n
    assert learn.dls.valid.one_batch()[0].shape[-1]==64 and learn.made_of['image_size']=='64×64'
    assert learn.get_preds()[0].shape[1]==4

def test_position_embeddings_follow(birds):
    learn = vit(birds)
    pos = learn.model.body.model.pos_embed
    old = pos.detach().clone()
    fit(learn, [Phase('head', 1, lr=1e-6, size=64)])
    new = learn.model.body.model.pos_embed
    prefix = learn.model.body._prefix
    assert new.shape[1]-prefix==4*(old.shape[1]-prefix)
    grid = int((old.shape[1]-prefix)**.5)
    def as_map(o, n): return o[:,prefix:].transpose(1, 2).unflatten(2, (n, n))
    want = torch.nn.functional.interpolate(as_map(old, grid), scale_factor=2, mode='bicubic', antialias=True)
    torch.testing.assert_close(as_map(new.detach(), 2*grid), want, atol=1e-4, rtol=1e-3)

@pytest.fixture(scope='module')
def grown(birds):
    "What comes of an uninterrupted run"
    return cache(lambda make: fit(make(birds), sizes))

@pytest.mark.parametrize('make', [learner, vit])
@pytest.mark.parametrize('n', [2, 6, 10])
def test_resume_finds_the_size(birds, make, n, grown):
    whole = grown(make)
    learn = fit(make(birds), sizes, cbs=StopAt('after_pred', n, training=True)) # four batches an epoch
    assert learn.get_preds()[0].shape[1]==4 # usable, at the size of its best weights
    fit(learn, resume=True)
    np.testing.assert_allclose([float(o) for o in learn.recorder.losses], [float(o) for o in whole.recorder.losses], atol=1e-5)
    for (k,v),w in zip(learn.model.state_dict().items(), whole.model.state_dict().values()): torch.testing.assert_close(v, w, rtol=0, atol=1e-5, msg=k)

def test_impossible_sizes(birds):
    with pytest.raises(FineGrainedError, match='give multiples of 16'): fit(vit(birds), [Phase('head', 1), Phase('all', 1, size=100)])
    plain = Learner(birds.dls(size=32, num_workers=0), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3*32*32, 4)), loss_func=CrossEntropyLossFlat())
    with pytest.raises(FineGrainedError, match='nobody knows how to resize'): fit(plain, Phase('all', 1, size=64))

# the rate finder

@pytest.mark.parametrize('phase', [Phase('head', 1), Phase('all', 1, reinit=1, freeze_bn=True), Phase('all', 1, lr=slice(1e-5, 1e-3), size=48)])
def test_rate_finder_leaves_no_trace(birds, phase, tmp_path):
    learn = learner(birds)
    learn.path = tmp_path
    fit(learn, Phase('head', 1))
    before,opt = {k: v.clone() for k,v in learn.model.state_dict().items()},learn.opt
    assert 1e-7<learn.lr_find_phase(phase, num_it=20, show_plot=False).valley<10
    assert learn.opt is opt and learn.dls.valid.one_batch()[0].shape[-1]==32 and not list(tmp_path.rglob('*'))
    for k,v in learn.model.state_dict().items(): assert torch.equal(v, before[k]), k
    with pytest.raises(KeyboardInterrupt):
        with learn.added_cbs(StopAt('after_pred', 8, training=True)): learn.lr_find_phase(phase, num_it=20, show_plot=False)
    for k,v in learn.model.state_dict().items(): assert torch.equal(v, before[k]), k
    assert all(p.requires_grad for p in learn.model.parameters())

def test_rate_finder_spreads_rates_as_the_phase(birds):
    learn,seen = learner(birds),[]
    class Look(Callback):
        def before_step(self): seen.append([h['lr'] for h in self.opt.hypers])
    with learn.added_cbs(Look()): learn.lr_find_phase(Phase('all', 1, decay=.5), num_it=20, show_plot=False)
    seen = np.array(seen)
    np.testing.assert_allclose(seen/seen[:,-1:], np.tile(.5**np.arange(seen.shape[1]-1, -1, -1), (len(seen),1)), rtol=1e-6)
    assert seen[0,-1]==pytest.approx(1e-7) and seen[-1,-1]>seen[0,-1]

@pytest.mark.parametrize('args,kwargs,what', [((3, 4), {}, 'no plan 3'), (('beak', 4), {}, "no plan 'beak'"), ((['default'], 4), {}, 'no plan'), (('default', 'x'), {}, 'epochs='), (('default', 0), {}, 'epochs='), (('default', 2.5), {}, 'epochs='), (('default', None), {}, 'epochs='),
    (('fastai', 1), {}, 'at least 2 epochs'), (('default', 4), dict(lr='x'), 'lr='), (('default', 4), dict(lr=0), 'lr='), (('gradual', 9), dict(lr=float('nan')), 'lr='), (('reinit', 9), dict(n=0), 'n='), (('reinit', 9), dict(n='x'), 'n='),
    (('reinit', 9), dict(m=2), 'does not take m'), (('default', 4), dict(n=2), 'does not take n'), (('default', 4), dict(drop=0), 'drop='), (('default', 4), dict(ratio='x'), 'ratio=')], ids=str)
def test_what_is_no_plan_by_name(birds, args, kwargs, what):
    with pytest.raises(FineGrainedError, match=what): learner(birds).plan(*args, **kwargs)

def test_more_stages_afresh_than_there_are(birds):
    "... is said before the first phase, not before the second"
    learn = learner(birds)
    n = len(learn.model.body.stages)
    with pytest.raises(FineGrainedError, match=f'phase 2 has reinit={n+1}, but the body has {n} stages'): fit(learn, [Phase('head', 1), Phase('all', 1, reinit=n+1)])
    assert not hasattr(learn, '_phase_run')

@pytest.mark.parametrize('call', ["spread(0, 3)", "spread('x', 3)", "spread(1e-3, 0)", "spread(1e-3, 2.5)", "spread(1e-3, 3, 0)", "spread(1e-3, 3, None)", "group_rates('x', 3)", "group_rates(1e-3, 3, decay=2)", "group_rates(1e-3, 3, decay='x')",
    "group_rates(slice(1e-3,None), 3)", "group_rates(slice('x'), 3)", "group_rates(1e-3, -1)", "group_rates(float('nan'), 2)"])
def test_what_are_no_rates_of_groups(call):
    from fgvc_fast.train.groups import group_rates, spread # chkstyle: ignore (by name)
    with pytest.raises(FineGrainedError, match='='): eval(call)
