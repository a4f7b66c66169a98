"Levels: against slow loops in float64, on Aircraft's published layout, exact as metrics, and in little memory at 10,000 classes"
import pickle, subprocess, sys, tracemalloc, warnings
from collections import Counter
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from matplotlib import pyplot as plt
import published_trees as trees
from fgvc_fast.core import FineGrainedError
from fgvc_fast.data.all import FineGrainedData
from fgvc_fast.datasets.all import read_aircraft, toy_birds
from fgvc_fast.interpret.errors import FineGrainedInterpretation
from fgvc_fast.interpret import levels # chkstyle: ignore (now learners can `answer_level`)
from fgvc_fast.learner import fine_grained_learner
from fgvc_fast.levels import Levels, level_metrics

def data_of(rows, levels, **kwargs):
    return FineGrainedData(pd.DataFrame(rows, columns=levels).assign(path=[f'{i}.jpg' for i in range(len(rows))]), levels=levels, **kwargs)

def random_data(seed, shape=(3,7,20)):
    "A tree whose coarse, middle and fine names are in no particular order"
    rng,levels = np.random.default_rng(seed),['order','family','label'][-len(shape):]
    ups = [np.concatenate([np.arange(c), rng.integers(c, size=f-c)]) for c,f in zip(shape, shape[1:])] # nobody is childless
    rows = []
    for i in rng.permutation(shape[-1]):
        line = [i]
        for up in reversed(ups): line.append(up[line[-1]])
        rows.append([f'{o[0]}{k}' for o,k in zip(levels, reversed(line))])
    return data_of(rows*2, levels)

def line(data, label): return data.items[data.items.label==label][data.levels].iloc[0].tolist()

# The tree

@pytest.mark.parametrize('shape', [(3,7,20), (1,4,9), (5,5,5), (2,6)])
def test_against_slow_loops(shape):
    data = random_data(len(shape), shape)
    tree,vocab,g = Levels(data),data.vocab,torch.Generator().manual_seed(0)
    probs = torch.randn(40, len(vocab), generator=g, dtype=torch.float64).mul(2).softmax(1)
    preds,targs = (torch.randint(len(vocab), (300,), generator=g) for _ in range(2))
    for k,o in enumerate(data.levels):
        assert tree.vocab[o]==sorted({line(data, v)[k] for v in vocab})
        want = np.zeros((40, len(tree.vocab[o])))
        for i in range(40):
            for j,v in enumerate(vocab): want[i,tree.vocab[o].index(line(data, v)[k])] += probs[i,j]
        np.testing.assert_allclose(tree.at(o, probs), want, rtol=1e-12)
        np.testing.assert_allclose(tree.sum_up(probs)[o].sum(1), 1, rtol=1e-12)
        np.testing.assert_allclose(tree.at(o, probs.float()), want, rtol=1e-5)
    meets = []
    for p,t in zip(preds, targs):
        a,b = line(data, vocab[p]),line(data, vocab[t])
        meets.append(next((o for o,x,y in zip(reversed(data.levels), reversed(a), reversed(b)) if x==y), None))
    assert tree.meet(preds, targs)==meets
    height = [len(data.levels) if o is None else len(data.levels)-1-data.levels.index(o) for o in meets]
    assert tree.severity(preds, targs).tolist()==height
    assert tree.mistakes(preds, targs).tolist()==[o for o in height if o]
    for k,v in enumerate(tree.accuracy(preds, targs).values()):
        assert v==pytest.approx(np.mean([line(data, vocab[p])[k]==line(data, vocab[t])[k] for p,t in zip(preds, targs)]))

def test_best_and_top_down():
    data = random_data(5)
    tree = Levels(data)
    probs = torch.randn(200, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)
    p,which = tree.best(probs)
    down,differ = tree.top_down(probs),0
    for i in range(200):
        inside = range(20)
        for k,o in enumerate(tree.levels):
            total = {n: sum(probs[i,j].item() for j in range(20) if tree.up[o][j]==n) for n in range(len(tree.vocab[o]))}
            assert which[i,k]==max(total, key=total.get) and p[i,k].item()==pytest.approx(max(total.values()))
            possible = {n: total[n] for n in {tree.up[o][j].item() for j in inside}}
            assert down[i,k]==max(possible, key=possible.get)
            inside = [j for j in inside if tree.up[o][j]==down[i,k]]
        differ += (down[i]!=which[i]).any().item()
    assert 0<differ<200 # each level for itself is another answer, sometimes

def test_published_order_stays():
    "A categorical's order is that of the model's outputs, and of a model trained at the level"
    it = random_data(0).items
    rng = np.random.default_rng(0)
    for o in ('family','label'): it[o] = pd.Categorical(it[o], rng.permutation(it[o].unique()))
    data = FineGrainedData(it, levels=['order','family','label'])
    tree = Levels(data)
    for o in data.levels: assert tree.vocab[o]==data.at_level(o).vocab
    for i,v in enumerate(data.vocab): assert [tree.vocab[o][tree.up[o][i]] for o in tree.levels]==line(data, v)

def test_stays_on_its_device():
    "The tree lies on the CPU and follows whatever it is asked about"
    tree,probs,i = Levels(random_data(0)),torch.empty(6, 20, device='meta'),torch.empty(6, dtype=torch.long, device='meta')
    got = [*tree.sum_up(probs).values(), *tree.best(probs), tree.top_down(probs), tree.severity(i, i), tree.right(i, i, 'order')]
    assert {o.device.type for o in got}=={'meta'} and [tuple(o.shape) for o in got]==[(6,3), (6,7), (6,20), *[(6,3)]*3, (6,), (6,)]

@pytest.mark.parametrize('rows,levels,why', [
    ([('A','x'), ('B','x'), ('B','y')], ['family','label'], "The label 'x' stands under more than one family: A, B.*tell them apart"),
    ([('P','A','x'), ('Q','A','y')], ['order','family','label'], "The family 'A' stands under more than one order: P, Q"),
    ([('x',), ('y',)], ['label'], 'has one level only')])
def test_no_tree(rows, levels, why):
    with pytest.raises(FineGrainedError, match=why): Levels(data_of(rows, levels))

# FGVC-Aircraft

variants = {'737-700': ('Boeing 737','Boeing'), '737-800': ('Boeing 737','Boeing'), '747-400': ('Boeing 747','Boeing'), 'A320': ('A320','Airbus'), 'A340-300': ('A340','Airbus')}

@pytest.fixture(scope='module')
def aircraft(tmp_path_factory):
    root = tmp_path_factory.mktemp('aircraft')
    for k,(level,plural) in enumerate(dict(variant='variants', family='families', manufacturer='manufacturers').items()):
        of = [(v, *o)[k] for v,o in variants.items()]
        trees.lines(root/'data'/f'{plural}.txt', dict.fromkeys(of))
        for p,part in enumerate(('train','val','test')): trees.lines(root/'data'/f'images_{level}_{part}.txt', [(f'{p}{i:06}', o) for i,o in enumerate(of)])
    return read_aircraft(root)

@pytest.mark.parametrize('said,true,severity,meet', [('737-700','737-700',0,'label'), ('737-700','737-800',1,'family'), ('737-700','747-400',2,'manufacturer'), ('A340-300','A320',2,'manufacturer'), ('747-400','A320',3,None)])
def test_aircraft(aircraft, said, true, severity, meet):
    tree = Levels(aircraft)
    p,t = (torch.tensor([aircraft.vocab.index(o)]) for o in (said, true))
    for a,b in ((p, t), (t, p)): assert (tree.severity(a, b).item(), tree.meet(a, b))==(severity, [meet])

def test_aircraft_sums(aircraft):
    tree = Levels(aircraft)
    assert repr(tree)=='manufacturer (2) → family (4) → label (5)' and tree.vocab['family']==['Boeing 737','Boeing 747','A320','A340']
    up = tree.sum_up(torch.tensor([[.3, .25, .05, .02, .38]]))
    torch.testing.assert_close(up['family'], torch.tensor([[.55, .05, .02, .38]]))
    torch.testing.assert_close(up['manufacturer'], torch.tensor([[.6, .4]]))

def test_any_published_size(tmp_path):
    trees.aircraft(tmp_path, 100)
    tree = Levels(read_aircraft(tmp_path))
    assert repr(tree)=='manufacturer (25) → family (50) → label (100)'
    i,j = torch.arange(100)[:,None].expand(100,100).flatten(),torch.arange(100).repeat(100)
    v = [int(o.split('00-')[0]) for o in tree.vocab['label']] # its number tells its family and manufacturer
    want = [0 if a==b else 1 if v[a]//2==v[b]//2 else 2 if v[a]//4==v[b]//4 else 3 for a in range(100) for b in range(100)]
    assert tree.severity(i, j).tolist()==want

# In a learner

@pytest.fixture(scope='module')
def birds(tmp_path_factory): return toy_birds(families=3, species=3, per_class=20, size=64, path=tmp_path_factory.mktemp('birds'))

@pytest.fixture(scope='module')
def learn(birds):
    torch.manual_seed(0)
    learn = fine_grained_learner(birds.dls(size=64, bs=4, num_workers=0, seed=0), 'toy_resnet')
    with learn.no_bar(), learn.no_logging(): learn.fit_phases(2)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__=='ProgressCallback'])
    return learn

class Scores(torch.nn.Module):
    "Scores looked up by the picture's number"
    def __init__(self, table):
        super().__init__()
        self.table,self.w = table,torch.nn.Parameter(torch.zeros(1))
    def forward(self, i): return self.table[i]+self.w

def test_metrics_are_exact():
    "10 pictures in batches of 4, 4 and 2, whose mistakes fall unevenly"
    data = random_data(2)
    tree,table = Levels(data),torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    targs = table.argmax(1)
    wrong = torch.tensor([0,8,9])
    targs[wrong] = (targs[wrong]+torch.tensor([3,7,11]))%20
    dl = DataLoader([(torch.tensor(i), t) for i,t in enumerate(targs)], bs=4, num_workers=0)
    learn = Learner(DataLoaders(dl, dl), Scores(table), loss_func=CrossEntropyLossFlat(), metrics=pickle.loads(pickle.dumps(level_metrics(data))))
    with learn.no_bar(): got = learn.validate()
    assert [o.name for o in learn.metrics]==['order_accuracy','family_accuracy','mistake_severity']
    acc = tree.accuracy(table.argmax(1), targs)
    assert list(got)[1:]==pytest.approx([acc['order'], acc['family'], sum(1-o for o in acc.values())*10/3]) # 10 pictures, 3 mistakes
    right = Learner(DataLoaders(dl, dl), Scores(torch.nn.functional.one_hot(targs, 20).float()), loss_func=CrossEntropyLossFlat(), metrics=level_metrics(data))
    with right.no_bar(): got = list(right.validate())
    assert got[1:3]==[1,1] and np.isnan(got[3]) # no mistake, no severity

def test_test_by_level(birds, learn):
    "All figures against all scores, which `get_preds` keeps"
    res = learn.test().iloc[0]
    preds,targs = learn.get_preds(dl=learn.dls.test_dl(birds['test'].index, with_labels=True))
    said,of = preds.argmax(1),dict(zip(birds.items.label, birds.items.family))
    vocab = list(learn.dls.vocab)
    fam = np.array([of[vocab[a]]==of[vocab[b]] for a,b in zip(said, targs)])
    bad = (said!=targs).numpy()
    assert res.family_accuracy==pytest.approx(fam.mean()) and res.mistake_severity==pytest.approx(np.where(fam, 1, 2)[bad].mean())
    assert res.top1==pytest.approx(1-bad.mean()) and res.pictures==len(targs)==len(birds['test'])
    assert res.top5==pytest.approx(np.mean([t in p.topk(5).indices for p,t in zip(preds, targs)]))
    assert res.per_class==pytest.approx(np.mean([1-bad[targs.numpy()==c].mean() for c in range(9)]))

def test_test_without_a_tree(birds):
    "Whoever has one level sees no more than before; a homonym is told, and the test goes on"
    items = birds.items.assign(family=birds.items.family.where(birds.items.index!=0, 'elsewhere'))
    for data,warns in ((birds.at_level('family'), False), (FineGrainedData(items, birds.root, birds.levels), True)):
        learn = fine_grained_learner(data.dls(size=64, bs=8, num_workers=0), 'toy_resnet')
        with learn.no_bar(), warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter('always')
            res = learn.test()
        assert res.columns.tolist()==['top1','top5','per_class','pictures']
        assert any('stands under more than one family' in str(o.message) for o in seen)==warns

@pytest.mark.parametrize('confidence', [.2,.5,.9,1.])
def test_answer_level(birds, learn, confidence):
    rows = birds['test'].index[::3]
    res = learn.answer_level(rows, confidence)
    preds,_ = learn.get_preds(dl=learn.dls.test_dl(rows))
    of,vocab = dict(zip(birds.items.label, birds.items.family)),list(learn.dls.vocab)
    assert res.index.tolist()==rows.tolist()
    for p,o in zip(preds.tolist(), res.itertuples()):
        fam = {f: sum(x for x,v in zip(p, vocab) if of[v]==f) for f in of.values()}
        best,top = vocab[int(np.argmax(p))],max(fam, key=fam.get)
        want = (best,'label') if max(p)>=confidence else (top,'family') if fam[top]>=confidence else (None,None)
        assert (o.answer, o.level)==want and o.label==best and o.label_confidence==pytest.approx(max(p), rel=1e-4)
        assert o.confidence==pytest.approx(max(p) if o.level=='label' else fam[top], rel=1e-4)

def test_answer_level_takes_what_cam_takes(birds, learn):
    want = learn.answer_level([3]).iloc[0]
    pixels = np.asarray(birds.picture(3))
    as_pixels = pixels,torch.from_numpy(pixels),birds.path(3).read_bytes()
    for o in (3, np.int64(3), birds.path(3), str(birds.path(3)), birds.picture(3), [birds.path(3)], *as_pixels):
        got = learn.answer_level(o)
        assert len(got)==1 and got.label_confidence.item()==pytest.approx(want.label_confidence, rel=1e-4)
    for c in (0, -1, 1.5, 90):
        with pytest.raises(FineGrainedError, match=f'confidence={c} is no probability'): learn.answer_level(3, c)
        with pytest.raises(FineGrainedError, match=f'confidence={c} is no probability'): FineGrainedInterpretation.from_learner(learn).level_coverage([.9, c])

def test_coverage_of_every_level(learn):
    "Shares add up, and what is asked to be surer is answered less"
    df = FineGrainedInterpretation.from_learner(learn).level_coverage([.3,.6,.9,1.])
    np.testing.assert_allclose(df.groupby('confidence').share.sum(), 1, rtol=1e-6)
    for o,up in (('label',False), ('unsure',True)):
        s = df[df.level==o].share.to_numpy()
        assert (np.diff(s)>=0 if up else np.diff(s)<=0).all()
    FineGrainedInterpretation.from_learner(learn).plot_level_coverage([.3,.6,1.])
    assert len(plt.gca().get_xticks())==3
    plt.close('all')

# At scale

def big(classes=10_000, pictures=50_000):
    "Answers for many classes: three in four right, the others in the same genus of ten, or anywhere"
    g = torch.Generator().manual_seed(0)
    targs = torch.randint(classes, (pictures,), generator=g)
    near,far,which = targs//10*10+torch.randint(10, (pictures,), generator=g),torch.randint(classes, (pictures,), generator=g),torch.rand(pictures, generator=g)
    preds = torch.where(which<.75, targs, torch.where(which<.9, near, far))
    vocab = [f's{i:05}' for i in range(classes)]
    data = data_of([(f'f{i//100:03}', f'g{i//10:04}', v) for i,v in enumerate(vocab)], ['family','genus','label'], valid=0)
    learn = SimpleNamespace(dls=SimpleNamespace(vocab=vocab, data=data))
    return FineGrainedInterpretation(learn, None, preds, targs, torch.ones(pictures), torch.zeros(pictures)),vocab

def counted(interp):
    "Pairs that occur, by a loop"
    res = {}
    for p,t in zip(interp.preds.tolist(), interp.targs.tolist()): res[t,p] = res.get((t,p), 0)+1
    return res

def test_sparse_counts_are_right():
    interp,vocab = big()
    pairs = counted(interp)
    off = {k: n for k,n in pairs.items() if k[0]!=k[1]}
    seen = pd.Series(interp.targs.tolist()).value_counts()
    res = interp.most_confused()
    number = {v: i for i,v in enumerate(vocab)}
    assert len(res)==len(off) and {(number[o.actual],number[o.predicted]): o.times for o in res.itertuples()}==off
    for o in res.iloc[::97].itertuples():
        i,j = number[o.actual],number[o.predicted]
        assert o.of==seen[i] and o.meet==('genus' if i//10==j//10 else 'family' if i//100==j//100 else None)
    assert res.meet.isna().any() and (res.meet=='genus').any()
    assert res.times.is_monotonic_decreasing and len(interp.most_confused(2))==sum(n>1 for n in off.values())
    both = {}
    for (i,j),n in off.items(): both[min(i,j),max(i,j)] = both.get((min(i,j),max(i,j)), 0)+n
    assert {(number[o.one],number[o.other]): o.times for o in interp.confused_pairs().itertuples()}==both
    per = interp.per_class().set_index('label')
    assert len(per)==len(set(interp.targs.tolist())|set(interp.preds.tolist()))
    for v in per.index[::501]:
        i = number[v]
        assert per.pictures[v]==seen.get(i, 0) and per.recall[v]==pytest.approx(pairs.get((i,i), 0)/seen[i] if i in seen else np.nan, nan_ok=True)

def test_confused_most_are_drawn():
    "The counts in the picture are those of the loop, between the classes of the pairs with the most mistakes"
    interp,vocab = big(300, 3000)
    pairs,both = counted(interp),Counter()
    for (i,j),n in pairs.items():
        if i!=j: both[min(i,j),max(i,j)] += n
    interp.plot_confusion_matrix(most=12)
    ax = plt.gca()
    names = [o.get_text() for o in ax.get_xticklabels()]
    assert len(names)==12 and names==[o.get_text() for o in ax.get_yticklabels()]
    drawn = {(int(o.get_position()[1]),int(o.get_position()[0])): int(o.get_text()) for o in ax.texts}
    plt.close('all')
    at = [vocab.index(o) for o in names]
    left = max(n for p,n in both.items() if not {*p}<={*at})
    assert all(max(n for p,n in both.items() if i in p)>=left for i in at) # no pair left out is confused more often
    assert {i for p,n in both.items() if n>left for i in p}<={*at}
    assert drawn=={(a,b): pairs[i,j] for a,i in enumerate(at) for b,j in enumerate(at) if (i,j) in pairs}

def test_counting_in_little_memory():
    "10,000 classes: a table of all pairs would be 800 MB"
    interp,_ = big()
    tracemalloc.start()
    interp.most_confused(), interp.confused_pairs(), interp.per_class(), interp.plot_confusion_matrix(), plt.close('all')
    _,peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6

scale = '''
import resource, torch
from types import SimpleNamespace
import pandas as pd
from fastai.vision.all import *
from fgvc_fast.data.all import FineGrainedData
from fgvc_fast.interpret.all import FineGrainedInterpretation
from fgvc_fast.learner import fine_grained_learner
n,C = 20_000,5_000
class Says(nn.Module):
    "Logits out of the picture's number: right three times in four"
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(1))
    def forward(self, i): return F.one_hot(torch.where(i%4==0, (i+1)%C, i%C), C).float()*3 + self.w
v = [f's{i:04}' for i in range(C)]
it = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(n)], split='test', label=[v[i%C] for i in range(n)], family=[f'f{i%C//10:03}' for i in range(n)]))
ds = [(torch.tensor(i), torch.tensor(i%C)) for i in range(n)]
def loader(rows): return DataLoader([ds[i] for i in rows], bs=100, num_workers=0)
dls = DataLoaders(loader(range(1000)), loader(range(1000)))
dls.vocab,dls.data = v,FineGrainedData(it, levels=['family','label'], valid=0)
dls.test_dl = lambda rows, with_labels=False, **kw: loader(rows)
learn = Learner(dls, Says(), loss_func=CrossEntropyLossFlat(), cbs=[])
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
with learn.no_bar():
    FineGrainedInterpretation.from_learner(learn) # what a batch takes, anywhere
    before = peak()
    res = learn.test().iloc[0]
    learn.answer_level(range(n), .9)
assert (res.top1, res.per_class, res.pictures)==(.75, .75, n), res
want = sum(i%C//10==(i+1)%C//10 for i in range(0, n, 4))/(n/4)
assert abs(res.family_accuracy-(.75+.25*want))<1e-6 and abs(res.mistake_severity-(2-want))<1e-6, res
print(peak()-before)
'''

def test_the_test_keeps_no_scores():
    "20,000 pictures of 5,000 classes: all scores would be 400 MB"
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', scale], capture_output=True, text=True)
    assert res.returncode==0, res.stderr[-3000:]
    assert float(res.stdout.split()[-1]) < 60

def test_the_head_of_levels_says_what_is_wrong_with_them(tmp_path):
    data = toy_birds(tmp_path, families=2, species=2, per_class=6, size=32)
    def head(**cols): return fine_grained_learner(FineGrainedData(data.items.assign(**cols), data.root, data.levels).dls(size=32, bs=4, num_workers=0), 'toy_resnet', head='levels')
    with pytest.raises(FineGrainedError, match='The label Never of .* has no picture'): head(label=pd.Categorical(data.items.label, ['Never',*data.vocab]))
    with pytest.raises(FineGrainedError, match='stands under more than one family'): head(family=['Other', *data.items.family[1:]])
