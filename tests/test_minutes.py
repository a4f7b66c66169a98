"`fit_minutes` keeps the best of what it tried, and nothing of what it did not keep"
import itertools, pytest, torch
from fastai.metrics import accuracy
from types import SimpleNamespace
from fgvc_fast.all import FineGrainedError, Phase, fine_grained_data, fine_grained_learner, load_bundle
from fgvc_fast.models.closer import CloserPool
from fgvc_fast.train import minutes, solve

@pytest.fixture(scope='module')
def birds(): return fine_grained_data('toy_birds', families=2, species=3, per_class=16, size=64)

@pytest.fixture(autouse=True)
def ticks(monkeypatch):
    "A clock that goes on by a tenth of a second whenever it is asked: as many epochs on any machine, however busy"
    count = itertools.count()
    monkeypatch.setattr(minutes, 'time', SimpleNamespace(perf_counter=lambda: next(count)/10))

def quiet(birds, size=64, **kwargs):
    learn = fine_grained_learner(birds.dls(size, bs=16, num_workers=0, seed=0), 'toy_resnet', metrics=accuracy, **kwargs)
    learn.remove_cb(type(learn.progress))
    return learn

def state(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}

def same(a, b): return a.keys()==b.keys() and all(torch.equal(v, b[k]) for k,v in a.items())

@pytest.mark.parametrize('long', (.06, .2)) # the longer one tries two rates
def test_the_learner_is_what_was_kept(birds, tmp_path, long):
    "Weights, looks, size, card and bundle are of the row that says kept, which has the lowest loss"
    learn = quiet(birds)
    tried = learn.fit_minutes(long)
    kept = tried[tried.kept].iloc[0]
    assert any('deeper' in o for o in tried.step) and tried.expected[1:].notna().all() and tried.kept.sum()==1
    assert kept.valid_loss==tried.valid_loss.min() and kept.valid_loss<=tried.valid_loss[0]
    loss,acc = minutes._judge(learn)
    assert acc==pytest.approx(kept.valid_top1) and loss==pytest.approx(kept.valid_loss, rel=1e-3)
    closer = 'looks' in kept.step
    assert isinstance(learn.model.pool, CloserPool)==closer and learn.made_of['pool']==('closer' if closer else 'avg')
    assert learn.made_of['image_size']==f'{kept["size"]}×{kept["size"]}' and learn.dls.one_batch()[0].shape[-1]==kept["size"]
    assert hasattr(learn, 'phase_log')==('deeper' in kept.step) # no card tells of epochs that were thrown away
    learn.save_bundle(tmp_path/'b')
    x = birds.path(0)
    torch.testing.assert_close(torch.tensor(load_bundle(tmp_path/'b').predict(x).confidence.item()), learn.predict(x)[2].max(), rtol=1e-3, atol=1e-3)

@pytest.mark.parametrize('at', (1, 2, 3))
def test_interrupted(birds, at, monkeypatch, capsys):
    "Stopped in the head, in the looks, in the solving after the training: the best so far, or what there was"
    learn,calls,real = quiet(birds),[],type(quiet(birds)).fit_head
    before,dls = state(learn),learn.dls
    def fit_head(self, *args, **kwargs):
        calls.append(self)
        if len(calls)==at: raise KeyboardInterrupt
        return real(self, *args, **kwargs)
    monkeypatch.setattr(type(learn), 'fit_head', fit_head, raising=False)
    tried = learn.fit_minutes(.06)
    assert 'Stopped' in capsys.readouterr().out and len(calls)==at
    if at==1: assert not len(tried) and same(state(learn), before) and learn.dls is dls and not hasattr(learn, 'phase_log')
    else: assert tried.kept.sum()==1 and minutes._judge(learn)[1]==pytest.approx(tried.valid_top1[tried.kept].item())
    assert isinstance(learn.validate()[1], float)

def test_what_was_trained_before_is_not_lost(birds):
    learn = quiet(birds)
    learn.fit_phases(Phase('all', 6, lr=5e-3))
    loss = minutes._judge(learn)[0]
    tried = learn.fit_minutes(.05)
    assert tried.step[0]=='before' and tried.valid_loss[0]==pytest.approx(loss, rel=1e-4) and minutes._judge(learn)[0]<=loss*1.001

def test_no_looks_where_nothing_may_be_changed(birds):
    "A pool that was chosen stays"
    learn = quiet(birds, pool='gem')
    tried = learn.fit_minutes(.05)
    assert learn.made_of['pool']=='gem' and not tried.step.str.contains('looks').any()

def test_least_loss():
    "Against a fine grid, one factor at a time"
    torch.manual_seed(0)
    p,y = torch.randn(50, 4)*3,torch.randint(4, (50,))
    slow = min(torch.nn.functional.cross_entropy(p*f, y).item() for f in torch.logspace(-2, 1.5, 2000).tolist())
    assert slow<=solve.least_loss(p, y).item()<=slow+2e-3

def test_refused(birds):
    for bad,said in ((0,'above 0'), (-1,'minutes'), ('ten','minutes'), (float('nan'),'minutes')):
        with pytest.raises(FineGrainedError, match=said): quiet(birds).fit_minutes(bad)
    with pytest.raises(FineGrainedError, match='test split'):
        fine_grained_learner(birds.dls(64, bs=16, num_workers=0, valid='test'), 'toy_resnet').fit_minutes(1)
    with pytest.raises(FineGrainedError, match='linear'): quiet(birds, head='cosine').fit_minutes(1)
