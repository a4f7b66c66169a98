"Two processes on one machine (gloo): what they read, compute, stop at and write is what one process would"
import gc, multiprocessing, os, pickle, socket, traceback, weakref
import numpy as np, pytest, torch
from fastai.basics import Callback, CancelStepException, accuracy, set_seed
from fastai.metrics import Dice, F1Score
from fgvc_fast.augment.mix import Mix
from fgvc_fast.bundle import load_bundle
from fgvc_fast.core import FineGrainedError
from fgvc_fast.datasets.all import fine_grained_data
from fgvc_fast.data.loader import shard_indices
from fgvc_fast.learner import fine_grained_learner
from fgvc_fast.robust.train import AdversarialTraining
from fgvc_fast.save import save_bundle # chkstyle: ignore (now learners have it)
from fgvc_fast.train.all import *
from fgvc_fast.track import CSVLog, tensorboard_log, wandb_log
from functools import partial

pytest.importorskip('accelerate')
if not torch.distributed.is_gloo_available(): pytest.skip('torch without gloo', allow_module_level=True)
pytestmark = pytest.mark.usefixtures('one_thread')

def _child(f, rank, port, out):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    try: res = f()
    except BaseException as e: res = f'{type(e).__name__}: {e}\n{traceback.format_exc()}'
    out.write_bytes(pickle.dumps(res))
    os._exit(0) # whatever waits for the other process is left to itself

def two(f, folder, timeout=900):
    "What `f()` returns in each of two processes; an exception as a string"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    ctx,outs = multiprocessing.get_context('fork'),[folder/f'{r}.pkl' for r in range(2)]
    ps = [ctx.Process(target=_child, args=(f, r, port, outs[r])) for r in range(2)]
    for p in ps: p.start()
    for p in ps: p.join(timeout)
    late = [p for p in ps if p.is_alive()]
    for p in late: p.kill()
    assert not late, 'a process waits for the other'
    return [pickle.loads(o.read_bytes()) for o in outs]

def both(f, folder):
    "As `two`, of runs that should not fail"
    res = two(f, folder)
    for r,o in enumerate(res): assert not isinstance(o, str), f'process {r}: {o}'
    return res

@pytest.fixture(scope='module')
def birds():
    "Four species; of each 12 pictures to train with; 13 to validate in all, so that halves are not equal"
    data = fine_grained_data('toy_birds')
    data = data.subset(list(data.vocab[:4]))
    nth = data.items.groupby(['split','label'], observed=True).cumcount()
    data = data.drop(data.items.index[nth >= data.items.split.map(dict(train=12, valid=4, test=1))])
    return data.drop(data['valid'].index[-3:])

def learner(data, bs, arch='test_vit', seed=0, metrics=accuracy, dls_seed=0, **kwargs):
    set_seed(seed)
    opts = dict(pretrained=False) if arch=='test_vit' else {}
    learn = fine_grained_learner(data.dls(size=32, bs=bs, num_workers=0, seed=dls_seed, cache=False, device='cpu', **kwargs.pop('dls', {})), arch, metrics=metrics,
        **opts, **kwargs)
    learn.remove_cb(learn.progress)
    return learn

def plain_head(nf, n_out, drop): return torch.nn.Linear(nf, n_out) # nothing in it looks at the batch

def state(learn): return {k: v.detach().clone() for k,v in learn.model.state_dict().items()}
def equal(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def close(a, b, tol=1e-4): return all(torch.allclose(a[k].float(), b[k].float(), atol=tol) for k in a)

def run(learn, *args, ctx={}, **kwargs):
    "Phases in this process, of one or of many; the log without seconds"
    with learn.no_logging(), learn.distrib_ctx(cpu=True, **ctx): learn.fit_phases(*args, **kwargs)
    return learn.phase_log.drop(columns='seconds')

class Seen(Callback):
    "Labels and pictures of each batch trained with, and how many were validated"
    order = 12
    def before_fit(self): self.read,self.valid = [],[]
    def before_epoch(self): self.read.append([]),self.valid.append(0)
    def before_batch(self):
        if self.training: self.read[-1].append((self.yb[0].tolist(), self.xb[0].mean((1,2,3)).tolist()))
        else: self.valid[-1] += len(self.yb[0])

@pytest.mark.parametrize('n,bs,ranks', [(1,4,2),(7,4,2),(48,8,2),(50,8,3),(3,2,8),(64,8,4)])
def test_shares(n, bs, ranks):
    "Together all of an epoch, once; padded: equally many, at most one a process again"
    shares = [shard_indices(n, bs, r, ranks, pad=False) for r in range(ranks)]
    assert sorted(np.concatenate(shares).tolist())==list(range(n))
    padded = [shard_indices(n, bs, r, ranks) for r in range(ranks)]
    assert len({len(o) for o in padded})==1
    assert sorted((np.concatenate(padded)).tolist())==list(range(-(-n//ranks)*ranks))
    for k in range(n//(bs*ranks)): # each batch of all is a batch of one process
        assert np.concatenate([o[k*bs:(k+1)*bs] for o in padded]).tolist()==list(range(k*bs*ranks, (k+1)*bs*ranks))

def test_as_one_process(birds, tmp_path):
    "The same pictures, augmentation, losses, metrics and weights as one process with batches twice as large; each picture once"
    plan = [Phase('head', 1, lr=1e-2), Phase('all', 2, lr=3e-3)]
    def once(bs):
        learn,seen = learner(birds, bs, head=plain_head, metrics=[accuracy, F1Score(average='macro')]),Seen()
        log = run(learn, plan, cbs=seen)
        return log,state(learn),seen.read,seen.valid,learn.recorder.losses
    (log,w,train,valid,losses),(log1,w1,train1,valid1,losses1) = both(lambda: once(6), tmp_path)
    ref,ref_w,ref_train,_,ref_losses = once(12)
    assert log.equals(log1) and equal(w, w1)
    for a,b,c in zip(train, train1, ref_train, strict=True):
        for x,y,z in zip(a, b, c, strict=True):
            assert x[0]+y[0]==z[0]
            np.testing.assert_allclose(x[1]+y[1], z[1], rtol=1e-6)
    assert valid==[7,7] and valid1==[6,6]
    np.testing.assert_allclose(log.to_numpy(dtype=float), ref.to_numpy(dtype=float), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.array(losses, dtype=float), np.array(ref_losses, dtype=float), rtol=1e-4)
    assert close(w, ref_w)

def test_attacked_as_one_process(birds, tmp_path):
    "Each process attacks its own share, and both together learn what one would"
    def once(bs):
        learn = learner(birds, bs, head=plain_head)
        log = run(learn, [Phase('all', 2, lr=3e-3)], cbs=AdversarialTraining(4/255, attack='bim', steps=2))
        return log,state(learn)
    (log,w),(log1,w1) = both(lambda: once(6), tmp_path)
    ref,ref_w = once(12)
    assert log.equals(log1) and equal(w, w1) and (ref.adversarial>0).all()
    np.testing.assert_allclose(log.to_numpy(dtype=float), ref.to_numpy(dtype=float), rtol=1e-3, atol=1e-4)
    assert close(w, ref_w, 1e-3)

def losses_of_their_own(): return [AddLoss('center', .01), Mix(mixup=.4, cutmix=1., p=.5), EMA(.9), L2SP(.01, .01), Accumulate(2)]

def test_all_that_trains(birds, tmp_path):
    "Batch norm, re-initialised stages, growing pictures, stored features, mixing, losses with parameters, averages: weights and statistics are equal everywhere"
    few = birds.subset(per_class=6)
    def once():
        res = {}
        for name,opts,plan,cbs in [
            ('reinit', dict(), [Phase('head', 1, cached_views=2), Phase('all', 1, reinit=1), Phase('all', 1, size=40, freeze_bn=True)], lambda: CSVLog(tmp_path/'log.csv')),
            ('own', dict(branch=-2, pool='gem'), [Phase('head', 1), Phase('all', 2, lr=3e-3)], losses_of_their_own),
            ('alone', dict(pool='gem'), [Phase('all', 1)], lambda: AddLoss('center', .01, alone=True)),
            ('adversarial', dict(pool='gem'), [Phase('all', 1)], lambda: AdversarialTraining(2/255)),
            ('parts', dict(pool='parts', zoom=True, amp='bf16'), [Phase('all', 1)], lambda: tensorboard_log(tmp_path/'runs'))]:
            learn = learner(few, 6, 'toy_resnet', seed=torch.initial_seed()%7 + int(os.environ['RANK']), dls_seed=None, **opts) # each begins with a head of its own
            first = state(learn)
            log = run(learn, plan, cbs=cbs())
            assert (not isinstance(learn.model, torch.nn.parallel.DistributedDataParallel)
                and not any(isinstance(m, torch.nn.SyncBatchNorm) for m in learn.model.modules()))
            assert all(type(p) is torch.nn.Parameter and p.requires_grad for p in learn.model.parameters())
            res[name] = first,state(learn),log,{type(o).__name__ for o in learn.cbs}
        return res
    a,b = both(once, tmp_path)
    for k in a:
        (start,w,log,cbs),(start1,w1,log1,_) = a[k],b[k]
        assert not equal(start, start1), k
        assert equal(w, w1) and log.equals(log1), k
        assert any('running_mean' in o and not torch.equal(w[o], start[o]) for o in w), k
        assert np.isfinite(log.to_numpy(dtype=float)).all(), k
        assert not {'Parallel','SyncBuffers'} & cbs, k
    assert len((tmp_path/'log.csv').read_text().splitlines())==4 # a head and three epochs, once
    assert len(list((tmp_path/'runs').iterdir()))==1

class PressStop(Callback):
    "The first process is stopped in the `n`th training batch"
    order,run_valid = 200,False
    def __init__(self, n): self.left = n
    def after_batch(self):
        self.left -= self.training
        if self.left==0 and os.environ['RANK']=='0': raise KeyboardInterrupt

def test_stops_and_goes_on(birds, tmp_path):
    "One process is stopped, so all end; started again they go on from the folder to the same curve and weights; one of them writes"
    plan,mix = [Phase('head', 1, cached_views=2), Phase('all', 2, lr=3e-3)],partial(Mix, mixup=.4)
    def learn(): return learner(birds, 6, seed=int(os.environ.get('RANK', 0)))
    def stopped(): run(learn(), plan[1:], cbs=[mix(), PressStop(6)], folder=tmp_path/'run')
    a,b = two(stopped, tmp_path)
    assert a.startswith('KeyboardInterrupt') and not b.startswith('KeyboardInterrupt') and 'Error' in b.splitlines()[0], b
    assert sorted(o.name.split('-')[0] for o in (tmp_path/'run').iterdir())==['phase_log.csv','snapshot','snapshot.json']
    def go_on():
        o = learn()
        return run(o, resume=tmp_path/'run', cbs=mix()),state(o),[float(l) for l in o.recorder.losses]
    def whole():
        o = learn()
        return run(o, plan[1:], cbs=mix()),state(o),[float(l) for l in o.recorder.losses]
    with pytest.raises(FineGrainedError, match='another number of processes'): learn().fit_phases(resume=tmp_path/'run')
    (log,w,losses),(log1,w1,_) = both(go_on, tmp_path)
    (ref,ref_w,ref_losses),_ = both(whole, tmp_path)
    assert log.equals(log1) and equal(w, w1)
    assert log.equals(ref) and equal(w, ref_w) and losses==ref_losses

def test_patience_and_what_is_written(birds, tmp_path):
    "All stop in the same epoch, with the weights of the same; afterwards, and inside, each predicts by itself and one writes the bundle"
    def once():
        learn = learner(birds, 6)
        with learn.no_logging(), learn.distrib_ctx(cpu=True):
            learn.fit_phases([Phase('all', 8, lr=.3, patience=1)])
            inside = learn.test().top1.item()
            outside = learn.validate()[0]
            preds = learn.get_preds()[0]
        after = learn.validate()[0]
        learn.save_bundle(tmp_path/'bundle')
        torch.distributed.barrier()
        answers = load_bundle(tmp_path/'bundle').predict([birds.path(i) for i in birds['valid'].index[:3]])
        return learn.phase_log.drop(columns='seconds'),state(learn),inside,outside,len(preds),after,learn.test().top1.item(),answers
    (log,w,*res,answers),(log1,w1,*res1,answers1) = both(once, tmp_path)
    assert log.equals(log1) and equal(w, w1) and res==res1 and answers.equals(answers1)
    assert len(log)<8 and log.valid_loss.idxmin()==len(log)-2
    inside,outside,n,after,test = res
    assert inside==test and n==13 and outside==after
    assert outside==pytest.approx(log.valid_loss.min(), rel=1e-4)

def test_balanced_batches(birds, tmp_path):
    "`balanced` and `per_class`: classes come equally often, and pictures of one follow one another in one process; without a seed too"
    def once():
        learn,seen = learner(birds, 6, dls_seed=None, dls=dict(balanced=True, per_class=3)),Seen()
        torch.manual_seed(int(os.environ['RANK']))
        learn.dls.train.rng.seed(int(os.environ['RANK'])) # as if each had drawn its own
        wrapped = []
        class Look(Callback):
            order,run_valid = 12,False
            def before_batch(self): wrapped[:] = [weakref.ref(self.learn.model)]
        gc.disable()
        run(learn, 2, cbs=[seen,Look()])
        assert wrapped[0]() is None # else it would go on averaging gradients, in whatever step
        return seen.read
    for a,b in zip(*both(once, tmp_path)):
        ys = [o[0] for o in a+b]
        assert all(y[i:i+3].count(y[i])==3 for y in ys for i in range(0, len(y), 3))
        assert np.bincount(sum(ys, [])).tolist()==[12]*4
        assert len(set(sum([o[1] for o in a+b], [])))==48 # every picture once

def test_refused(birds, tmp_path):
    "What cannot be right in several processes is said in one line, in each of them"
    def once():
        said = []
        def note(f, learn=None, **kwargs):
            learn = learn or learner(birds, 6, **kwargs)
            try:
                with learn.no_logging(), learn.distrib_ctx(cpu=True): f(learn)
            except FineGrainedError as e: said.append(str(e))
            assert not hasattr(learn, 'parallel')
        note(lambda o: o.lr_find(show_plot=False))
        note(lambda o: o.lr_find_phase(Phase('head', 1), show_plot=False))
        note(lambda o: o.fit_phases(resume=True))
        note(lambda o: o.fit(1), metrics=Dice())
        big = learner(birds, 40)
        note(lambda o: o.fit_phases(1), big)
        return said
    a,b = both(once, tmp_path)
    assert a==b and len(a)==5
    for o,want in zip(a, ['outside of `distrib_ctx`']*2 + ["fit_phases(resume='run')", 'metric dice', '48 pictures do not fill one batch of 40 in each of 2 processes']): assert want in o

def test_wandb(birds, tmp_path, monkeypatch):
    "W&B is begun and written to by the first process alone"
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    def once():
        import wandb
        first = os.environ['RANK']=='0'
        if first: wandb.init(project='birds', mode='offline', dir=tmp_path)
        learn = learner(birds, 6)
        run(learn, 1, cbs=wandb_log())
        return dict(wandb.run.summary)['step'] if first else wandb.run
    assert both(once, tmp_path)==[4,None]

class Poison(Callback):
    "One value that is none, in the `n`th training batch of the second process alone"
    order,run_valid = 60,False
    def __init__(self, n): self.left = n
    def before_batch(self):
        self.left -= 1
        if self.left==0 and os.environ['RANK']=='1': self.spoil()
    def spoil(self): self.learn.xb = (self.xb[0].index_fill(0, torch.tensor([0]), float('nan')),)

class PoisonedStep(Poison):
    "What is stepped on is NaN, and all that is shown is well: float16 would skip the step"
    def spoil(self): self.now = True
    def after_loss(self):
        if self.__dict__.pop('now', False): self.learn.loss_grad = self.loss_grad*float('nan')
    def before_step(self):
        if any(p.grad is not None and p.grad.isnan().any() for p in self.model.parameters()): raise CancelStepException

@pytest.mark.parametrize('poison', [Poison,PoisonedStep])
@pytest.mark.parametrize('n', [5,8]) # within an epoch; its last batch
def test_nan_in_one_process(birds, tmp_path, n, poison):
    "What one process met stops both, with the weights of the last good epoch in each, and leaves a learner that trains"
    def once():
        learn,kept = learner(birds, 6, head=plain_head),[]
        class Keep(Callback):
            order = 200
            def after_epoch(self): kept.append(state(self.learn))
        with learn.no_logging(), learn.distrib_ctx(cpu=True):
            try: learn.fit(3, 1e-3, cbs=[poison(n),Keep()])
            except FineGrainedError as e: said = str(e)
            else: said = 'nothing'
            w = state(learn)
            learn.fit(1, 1e-3)
        return said,kept,w,learn.recorder.values[-1][0]
    (said,kept,w,loss),(said1,_,w1,_) = both(once, tmp_path)
    assert said.startswith('Stopped') and said1.startswith('Stopped') and np.isfinite(loss)
    assert len(kept)==1 and equal(w, w1) and equal(w, {k.removeprefix('module.'): v for k,v in kept[0].items()})
