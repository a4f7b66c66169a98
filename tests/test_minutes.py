"`fit_minutes` keeps the best of what it tried, and nothing of what it did not keep"
import itertools, pytest, torch, warnings
from copy import deepcopy
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders, TfmdDL
from fastai.metrics import accuracy
from types import SimpleNamespace
from fasttransform import Transform
from fgvc_fast.all import EMA, AddLoss, FineGrainedError, Mix, Phase, fine_grained_data, fine_grained_learner, load_bundle
from fgvc_fast.models.closer import CloserPool
from fgvc_fast import save
from fgvc_fast.train import minutes, solve
from fgvc_fast.train.phases import default_plan
from functools import partial
from torch import nn

@pytest.fixture(scope='module')
def birds(): return fine_grained_data('toy_birds', families=2, species=3, per_class=16, size=160) # enough for a closer look

@pytest.fixture(autouse=True)
def ticks(monkeypatch):
    "A clock that goes on by a tenth of a second whenever it is asked: as many epochs on any machine, however busy"
    count = itertools.count()
    monkeypatch.setattr(minutes, 'time', SimpleNamespace(perf_counter=lambda: next(count)/10))

def quiet(birds, size=64, **kwargs):
    learn = fine_grained_learner(birds.dls(size, bs=16, num_workers=0, seed=0), 'toy_resnet', metrics=accuracy, **kwargs)
    learn.remove_cb(type(learn.progress))
    return learn

def judged(learn):
    "As `minutes._judge`, but asked of the learner: no folded rows, no head apart"
    log = vars(learn.recorder).copy()
    with learn.no_bar(), learn.no_logging(): p,y = learn.get_preds(dl=learn.dls.valid, act=lambda o: o)
    vars(learn.recorder).update(log)
    return solve.least_loss(p.float(), y).item(),(p.argmax(1)==y).float().mean().item()

def best_of(tried, n, k):
    "The row to keep of `n` training and `k` validation pictures: each against the best before it, by all that knows both"
    best = 0
    for i,row in tried.iterrows():
        cv,valid = (row[o]/tried.loc[best, o] for o in ('cv_loss','valid_loss'))
        if (valid if cv!=cv else cv**(n/(n+k))*valid**(k/(n+k)))<1: best = i
    return best

def state(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}

def same(a, b): return a.keys()==b.keys() and all(torch.equal(v, b[k]) for k,v in a.items())

@pytest.mark.parametrize('long', (.1, .2))
def test_the_learner_is_what_was_kept(birds, tmp_path, long):
    "Weights, looks, size, card and bundle are of the row that says kept, which has the lowest loss of all that it was compared with"
    learn = quiet(birds)
    tried = learn.fit_minutes(long)
    kept = tried[tried.kept].iloc[0]
    assert any('deeper' in o for o in tried.step) and tried.expected[1:].notna().all() and tried.kept.sum()==1
    assert kept.name==best_of(tried, 60, 6)
    loss,acc = judged(learn)
    assert acc==pytest.approx(kept.valid_top1) and loss==pytest.approx(kept.valid_loss, rel=1e-3)
    solved = not ('deeper' in kept.step and 'epochs' in kept.step)
    assert isinstance(learn.model.pool, CloserPool)==solved and learn.made_of['pool']==('closer' if solved else 'avg')
    assert not solved or learn.model.pool.looks==(int(kept.step.split(' looks')[0][-1]) if 'looks' in kept.step else 1)
    assert learn.made_of['image_size']==f'{kept["size"]}×{kept["size"]}' and learn.dls.one_batch()[0].shape[-1]==kept["size"]
    assert hasattr(learn, 'phase_log')==('deeper' in kept.step) # no card tells of epochs that were thrown away
    learn.save_bundle(tmp_path/'b')
    x = birds.path(0)
    torch.testing.assert_close(torch.tensor(load_bundle(tmp_path/'b').predict(x).confidence.item()), learn.predict(x)[2].max(), rtol=1e-3, atol=1e-3)

@pytest.mark.parametrize('at', (1, 2, 3))
def test_interrupted(birds, at, monkeypatch, capsys):
    "Stopped in the head, in the looks, in the solving after the training: the best so far, or what there was"
    learn,calls,real = quiet(birds),[],minutes.solvable_rows
    before,dls = state(learn),learn.dls
    def rows(learn):
        calls.append(learn)
        if len(calls)==at: raise KeyboardInterrupt
        return real(learn)
    monkeypatch.setattr(minutes, 'solvable_rows', rows)
    tried = learn.fit_minutes(.12)
    assert 'Stopped' in capsys.readouterr().out and len(calls)==at
    if at==1: assert not len(tried) and same(state(learn), before) and learn.dls is dls and not hasattr(learn, 'phase_log')
    else: assert tried.kept.sum()==1 and judged(learn)[1]==pytest.approx(tried.valid_top1[tried.kept].item())
    assert isinstance(learn.validate()[1], float)

def test_an_interrupted_head_keeps_its_directions(birds, monkeypatch):
    "A head that stays was solved for in the directions that stay"
    learn = quiet(birds, pool=partial(CloserPool, looks=1, second=8))
    learn.fit_head()
    was = state(learn)
    learn.model.body.model.conv1[0].weight.data.mul_(-1) # the main directions are others by now
    real = solve.frozen_rows
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr(solve, 'frozen_rows', stop)
    with pytest.raises(KeyboardInterrupt): learn.fit_head()
    assert torch.equal(learn.model.pool.directions, was['pool.directions'])
    monkeypatch.setattr(solve, 'frozen_rows', real)
    learn.fit_head()
    assert not torch.equal(learn.model.pool.directions, was['pool.directions'])

def test_what_was_trained_before_is_not_lost(birds):
    learn = quiet(birds)
    learn.fit_phases(Phase('all', 6, lr=5e-3))
    loss = judged(learn)[0]
    tried = learn.fit_minutes(.05)
    assert tried.step[0]=='before' and tried.valid_loss[0]==pytest.approx(loss, rel=1e-4) and judged(learn)[0]<=loss*1.001

def test_weights_that_were_loaded_are_not_lost(birds, tmp_path):
    "Of which the learner knows nothing but what it reads from them"
    learn = quiet(birds)
    with learn.no_logging(): learn.fit_phases(Phase('all', 6, lr=5e-3))
    torch.save(learn.model.state_dict(), tmp_path/'w.pth')
    other = quiet(birds)
    other.model.load_state_dict(torch.load(tmp_path/'w.pth'))
    loss = judged(other)[0]
    tried = other.fit_minutes(.05)
    assert tried.step[0]=='before' and judged(other)[0]<=loss*1.001
    assert quiet(birds).fit_minutes(.02).step[0].startswith('head')

def test_validation_decides_alone_of_a_trained_body(birds, monkeypatch):
    "Cross-validation asks it of pictures that it has learned: whatever that says of moments, they are kept where validation is for them"
    solve_it,judge,losses = minutes.write_head,minutes._judge,{}
    def said(learn, rows, *args, **kwargs): # of moments, by cross-validation
        table = solve_it(learn, rows, *args, **kwargs)
        return table.assign(loss=1e9 if moments_are_better() else 1e-9) if learn.model.pool.second else table
    def moments_are_better(): return true[True]<true[False]
    def judged(learn, known=None):
        res = judge(learn, known)
        losses[bool(learn.model.pool.second)] = res[0]
        return res
    def head(learn):
        m = minutes._Minutes(learn, 10)
        m.solve('head', [(1,16,False),(1,0,False)], (64,64))
        return m.trained,'moments' in m.rows[0]['step']
    monkeypatch.setattr(minutes, '_judge', judged)
    fresh,trained = quiet(birds),quiet(birds)
    with trained.no_logging(): trained.fit_phases(2)
    for learn,late in ((fresh,False), (trained,True)):
        monkeypatch.setattr(minutes, 'write_head', solve_it)
        for o in (True,False): losses.pop(o, None)
        start = deepcopy(learn)
        head(start)
        true = dict(losses)
        monkeypatch.setattr(minutes, 'write_head', said)
        assert head(deepcopy(learn))==(late, moments_are_better()==late) # cross-validation says the opposite, and is heard of the fresh one alone

def test_which_bodies_may_have_been_trained(birds):
    learn = quiet(birds)
    learn.fit_head()
    assert not minutes._Minutes(learn, 1).trained # only the head
    with learn.no_logging(): learn.fit_phases(2)
    learn.fit_head()
    assert minutes._Minutes(learn, 1).trained

def test_a_pool_with_moments_that_was_chosen_stays(birds):
    learn = quiet(birds, pool=partial(CloserPool, looks=1, second=8))
    learn.fit_minutes(.02)
    assert (learn.model.pool.looks,learn.model.pool.second)==(1,8)

def test_no_looks_where_nothing_may_be_changed(birds):
    "A pool that was chosen stays"
    learn = quiet(birds, pool='gem')
    tried = learn.fit_minutes(.05)
    assert learn.made_of['pool']=='gem' and not tried.step.str.contains('looks').any()

def test_callbacks(birds):
    "The body is trained with those of the learner and of the call, also with such as no stored features could follow"
    learn = quiet(birds, cbs=Mix(mixup=.4))
    assert any('deeper' in o for o in learn.fit_minutes(.1, cbs=[EMA()]).step)

def test_interrupted_in_the_body(birds, capsys):
    "It ends there, says so once, and promises nothing that cannot be had"
    class Stop(Callback):
        def after_batch(self): raise KeyboardInterrupt
    learn = quiet(birds)
    tried = learn.fit_minutes(.1, cbs=Stop())
    said = capsys.readouterr().out
    assert said.count('Stopped')==1 and 'resume' not in said and not any('deeper' in o for o in tried.step)
    assert judged(learn)[0]==pytest.approx(tried.valid_loss.min(), rel=1e-4) and not hasattr(learn, 'phase_log')

def test_the_clock_ends_the_last_phase(birds):
    "Callbacks that take their time are seen: an epoch that would come too late is not begun"
    class Slow(Callback):
        def after_batch(self): [minutes.time.perf_counter() for _ in range(10)] # a second each
    learn = quiet(birds)
    m = minutes._Minutes(learn, .2)
    learn.fit_phases(default_plan(7), cbs=[Slow(), minutes._Clock(m, 0)])
    assert 1<len(learn.phase_log)<7 and learn._phase_run.done

def test_card_log_and_recorder_are_of_what_was_kept(birds):
    "An earlier training stays known, one that was thrown away is not; and a head is solved for until it is trained"
    learn = quiet(birds)
    with learn.no_logging(): learn.fit_one_cycle(3, 1e-2)
    values = list(learn.recorder.values)
    tried = learn.fit_minutes(.06)
    if not any(tried.kept & tried.step.str.contains('deeper')): assert learn.aux_losses.n_trained==3 and learn.recorder.values==values
    learn.fit_head()
    assert 'solved_head' in learn.made_of
    with learn.no_logging(): learn.fit_phases(1)
    assert 'solved_head' not in learn.made_of

def test_data_changed_since_the_loaders_were_made():
    "Loaders of another size are refused where they would deal other labels or pictures: there are no looks then"
    data = fine_grained_data('toy_birds', families=2, species=3, per_class=8, size=160)
    learn = quiet(data)
    names = list(data.vocab)
    was = data.items.label.copy()
    data.items['label'] = data.items.label.map(dict(zip(names, names[1:]+names[:1])))
    with pytest.raises(FineGrainedError, match='labels of the table were changed'): learn.dls.resized(96)
    codes = [int(y) for _,y in learn.dls.valid_ds]
    assert not learn.fit_minutes(.02).step.str.contains('looks').any() and [int(y) for _,y in learn.dls.valid_ds]==codes
    data.items['label'] = was
    learn.dls.resized(96)
    cut = learn.dls.train.new(n=7)
    learn.dls.loaders[0] = cut
    tried = learn.fit_minutes(.02)
    assert not tried.step.str.contains('looks').any() and learn.dls.train is cut
    cut.get_idxs = lambda: [0, 1]
    with pytest.raises(FineGrainedError, match='get_idxs'): learn.fit_head()

def test_what_looks_would_break(birds):
    "A loss on the pool's own rows stays of their width, a transform with a size of its own stays: no looks; and double precision stays double"
    learn = quiet(birds, cbs=AddLoss('center'))
    assert not learn.fit_minutes(.03).step.str.contains('looks').any()
    with learn.no_logging(): learn.fit_phases(1)
    learn = quiet(birds)
    learn.model.double()
    learn.dls.add_tfms([Transform(lambda x: x.double() if x.ndim==4 else x, order=99)], 'after_batch')
    learn.fit_minutes(.03)
    assert {p.dtype for p in learn.model.parameters()}=={torch.float64}

def test_boxes_count_where_they_are_cut_out(birds):
    "A bird that fills the half of a picture shows half of its pixels"
    for crop,more in ((None,True), ('box',False)):
        learn = fine_grained_learner(birds.dls(64, bs=16, num_workers=0, crop=crop), 'toy_resnet')
        assert minutes._shows_more(learn, (112,112))==more

def test_a_file_that_has_gone_is_named(birds, tmp_path):
    "By one clear error, and the learner keeps what it had"
    import shutil
    shutil.copytree(birds.root, tmp_path/'birds')
    data = fine_grained_data(tmp_path/'birds')
    learn = fine_grained_learner(data.dls(64, bs=16, num_workers=0, cache=False), 'toy_resnet')
    learn.remove_cb(type(learn.progress))
    was,gone = state(learn),data.path(int(learn.dls.valid_ds.items[0]))
    gone.unlink()
    with pytest.raises(FineGrainedError, match=gone.name): learn.fit_minutes(.1)
    assert same(state(learn), was)

def test_no_looks_at_small_pictures(birds):
    "A look that would be blown up shows nothing new"
    small = fine_grained_data('toy_birds', families=2, species=3, per_class=8, size=128)
    for data,more in ((birds,True), (small,False)): assert quiet(data).fit_minutes(.1).step.str.contains('looks').any()==more

def test_few_epochs_are_made_on_smaller_pictures(birds, monkeypatch):
    "And the head is solved for at the full size"
    monkeypatch.setattr(minutes, '_epoch_seconds', lambda learn: 1.2) # two of them
    learn = quiet(birds, 224, pool='gem')
    tried = learn.fit_minutes(.05)
    assert tried['size'].tolist()[:3]==[224,128,224] and learn.dls.one_batch()[0].shape[-1]==tried['size'][tried.kept].item()

def test_nothing_is_learned_by_timing(birds):
    "Neither by the loss, nor by the loader or the caller's random numbers"
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(6))
        def forward(self, p, y): return nn.functional.cross_entropy(p*self.w, y)
    learn = quiet(birds, loss_func=Own())
    was,rng,draw = state(learn),learn.dls.train.rng.getstate(),torch.get_rng_state()
    assert minutes._epoch_seconds(learn)>0
    assert learn.loss_func.w.grad is None and same(state(learn), was) and learn.dls.train.rng.getstate()==rng and torch.equal(torch.get_rng_state(), draw)

def test_wide_pictures_stay_wide():
    "And what is cut off above and below is not what a look could see more of"
    birds,large = [fine_grained_data('toy_birds', families=2, species=3, per_class=8, size=o) for o in (160,240)]
    assert not minutes._shows_more(quiet(birds, (48,96)), (68,136)) # of 160 × 80
    learn = quiet(large, (48,96))
    tried = learn.fit_minutes(.12)
    assert tried['size'][0]=='48×96' and tried['size'][1]=='136×272' # of twice 96 px square the pixels, to rounding
    assert learn.dls.one_batch()[0].shape[2:]==tuple(map(int, str(tried['size'][tried.kept].item()).split('×')))

def test_least_loss():
    "Against a fine grid, one factor at a time"
    torch.manual_seed(0)
    p,y = torch.randn(50, 4)*3,torch.randint(4, (50,))
    slow = min(torch.nn.functional.cross_entropy(p*f, y).item() for f in torch.logspace(-4, 2, 2000).tolist())
    assert slow<=solve.least_loss(p, y).item()<=slow+2e-3

def test_refused(birds):
    for bad,said in ((0,'above 0'), (-1,'minutes'), ('ten','minutes'), (float('nan'),'minutes')):
        with pytest.raises(FineGrainedError, match=said): quiet(birds).fit_minutes(bad)
    with pytest.raises(FineGrainedError, match='test split'):
        fine_grained_learner(birds.dls(64, bs=16, num_workers=0, valid='test'), 'toy_resnet').fit_minutes(1)
    with pytest.raises(FineGrainedError, match='linear'): quiet(birds, head='cosine').fit_minutes(1)

def test_what_mirror_images_add(birds, tmp_path):
    "The learner that looks at both says what the row says, and says the same of both"
    learn = quiet(birds)
    m = minutes._Minutes(learn, 10)
    m.solve('head', [(1,16,False),(1,0,False)], (64,64))
    assert m.mirror() and learn.model.pool.mirrored and learn.model.pool.second==m.best['looks'][1]
    loss,acc = judged(learn)
    assert (loss,acc)==(pytest.approx(m.rows[-1]['valid_loss'], rel=1e-3),pytest.approx(m.rows[-1]['valid_top1']))
    x = learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)
    with torch.no_grad(): torch.testing.assert_close(learn.model.eval()(x), learn.model(x.flip(3)), rtol=1e-3, atol=1e-3)
    assert not m.mirror() and len(m.rows)==2 # once is enough, whichever was kept
    learn.save_bundle(tmp_path/'b')
    assert load_bundle(tmp_path/'b').model.pool.mirrored

def test_no_mirror_images_where_there_is_no_time_or_another_pool(birds):
    learn = quiet(birds, pool=partial(CloserPool, looks=1, second=8))
    m = minutes._Minutes(learn, 10)
    m.solve('head', [(1,8,False)], (64,64))
    assert not m.mirror() and not learn.model.pool.mirrored
    learn = quiet(birds)
    m = minutes._Minutes(learn, 10)
    m.solve('head', [(1,8,False)], (64,64))
    m.limit = 0
    assert not m.mirror() and not learn.model.pool.mirrored

def test_the_way_back_from_training(birds, monkeypatch):
    "A quarter each time, until it gets worse; the body is then the best of them, and the card says which"
    learn = quiet(birds)
    m = minutes._Minutes(learn, 10)
    first = learn.model.body.state_dict()['model.conv1.0.weight'].clone()
    with learn.no_logging(): minutes._deeper(m, 2, 1, (64,64), 0, None)
    last,seen,losses = learn.model.body.state_dict()['model.conv1.0.weight'].clone(),[],iter((.8,.7,.75))
    def solve(self, *args):
        seen.append((args[0], learn.made_of.get('body_share'), learn.model.body.state_dict()['model.conv1.0.weight'].clone()))
        self.rows.append(dict(valid_loss=next(losses)))
    monkeypatch.setattr(minutes._Minutes, 'solve', solve)
    m.rows[-1]['valid_loss'] = .9
    minutes._less_deep(m, None, None, 0)
    assert [o[:2] for o in seen]==[('75 % deeper, head',.75), ('50 % deeper, head',.5), ('25 % deeper, head',.25)]
    for _,share,w in seen: torch.testing.assert_close(w, first+share*(last-first))
    assert torch.equal(learn.model.body.state_dict()['model.conv1.0.weight'], seen[1][2]) and learn.made_of['body_share']==.5
    assert save._training(learn)['body'].startswith('50%')
    m.rows[-1]['valid_loss'],losses = .7,iter((.71,))
    learn.made_of.pop('body_share')
    minutes._less_deep(m, None, None, 0) # nothing better than the body as it is
    assert torch.equal(learn.model.body.state_dict()['model.conv1.0.weight'], seen[1][2]) and 'body_share' not in learn.made_of
    learn.made_of['body_share'] = .5
    with learn.no_logging(): learn.fit_phases(1)
    assert 'body_share' not in learn.made_of

def test_use_valid(birds, monkeypatch):
    "The head is that of all rows, by the choice that was made without the validation pictures; and whoever asks about these is warned"
    learn = quiet(birds)
    learn.validate() # what was said before is said again where it is another by now
    monkeypatch.setattr(minutes, '_epochs', lambda m, reserve: (0, 1., (64,64)))
    plain = quiet(birds)
    tried = plain.fit_minutes(10)
    got = learn.fit_minutes(10, use_valid=True)
    assert got.step.tolist()[:-1]==tried.step.tolist() and got.step.iloc[-1]==tried.step[tried.kept].item()+', of validation pictures, too'
    assert got.kept.tolist()==[False]*len(tried)+[True] and got.valid_loss.isna().iloc[-1]
    assert got.valid_loss[:-1].tolist()==pytest.approx(tried.valid_loss.tolist())
    assert learn.made_of['solved_head']==plain.made_of['solved_head']+', from the validation pictures, too'
    assert '6 of these 6 pictures were trained on' in save._numbers(learn, learn.model.eval(), False)['notes'][0] and not learn.model.pool.training
    norm,rows = learn.model.head.norm,torch.cat([minutes.frozen_rows(learn, i)[0] for i in (0,1)])
    torch.testing.assert_close(norm.running_mean, rows.mean(0), rtol=1e-3, atol=1e-4)
    with pytest.warns(UserWarning, match='6 of the 6 pictures that this learner validates on were trained on'): learn.validate()
    with pytest.raises(FineGrainedError, match='6 of the 6 validation pictures were trained on'): learn.fit_minutes(1) # it would find itself very good
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        plain.validate()

def test_use_valid_of_a_head_that_was_trained(birds):
    "It stays as it is: there are no rows that it was solved from"
    learn = quiet(birds)
    m = minutes._Minutes(learn, 10)
    m.note('before', 0)
    was = state(learn)
    with pytest.warns(UserWarning, match='stays as it is'): m.use_valid()
    assert same(state(learn), was) and len(m.rows)==1
    with pytest.raises(FineGrainedError, match='use_valid'): learn.fit_minutes(1, use_valid='yes')

def test_interrupted_late_in_the_body(birds, capsys):
    "What it has learned by then is a candidate; and the model is all in evaluation mode"
    class Stop(Callback):
        seen = 0
        def before_epoch(self):
            self.seen += 1
            if self.seen==7: raise KeyboardInterrupt
    learn = quiet(birds)
    tried = learn.fit_minutes(.2, cbs=Stop())
    assert 'Stopped' in capsys.readouterr().out and tried.step.str.contains('deeper, 6 epochs').any() and tried.kept.sum()==1
    assert not any(o.training for o in learn.model.modules()) and judged(learn)[0]==pytest.approx(tried.valid_loss[tried.kept].item(), rel=1e-3)

def test_pictures_of_a_group_are_held_out_together(monkeypatch):
    "Of bursts, which `split(by=)` keeps together, cross-validation sees all or none"
    data = fine_grained_data('toy_birds', families=1, species=3, per_class=18, size=64)
    data.items['nest'] = [f'{o.label} {i//3}' for i,o in enumerate(data.items.itertuples())]
    data = data.split(valid=.2, by='nest')
    learn,seen,real = quiet(data),[],solve._folds
    monkeypatch.setattr(solve, '_folds', lambda targs, k, seed, groups: seen.append((groups, real(targs, k, seed, groups))) or seen[-1][1])
    learn.fit_head()
    groups,parts = seen[0]
    nests = data.items.nest.iloc[list(learn.dls.train.items)].to_numpy()
    assert len(set(groups))==len(set(nests))<len(nests) and all(len(set(parts[nests==o].tolist()))==1 for o in set(nests)) and len(set(parts.tolist()))>2

def test_loaders_that_are_not_ours():
    "No table, no groups: a head is solved for all the same"
    x,y = torch.rand(24, 3, 64, 64),torch.arange(24)%3
    dls = DataLoaders(*[TfmdDL([*zip(x, y)], bs=8, num_workers=0) for _ in range(2)])
    dls.vocab = ['a','b','c']
    learn = fine_grained_learner(dls, 'toy_resnet', loss_func=nn.CrossEntropyLoss())
    with learn.no_bar(): assert learn.fit_head().chosen.sum()==1
