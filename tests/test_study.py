"Studies: nothing is run twice, nothing is lost, and every number is what it says"
import errno, json, math, os, signal, subprocess, sys, time, weakref
from collections import deque
from functools import partial
from pathlib import Path
import numpy as np, pytest, torch
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, accuracy, defaults, set_seed, top_k_accuracy
from fastprogress import fastprogress
from torch import nn
from torch.utils.data import TensorDataset
from fgvc_fast.augment.mix import Mix
from fgvc_fast.core import FineGrainedError
from fgvc_fast.data.all import FineGrainedData
from fgvc_fast.datasets.all import fine_grained_data
from fgvc_fast.learner import fine_grained_learner
from fgvc_fast.study.names import dependencies_of, value_name
from fgvc_fast.study.show import Study
from fgvc_fast.study.table import _clocked, measure
from fgvc_fast.studies import all_that_help, depth_study, layer_plans, reinit_study, train_one, training_tricks, transfer_study, tricks_study, vit_study
from fgvc_fast.train.phases import Phase

pytestmark = pytest.mark.usefixtures('one_thread')

def noise(n, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(7, (n,), generator=g)
    return TensorDataset(torch.rand(n, 7, generator=g) + .5*torch.eye(7)[y], y)

def learner(n_valid=33):
    dls = DataLoaders(*[DataLoader(noise(n, s), bs=16, num_workers=0) for s,n in enumerate((64,n_valid))])
    return Learner(dls, nn.Linear(7, 7), loss_func=CrossEntropyLossFlat(), metrics=[accuracy, partial(top_k_accuracy, k=5)])

calls = deque() # a list would count as something that the runs depend on
def train(seed, lr, epochs=1):
    calls.append((lr, seed))
    learn = learner()
    learn.fit(epochs, lr)
    return learn

@pytest.fixture
def study(tmp_path):
    calls.clear()
    return Study('s', train, dict(lr=[.01,.1]), seeds=2, folder=tmp_path)

@pytest.fixture(scope='module')
def done(tmp_path_factory): return Study('done', train, dict(lr=[.01,.1]), 3, tmp_path_factory.mktemp('done')).run(progress=False)

@pytest.fixture(scope='module')
def birds(): return fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=64).split(valid=.3)

def lines(study): return [json.loads(o) for o in study.path.read_text().splitlines()]

script = """
import os, time, torch
from fastai.basics import CrossEntropyLossFlat, DataLoader, DataLoaders, Learner
from torch.utils.data import TensorDataset
from fgvc_fast.study.table import Study
log = {log!r}
def train(seed, lr):
    with open(log, 'a') as f: f.write(f'{{lr}} {{seed}}\\n')
    dl = DataLoader(TensorDataset(torch.rand(32, 7), torch.arange(32)%7), bs=16, num_workers=0)
    learn = Learner(DataLoaders(dl, dl), torch.nn.Linear(7, 7), loss_func=CrossEntropyLossFlat())
    learn.fit(1, lr)
    if os.environ.get('HANG') and seed==1: time.sleep(600)
    return learn
Study('s', train, dict(lr=[.01,.1]), seeds=2, folder={folder!r}).run(progress=False)
"""

def test_killed_and_started_again(tmp_path):
    "SIGKILL in the third of four runs; the second start does that run and the fourth, in a process with other hashes"
    log,code = tmp_path/'log.txt',tmp_path/'go.py'
    code.write_text(script.format(log=str(log), folder=str(tmp_path)))
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parent.parent), 'OMP_NUM_THREADS': '1'}
    p = subprocess.Popen([sys.executable, '-W', 'ignore', str(code)], env={**env, 'HANG': '1', 'PYTHONHASHSEED': '1'})
    for _ in range(12000):
        if log.exists() and len(log.read_text().splitlines())==3: break
        time.sleep(.1)
    p.send_signal(signal.SIGKILL), p.wait()
    assert len((tmp_path/'s.jsonl').read_text().splitlines())==1+2
    res = subprocess.run([sys.executable, '-W', 'ignore', str(code)], env={**env, 'PYTHONHASHSEED': '2'}, capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    assert log.read_text().splitlines()==['0.01 0', '0.1 0', '0.01 1', '0.01 1', '0.1 1'], 'only the run that was killed is done twice'
    rows = [json.loads(o) for o in (tmp_path/'s.jsonl').read_text().splitlines()][1:]
    assert len({o['key'] for o in rows})==4 and all(o['error'] is None for o in rows)

def test_a_second_start_has_nothing_to_do(study, tmp_path):
    study.run(progress=False)
    assert list(calls)==[(.01,0), (.1,0), (.01,1), (.1,1)], 'every setting once, then the next seed'
    was = study.path.read_text()
    again = Study('s', train, dict(lr=[.01,.1]), seeds=2, folder=tmp_path).run(progress=False)
    assert len(calls)==4 and study.path.read_text()==was and again.runs.equals(study.runs)
    more = Study('s', train, dict(lr=[.1,.01,1.]), seeds=[1,0,5], folder=tmp_path)
    assert [(o.shown['lr'], seed) for o,seed in more.todo()]==[(1.,1), (1.,0), (.1,5), (.01,5), (1.,5)], 'more settings and seeds, and the rows stay'
    assert len(more.runs)==4

@pytest.mark.parametrize('change,said', [(partial(train, epochs=2), 'epochs was 1 and is 2'), (lambda f: None, None)])
def test_a_changed_definition_is_refused(tmp_path, change, said):
    Study('s', partial(train, epochs=1), dict(lr=[.1]), 1, tmp_path).run(progress=False)
    if said is None:
        def train2(seed, lr, epochs=1): return train(seed, lr, epochs)
        change,said = partial(train2, epochs=1),'the code of train2 has changed'
    with pytest.raises(FineGrainedError, match=said): Study('s', change, dict(lr=[.1]), 1, tmp_path)

def test_data_divided_otherwise_are_others(birds):
    names = [value_name(o) for o in (birds, birds.split(valid=.3, seed=0), birds.split(valid=.3, seed=1))]
    assert names[0]==names[1]!=names[2] and repr(birds) in names[0]

def test_an_error_is_a_row_and_is_tried_again(tmp_path, capsys):
    broken = deque([1]) # not watched, as `calls`
    def some(seed, lr):
        if seed in broken: raise RuntimeError('out of luck')
        return train(seed, lr)
    study = Study('s', some, dict(lr=[.1]), 3, tmp_path).run(progress=False)
    assert study.runs.error.notna().tolist()==[False,True,False]
    assert 'lr=0.1, seed 1: RuntimeError: out of luck' in capsys.readouterr().out
    assert 'in some' in study.runs.traceback[1] and study.summary().seeds.item()==2
    assert '1 with an error' in repr(study)
    with pytest.raises(FineGrainedError, match='all of its 3 seeds'): study.best()
    broken.clear()
    calls.clear()
    again = Study('s', some, dict(lr=[.1]), 3, tmp_path).run(progress=False)
    assert list(calls)==[(.1,1)] and again.runs.error.isna().all() and len(lines(again))==4

def test_interrupt_keeps_what_is_finished(tmp_path, capsys):
    def some(seed, lr):
        if seed==1: raise KeyboardInterrupt
        return train(seed, lr)
    was = list(defaults.callbacks)
    study = Study('s', some, dict(lr=[.1]), 3, tmp_path).run(progress=False)
    assert 'Stopped with 2 runs missing' in capsys.readouterr().out
    assert len(lines(study))==2 and defaults.callbacks==was
    study.run(progress=False) # the lock is free

def test_a_phase_stopped_halfway_is_no_run(tmp_path, capsys):
    "`fit_phases` comes back quietly from an interrupt; its learner must not count as trained"
    class Stop(Callback):
        def after_batch(self): raise KeyboardInterrupt
    def some(seed):
        learn = learner()
        learn.fit_phases([Phase('all', 1, lr=.1)], cbs=Stop())
        return learn
    study = Study('s', some, [{}], 2, tmp_path).run(progress=False)
    assert len(study.todo())==2 and not study.rows

def test_memory_is_free_before_the_next_run(tmp_path):
    alive,seen = [],[]
    def some(seed, fails=False):
        seen.append(sum(o() is not None for o in alive))
        learn = learner()
        alive.append(weakref.ref(learn.model))
        learn.fit(1, .1)
        if fails: raise RuntimeError
        return learn
    Study('s', some, dict(fails=[False,True]), 2, tmp_path).run(progress=False)
    assert seen==[0]*4

def test_numbers_are_those_of_fastai(birds):
    set_seed(0)
    dls = birds.dls(size=32, bs=5, seed=0, num_workers=0)
    learn = fine_grained_learner(dls, 'test_resnet', pretrained=False, metrics=[accuracy, partial(top_k_accuracy, k=3)], cbs=Mix(mixup=.4))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        got = measure(learn)
        loaders = dict(train=dls.test_dl(birds['train'].index, with_labels=True), valid=dls.valid, test=dls.test_dl(birds['test'].index, with_labels=True))
        for k,dl in loaders.items():
            loss,top1,_ = learn.validate(dl=dl)
            assert got[f'{k}_loss']==pytest.approx(float(loss), abs=1e-5) and got[f'{k}_top1']==pytest.approx(float(top1), abs=1e-6)
            assert got[f'{k}_pictures']==len(birds[k]) and got[f'{k}_top5']==1 # of four classes
        assert got['test_top1']==pytest.approx(learn.test().top1.item())

def test_top5_and_odd_batches():
    learn = learner(33)
    got,(x,y) = measure(learn),learn.dls.valid_ds.tensors
    logits = learn.model(x).double()
    assert got['valid_top5']==pytest.approx((logits.argsort(1, descending=True)[:,:5]==y[:,None]).any(1).double().mean().item())
    assert got['valid_loss']==pytest.approx((logits.logsumexp(1) - logits[range(33),y]).mean().item(), abs=1e-6)
    some = np.sort(np.random.default_rng(0).permutation(64)[:10])
    x,y = [o[some] for o in learn.dls.train_ds.tensors]
    assert measure(learn, 10)['train_top1']==pytest.approx((learn.model(x).argmax(1)==y).double().mean().item())

def test_the_loss_is_the_same_for_all_losses():
    a,b = learner(),learner()
    b.model,b.loss_func = a.model,CrossEntropyLossFlat(label_smoothing=.3)
    assert measure(a)==measure(b)

def test_no_choice_is_left_on_the_test_split(birds):
    learn = fine_grained_learner(birds.dls(size=32, valid='test', num_workers=0), 'test_resnet', pretrained=False)
    with pytest.raises(FineGrainedError, match='validate on the test split'): measure(learn)

def test_mean_and_spread(done, tmp_path):
    runs,wide = done.runs,done.summary()
    for c in ('train_top1','valid_loss','minutes'):
        by = runs.groupby('lr')[c]
        np.testing.assert_allclose(wide[c].astype(float), by.mean()), np.testing.assert_allclose(wide[f'{c}_spread'].astype(float), by.std())
    v = runs[runs.lr==.1].valid_top1.to_numpy()
    assert wide.valid_top1_spread[1]==pytest.approx(math.sqrt(((v-v.mean())**2).sum()/2))
    one = Study('one', train, dict(lr=[.1]), 1, tmp_path).run(progress=False)
    assert np.isnan(one.summary().valid_top1_spread.item()) and '±' not in one.to_markdown().split('\n\n')[0]

def test_seeds_decide(done, tmp_path):
    again = Study('t', train, dict(lr=[.01,.1]), 3, tmp_path).run(progress=False)
    cols = ['valid_loss','train_loss','train_top1']
    assert again.runs[cols].equals(done.runs[cols]) and done.runs[done.runs.lr==.1].valid_loss.nunique()==3

def fake(study, values, column='valid_top1'):
    "Rows as if they had been run, `values` by (lr, seed)"
    for (lr,seed),v in values.items():
        o = next(o for o in study.settings if o.shown['lr']==lr)
        k = study._key(o, seed)
        study.rows[k] = (dict(key=k, setting=o.shown, seed=seed, error=None, valid_pictures=100, device=study._here, seconds=10.*(1+9*(lr==.1)), date='2026-01-01T00:00:00+00:00')
            | {column: v} | dict.fromkeys(['fgvc_fast','torch','fastai','timm'], '1'))

def test_best_is_chosen_by_validation(study):
    fake(study, {(lr,s): v for lr,v in ((.01,.8),(.1,.7)) for s in range(2)})
    for r in study.rows.values(): r['test_top1'] = 1-r['valid_top1']
    assert study.best().lr.item()==.01 and study.best().test_top1.item()==pytest.approx(.2)
    with pytest.raises(FineGrainedError, match='chosen by the validation split'): study.best('test_top1')

@pytest.mark.parametrize('a,b,beyond', [((.8,.7,.75), (.7,.6,.64), True), ((.8,.7,.75), (.7,.75,.6), False), ((.6,.6,.6), (.6,.6,.6), False)])
def test_paired_difference(tmp_path, a, b, beyond):
    study = Study('s', train, dict(lr=[.01,.1]), 3, tmp_path)
    from scipy.stats import ttest_rel
    fake(study, {(.1,s): v for s,v in enumerate(a)} | {(.01,s): v for s,v in enumerate(b)})
    row = study.compare(.01).iloc[0]
    assert len(study.compare(.01))==1 and row.against=='lr=0.01' and row.difference==pytest.approx(np.mean(a)-np.mean(b))
    assert row.beyond==beyond and (a==b or beyond==(ttest_rel(a, b).pvalue<.05))

def test_pairs_need_both(study):
    fake(study, {(.1,0): .9, (.1,1): .8, (.01,1): .4})
    row = study.compare(dict(lr=.01)).iloc[0]
    assert row.seeds==1 and row.difference==pytest.approx(.4) and row.beyond

def test_estimate(study):
    assert study.left()=='unknown'
    fake(study, {(.01,0): .5})
    assert study.left()=='00:10 and 2 runs of unknown length'
    fake(study, {(.1,0): .5})
    assert study.left()=='01:50' and study.left(4)=='01:46' and study.left(60)=='01:40'
    study._here = 'another machine'
    assert study.left()=='unknown'

def test_the_bar_says_what_is_known(study, capsys, monkeypatch):
    monkeypatch.setattr(fastprogress, 'progress_bar', fastprogress.ConsoleProgressBar)
    study.run()
    out = capsys.readouterr().out
    assert '0 of 4 runs · left: unknown · lr=0.01, seed 0: starts' in out and 'epoch 1 done' in out and '4 of 4 runs' in out
    assert '2 of 4 runs · left: 00:' in out and 'train_loss' not in out

def test_a_notebooks_bar(study, monkeypatch):
    display,shown = pytest.importorskip('IPython.display'),[]
    class Handle:
        def update(self, o): shown.append(str(o))
    monkeypatch.setattr(display, 'display', lambda *args, **kwargs: Handle())
    monkeypatch.setattr(fastprogress, 'progress_bar', fastprogress.NBProgressBar)
    study.run()
    assert '0 of 4 runs · left: unknown' in shown[0] and '4 of 4 runs' in shown[-1] and 'value="4"' in shown[-1]

def test_markdown_and_pictures(study, done):
    assert 'none of 4 runs done yet' in repr(study)
    with pytest.raises(FineGrainedError, match='nothing to draw yet'): study.plot()
    study = done
    head,rule,*rows = study.to_markdown().split('\n\n')[0].splitlines()
    assert head.startswith('| lr | train top-1 % | valid top-1 %') and len(rows)==2 and len({o.count('|') for o in (head, rule, *rows)})==1
    assert f"{100*study.summary().valid_top1[0]:.1f} ± {100*study.summary().valid_top1_spread[0]:.1f}" in rows[0]
    assert 'on 33 valid pictures' in study.to_markdown() and f'torch {torch.__version__}' in study.to_markdown()
    assert '<table' in study._repr_html_() and '&lt;' not in study._repr_html_()
    for kw in ({}, dict(x='minutes'), dict(x='parameters', y='train_loss')):
        ax = study.plot(**kw)
        ys = np.concatenate([l.get_ydata() for l in ax.get_lines() if len(l.get_ydata())==3])
        want = study.runs[kw.get('y','valid_top1')]*(1 if 'y' in kw else 100)
        assert sorted(np.round(ys, 6))==sorted(np.round(want, 6))

def test_a_pipe_in_a_name_does_not_break_the_table(tmp_path):
    study = Study('s', train, dict(lr={'a|b': .1}), 1, tmp_path).run(progress=False)
    assert '| a\\|b |' in study.to_markdown()

def test_the_clock(done):
    with _clocked() as clock:
        learn = learner()
        learn.fit(2, .1)
    assert clock.epochs==2 and clock.start is not None and not hasattr(learn, 'progress')
    assert (done.runs.epochs==1).all() and (done.runs.minutes*60<done.runs.seconds).all() and (done.runs.parameters==56).all()

def test_an_axis_named_as_something_measured(tmp_path):
    def some(seed, epochs): return train(seed, .1, epochs)
    study = Study('s', some, dict(epochs=[1,3]), 1, tmp_path).run(progress=False)
    assert study.runs.epochs.tolist()==study.runs['measured epochs'].tolist()==[1,3]
    assert '| epochs | train top-1 % ' in study.to_markdown()
    study.plot(x='epochs')

def test_a_file_that_is_none_of_ours(study, tmp_path):
    study.path.write_text('no json\n')
    with pytest.raises(FineGrainedError, match='is no table of a study'): Study('s', train, dict(lr=[.1]), 1, tmp_path)
    study.path.write_text('[1]\n')
    with pytest.raises(FineGrainedError, match='does not begin as'): Study('s', train, dict(lr=[.1]), 1, tmp_path)

# The published studies, at their smallest

def tiny(tmp_path, **kwargs): return dict(size=32, bs=8, epochs=2, seeds=1, folder=tmp_path, dls=dict(num_workers=0), pretrained=False) | kwargs

def whole(study):
    study.run(progress=False)
    assert not study.todo(), study.runs.error.tolist()
    return study

def test_depth_from_scratch_and_pretrained(birds, tmp_path):
    kw = tiny(tmp_path, epochs=1)
    kw.pop('pretrained')
    study = whole(depth_study(birds, ['toy_resnet'], **kw))
    assert study.runs.pretrained.tolist()==[False,True]

def test_tricks_and_all_that_help(birds, tmp_path):
    some = {k: v for k,v in training_tricks().items() if k not in ('dropout','cutout')}
    study = whole(tricks_study(birds, 'test_resnet', some, **tiny(tmp_path, epochs=1)))
    for r,v in zip(study.rows.values(), (.5,.6,.7,.4)): r['valid_top1'] = v
    study._keep(next(iter(study.rows.values())))
    more = whole(all_that_help(study))
    assert more.runs.trick.iloc[-1]=='together: geometric, mixup' and len(more.runs)==5

def test_layers_of_a_transformer(birds, tmp_path):
    study = whole(vit_study(birds, ['test_vit'], [2], **tiny(tmp_path)))
    assert study.runs.trained.tolist()==['head','head + 2 blocks','all']

def test_reinit(birds, tmp_path):
    bodies = {'plain': dict(arch='test_resnet'), 'bilinear': dict(arch='test_resnet', pool='bilinear')}
    study = whole(reinit_study(birds, bodies, [1], **tiny(tmp_path)))
    assert study.runs.parameters.nunique()==2 and (study.runs.epochs==2).all()

def test_transfer_counts_both_trainings(birds, tmp_path):
    others = fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=64, seed=1)
    kw = tiny(tmp_path, epochs=1)
    kw.pop('pretrained')
    study = whole(transfer_study(birds, others, 'toy_resnet', source_epochs=2, **kw))
    assert study.runs.epochs.tolist()==[1,1,3]

def test_plans():
    assert [[(p.to, p.epochs) for p in o] for o in layer_plans(4, 2).values()]==[[('head',4)], [('head',1),(-2,3)], [('head',1),(-3,3)], [('head',1),('all',3)]]

def test_the_same_seed_trains_the_same(birds):
    def go(seed):
        learn = train_one(seed, birds, 'test_resnet', epochs=1, size=32, bs=8, dls=dict(num_workers=0), pretrained=False)
        return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    with _clocked(): a,b,c = go(0),go(0),go(1)
    assert torch.equal(a, b) and not torch.equal(a, c)

# killed while it is measured

def _stopped(monkeypatch, what=KeyboardInterrupt):
    import fgvc_fast.study.table as table
    def stop(learn, most=1000): raise what
    monkeypatch.setattr(table, 'measure', stop)

def _values(study): return study.runs.drop(columns=['minutes','seconds','date']).to_dict('records')

@pytest.mark.parametrize('what', (KeyboardInterrupt, RuntimeError('out of memory')), ids=('stopped','error'))
def test_a_run_stopped_while_it_is_measured_is_not_trained_again(done, tmp_path, monkeypatch, what):
    with monkeypatch.context() as m:
        _stopped(m, what)
        study = Study('s', train, dict(lr=[.01]), 1, tmp_path).run(progress=False)
        assert len(study.todo())==1 and len(list(tmp_path.glob('*.trained')))==1
    calls.clear()
    study = Study('s', train, dict(lr=[.01]), 1, tmp_path).run(progress=False)
    assert not calls and not list(tmp_path.glob('*.trained*')) and not study.todo()
    assert _values(study)==_values(done)[:1] # epochs, parameters and every number as without the stop
    assert study.runs.minutes.item()>0 and study.runs.seconds.item()>=60*study.runs.minutes.item()

def test_only_whole_files_of_these_versions_are_taken(tmp_path, monkeypatch):
    import fgvc_fast.study.table as table
    def stopped(name):
        with monkeypatch.context() as m:
            _stopped(m)
            Study(name, train, dict(lr=[.01]), 1, tmp_path).run(progress=False)
        calls.clear()
        return next(tmp_path.glob(f'{name}.*.trained'))
    half = stopped('half')
    half.write_bytes(half.read_bytes()[:-1000])
    assert not Study('half', train, dict(lr=[.01]), 1, tmp_path).run(progress=False).todo() and len(calls)==1
    stopped('old')
    with monkeypatch.context() as m:
        m.setattr(table, 'library_versions', lambda: dict(fgvc_fast='0', torch='0', fastai='0', timm='0'))
        Study('old', train, dict(lr=[.01]), 1, tmp_path).run(progress=False)
    assert len(calls)==1
    with monkeypatch.context() as m: # killed between writing and putting it in its place
        m.setattr(table.os, 'replace', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        Study('kill', train, dict(lr=[.01]), 1, tmp_path).run(progress=False)
    assert not list(tmp_path.glob('kill.*.trained'))
    calls.clear()
    assert not Study('kill', train, dict(lr=[.01]), 1, tmp_path).run(progress=False).todo() and len(calls)==1

def test_what_cannot_be_put_aside_is_measured_all_the_same(tmp_path):
    class Stuck(Callback):
        def __reduce__(self): raise TypeError('not this one')
    def some(seed):
        learn = learner()
        learn.fit(1, .1)
        learn.add_cb(Stuck())
        return learn
    with pytest.warns(UserWarning, match='could not be put aside'): study = Study('s', some, [{}], 1, tmp_path).run(progress=False)
    assert not study.todo() and study.runs.error.isna().all()

def test_train_may_read_the_test_itself(birds, tmp_path):
    def some(seed):
        learn = fine_grained_learner(birds.dls(size=32, bs=8, num_workers=0, seed=seed), 'test_resnet', pretrained=False)
        learn.fit(1, 1e-3)
        tops.append(learn.test().top1.item())
        return learn
    tops = []
    study = Study('s', some, [{}], 1, tmp_path).run(progress=False)
    assert study.runs.test_top1.tolist()==pytest.approx(tops) and study.runs[['test_top5','test_loss','test_pictures']].notna().all(None)

# differences

@pytest.mark.parametrize('of', ('valid_loss','valid_top1'))
def test_the_same_does_not_differ(study, of):
    fake(study, {(lr,s): .7+s for lr in (.01,.1) for s in range(2)}, of)
    row = study.compare(.01, of).iloc[0]
    assert row.difference==0 and not row.beyond

def test_equal_shifts_of_a_loss_differ(study):
    fake(study, {(.01,s): .5+.25*s for s in range(2)} | {(.1,s): .25+.25*s for s in range(2)}, 'valid_loss')
    assert study.compare(.01, 'valid_loss').iloc[0].beyond

@pytest.mark.parametrize('m', (1, 2, 5))
def test_the_best_of_many_has_to_be_better(tmp_path, m):
    from scipy.stats import ttest_rel
    lrs = [.01*i for i in range(1, m+2)]
    study = Study('s', train, dict(lr=lrs), 4, tmp_path)
    rng = np.random.default_rng(m)
    vals = {(lr,s): .5+.02*rng.normal()+.0125*i for i,lr in enumerate(lrs) for s in range(4)}
    fake(study, vals)
    got = study.compare(lrs[0])
    for row in got.itertuples():
        p = ttest_rel([vals[row.lr,s] for s in range(4)], [vals[lrs[0],s] for s in range(4)]).pvalue
        assert row.beyond==(p<=.05/m and abs(row.difference)>=.01), (row, p)

def test_chance_finds_one_table_in_twenty(tmp_path):
    "Five settings that are all the same: with the allowance no more than one table in twenty has a find, without it one in six"
    from fgvc_fast.study.show import _room
    rng,found = np.random.default_rng(0),np.zeros(2)
    for _ in range(400):
        x = rng.normal(size=(6,4))
        found += [any(abs((a-x[0]).mean())>=_room(a, x[0], 'valid_loss', 100, times) for a in x[1:]) for times in (5,1)]
    assert found[0]/400<.075<.1<found[1]/400

def test_boxes_and_levels_are_part_of_the_data(birds):
    from fgvc_fast.datasets.all import fine_grained_data
    def name(**cols): return value_name(fine_grained_data(birds.items.assign(**cols), root=birds.root, levels=list(birds.levels)))
    same = name()
    assert name()==same
    assert (len({same, name(x0=birds.items.x0+1), name(family=birds.items.family.astype(str).str.upper()),
        name(split=birds.items.split.iloc[::-1].to_numpy())})==4)

def test_seeds_that_agree_by_chance_are_no_find():
    "Differences are whole pictures, so two seeds are often equally far apart, and their spread is nothing"
    from fgvc_fast.study.show import _room
    d = np.random.default_rng(0).normal(0, 1, (1500,2)).round()/80
    found = [x.mean()!=0 and abs(x.mean())>=_room(.8+x, np.full(2, .8), 'valid_top1', 80, 5) for x in d]
    assert np.mean(found)<=.01 and np.mean(np.ptp(d, 1)==0)>.2
    assert _room([.9]*3, [.7]*3, 'valid_top1', 50)==pytest.approx(4.302653*.01/3**.5) and _room([.9]*3, [.7]*3, 'valid_loss', 50)<1e-12

body = """
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
def helper(): return 1
def other(): return helper()
class Base:
    def rate(self): return 1
class Cfg(Base):
    lr = 1
    @property
    def wd(self): return 1
    @staticmethod
    def bs(): return 1
    def use(self): return other()
opt = partial(dict, wd=1)
mine = [partial(other)]
space = SimpleNamespace(lr=1, more=[1])
def train(seed, lr): return Cfg, opt, space, mine, lr in {'a','b','c'}
"""
changed = ['def helper(): return 1', 'def rate(self): return 1', '    lr = 1', 'def wd(self): return 1', 'def bs(): return 1', 'wd=1)', 'lr=1, more', 'more=[1]']

def made(tmp_path, monkeypatch, text):
    "What runs of the `train` in the module `text` depend on"
    import importlib.util
    path = tmp_path/f'm{len(list(tmp_path.iterdir()))}.py'
    path.write_text(text)
    spec = importlib.util.spec_from_file_location('study_of_mine', path)
    mod = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'study_of_mine', mod)
    spec.loader.exec_module(mod)
    return dependencies_of(mod.train)

@pytest.mark.parametrize('line', changed)
def test_what_train_uses_is_part_of_the_study(tmp_path, monkeypatch, line):
    was = made(tmp_path, monkeypatch, body)
    assert body.count(line)==1 and made(tmp_path, monkeypatch, body+'# a remark')==was
    assert made(tmp_path, monkeypatch, body.replace(line, line.replace('1', '2')))!=was

timed = "from functools import wraps\ndef timed(f):\n    @wraps(f)\n    def g(*args): return f(*args)*3\n    return g\nLR = 1\ndef helper(): return 2\n@timed\ndef train(seed): return helper()*LR\n"
twins = "def make(k):\n    def h(x): return x*k\n    return h\na,b = make(1),make(5)\nf = lambda x: x+1\ng = lambda x: x+2\ndef train(seed): return a(1)+b(2)+f(1)+g(1)\n"
parts = """from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from fastai.optimizer import SGD as opt
from torch import nn as lib, no_grad
N = 1
@dataclass
class Cfg:
    lr: float = .1
    more: list = field(default_factory=lambda: [3])
class Kind(Enum): one = 1
class Model:
    def rate(self, lr=N): return lr
    @lru_cache
    def kept(self): return 7
@lru_cache
def cached(): return 5
@no_grad()
def still(): return 6
cfg = Cfg()
def make(*, lr=N): return lr
def train(seed): return opt, lib, cfg, Kind.one, Model, cached(), still(), make()
"""
@pytest.mark.parametrize('text,old,new', [
    ('N = 1\ndef train(seed, n=N): return n', 'N = 1', 'N = 2'),
    (timed, 'LR = 1', 'LR = 2'), (timed, 'return 2', 'return 4'), (timed, '*3', '*4'), (timed, 'helper()*LR', 'helper()+LR'),
    (twins, 'make(5)', 'make(6)'), (twins, 'make(1),make(5)', 'make(5),make(1)'), (twins, 'x+2', 'x+3'), (twins, 'x+1', 'x+3'),
    *((parts, *o) for o in (('SGD', 'Adam'), ('torch import nn', 'torch import fx'), ('= .1', '= .2'), ('[3]', '[4]'), ('one = 1', 'one = 2'), ('N = 1', 'N = 2'), ('return 5', 'return 8'), ('return 6', 'return 8'), ('return 7', 'return 8')))])
def test_code_and_values_that_hide(tmp_path, monkeypatch, text, old, new):
    "Defaults, decorators, twins of one name, imports under another name"
    was = made(tmp_path, monkeypatch, text)
    assert text.replace(old, new)!=text and made(tmp_path, monkeypatch, text)==was!=made(tmp_path, monkeypatch, text.replace(old, new))

def test_two_of_one_name_are_two():
    from dataclasses import dataclass
    from fastai.callback.mixup import MixUp as fastai_mixup
    from fgvc_fast.augment.mix import MixUp
    from torchvision.models import resnet18
    import timm
    assert value_name(resnet18)!=value_name(timm.models.resnet18) and value_name(fastai_mixup)!=value_name(MixUp)=='MixUp'
    def make(k):
        def h(): return k
        return h
    def cfg(v):
        @dataclass
        class Cfg: lr: float = v
        return Cfg()
    assert value_name(make(1))==value_name(make(1))!=value_name(make(2)) and value_name(cfg(1))!=value_name(cfg(2))

def test_names_are_the_same_in_every_process(tmp_path):
    (tmp_path/'exp.py').write_text(parts+timed.replace('train', 'other')+'used = {other, make}, {"a","b","c"}\ndef more(seed, k=frozenset("abc")): return used, train, k\n')
    go = 'import exp; from fgvc_fast.study.names import dependencies_of, value_name; print(dependencies_of(exp.more), value_name([exp.more, exp.opt, exp.Kind.one, exp.cfg]))'
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent.parent), str(tmp_path)]), 'OMP_NUM_THREADS': '1'}
    a,b = [subprocess.run([sys.executable, '-W', 'ignore', '-c', go], env={**env, 'PYTHONHASHSEED': o}, capture_output=True, text=True, check=True).stdout for o in '13']
    assert a==b and "'used'" in a

def test_what_has_no_name_is_said(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match='train uses `thing`, and deque has no name'):
        made(tmp_path, monkeypatch, 'from collections import deque\nthing = deque()\ndef train(seed): return thing')

def test_a_set_in_code_without_source_is_the_same_in_every_process():
    go = "from fgvc_fast.study.names import _code; d = {}; exec('def f(x): return x in {\\'a\\',\\'b\\',\\'c\\',\\'d\\'}, (1, 2)', d); print(_code(d['f']))"
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parent.parent), 'OMP_NUM_THREADS': '1'}
    a,b = [subprocess.run([sys.executable, '-W', 'ignore', '-c', go], env={**env, 'PYTHONHASHSEED': o}, capture_output=True, text=True, check=True).stdout for o in '13']
    assert a==b and "'a'" in a

# what a disk and a hand do to the table

def test_a_full_disk_loses_no_run(tmp_path, monkeypatch):
    import fgvc_fast.study.table as table
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    calls.clear()
    study = Study('s', train, dict(lr=[.01,.1]), 1, tmp_path)
    with monkeypatch.context() as m:
        m.setattr(table.os, 'fsync', full), m.setattr(table.torch, 'save', full)
        with pytest.warns(UserWarning, match='could not be put aside'), pytest.raises(FineGrainedError, match=r"s.jsonl' cannot be written .*: make room, and study.run\(\) goes on"): study.run(progress=False)
    assert len(study.runs)==len(calls)==1 and not study.path.exists() and not [*tmp_path.glob('*.new'), *tmp_path.glob('*.trained')]
    study.run(progress=False)
    assert list(calls)==[(.01,0), (.1,0)] and len(lines(study))==3 and not Study('s', train, dict(lr=[.01,.1]), 1, tmp_path).todo()

def test_what_a_full_disk_left_is_written_though_nothing_is_missing(tmp_path, monkeypatch):
    import fgvc_fast.study.table as table
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    study = Study('s', train, dict(lr=[.01]), 1, tmp_path)
    with monkeypatch.context() as m:
        m.setattr(table.os, 'fsync', full)
        with pytest.raises(FineGrainedError, match='make room'): study.run(progress=False)
    calls.clear()
    assert len([*tmp_path.glob('*.trained')])==1 and not study.todo()
    study.run(progress=False)
    assert not calls and len(lines(study))==2 and not [*tmp_path.glob('*.trained')]

@pytest.mark.parametrize('edit,said', [(dict(valid_top1='x'), "line 3: 'valid_top1' is 'x'"), (dict(device=None), "line 3: 'device' is None"), (dict(seconds=True), "line 3: 'seconds' is True"),
    *((k, f"line 3: '{k}' is missing") for k in ('device','date','timm','valid_pictures','minutes','key','error')), (3, 'line 3: it is no row'), ('{"key": ', 'line 3: .*Unterminated|line 3: Expecting')])
def test_an_edited_row_is_said(done, tmp_path, edit, said):
    head,one,two,*rest = done.path.read_text().splitlines()
    row = json.loads(two)
    two = json.dumps(row | edit) if isinstance(edit, dict) else json.dumps({k: v for k,v in row.items() if k!=edit}) if edit in row else str(edit)
    (tmp_path/'done.jsonl').write_text('\n'.join([head, one, two, *rest]))
    with pytest.raises(FineGrainedError, match=rf"done.jsonl'.*{said}"): Study('done', train, dict(lr=[.01,.1]), 3, tmp_path)

def test_a_test_split_whose_labels_are_kept_stays_empty(birds, tmp_path, capsys):
    items = birds.items.copy()
    items.loc[items.split=='test',['label','family']] = np.nan
    data = FineGrainedData(items, birds.root, birds.levels)
    def some(seed):
        learn = fine_grained_learner(data.dls(size=32, bs=8, num_workers=0, seed=seed), 'test_resnet', pretrained=False)
        learn.fit(1, 1e-3)
        return learn
    study = Study('s', some, [{}], 2, tmp_path).run(progress=False)
    assert study.runs.error.isna().all() and 'test_top1' not in study.runs and (study.runs.test_pictures==0).all()
    assert capsys.readouterr().out.count('Not all pictures of the test split have a label')==1
    study = Study('s', some, [{}], 2, tmp_path)
    assert not study.todo() and study.summary().valid_top1.notna().all() and 'no test pictures' in study.to_markdown() and 'test top-1' not in study.to_markdown()
    assert len(study.best())==1

def test_a_value_that_changes_after_the_study_was_made(tmp_path):
    "One object never mixes runs of two programs: it says what has changed, and keeps what it has"
    more = 0
    def train(seed, k):
        if seed==1 and not more: raise KeyboardInterrupt
        return learner()
    study = Study('s', train, dict(k=[1]), seeds=2, folder=tmp_path).run(progress=False)
    was,rows = study.made_of,dict(study.rows)
    assert len(rows)==1
    more = 3
    with pytest.raises(FineGrainedError, match='more was 0 and is 3'): study.run(progress=False)
    assert study.made_of==was and study.rows==rows
