"What a learner confuses: against fastai's own counts, on plain fastai loaders, and in little memory"
import subprocess, sys
import numpy as np, pytest, torch
from fastai.data.transforms import get_image_files, parent_label
from fastai.interpret import ClassificationInterpretation, Interpretation
import fastai.vision.learner # chkstyle: ignore (draws the pictures of fastai's `plot_top_losses`)
from fastai.vision.augment import Resize
from fastai.vision.data import ImageDataLoaders
from matplotlib import pyplot as plt
import fgvc_fast.data.merge # chkstyle: ignore (data sets rename their labels)
from fgvc_fast.core import FineGrainedError
from fgvc_fast.datasets.all import toy_birds
from fgvc_fast.interpret.errors import FineGrainedInterpretation
from fgvc_fast.learner import fine_grained_learner

@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    "Untrained, on fastai's own loaders over a folder for each class"
    data,top = toy_birds(families=2, species=3, per_class=6, size=64, path=tmp_path_factory.mktemp('toys')),tmp_path_factory.mktemp('folders')
    for i,o in data.items.iterrows():
        to = top/o.label/f'{i}.jpg'
        to.parent.mkdir(exist_ok=True)
        to.write_bytes(data.path(i).read_bytes())
    torch.manual_seed(0)
    dls = ImageDataLoaders.from_path_func(top, sorted(get_image_files(top)), parent_label, valid_pct=.8, seed=0, item_tfms=Resize(64), bs=8, num_workers=0,
        device='cpu')
    learn = fine_grained_learner(dls, 'toy_resnet')
    learn.remove_cbs(learn.progress) if hasattr(learn, 'progress') else None
    return learn

def test_same_as_fastai(learn):
    ours,theirs = (o.from_learner(learn) for o in (FineGrainedInterpretation, ClassificationInterpretation))
    assert len(ours.preds)==len(learn.dls.valid_ds)>20
    np.testing.assert_array_equal(ours.confusion_matrix(), theirs.confusion_matrix())
    got = {(o.actual,o.predicted): o.times for o in ours.most_confused(2).itertuples()}
    assert got=={(a,p): n for a,p,n in theirs.most_confused(2)}
    assert list(ours.most_confused().times)==sorted(got.values(), reverse=True)+[1]*(len(ours.most_confused())-len(got))
    for a,b in zip(ours.top_losses(5), theirs.top_losses(5)): torch.testing.assert_close(a, b.as_subclass(torch.Tensor), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[[0,3]][1], theirs[[0,3]][1])

def test_pictures_of_plain_loaders(learn):
    interp = FineGrainedInterpretation.from_learner(learn)
    for show,n in ((lambda: interp.plot_top_losses(4), 4), (lambda: interp.plot_confused_pairs(2, 2), None), (lambda: learn.show_cam(n=3), 3)):
        show()
        shown = sum(len(ax.images) for ax in plt.gcf().get_axes())
        assert shown==n if n else shown>=4
        plt.close('all')

def test_nothing_confused(learn, capsys):
    t = torch.tensor([0,1,2])
    interp = FineGrainedInterpretation(learn, learn.dls.valid, t, t, torch.ones(3), torch.zeros(3))
    assert len(interp.most_confused())==len(interp.confused_pairs())==0
    interp.plot_confused_pairs()
    assert 'every answer is right' in capsys.readouterr().out
    interp.plot_confusion_matrix()
    plt.close('all')

def test_learner_as_it_was(learn):
    "But for evaluation mode, in which fastai's own `get_preds` leaves it too"
    cbs,weights = [type(o) for o in learn.cbs],{k: v.clone() for k,v in learn.model.state_dict().items()}
    FineGrainedInterpretation.from_learner(learn)
    assert cbs==[type(o) for o in learn.cbs]
    for k,v in learn.model.state_dict().items(): assert torch.equal(v, weights[k])

big = '''
import resource, torch
from types import SimpleNamespace
from fastai.vision.all import *
from fgvc_fast.interpret.errors import FineGrainedInterpretation
class Says(nn.Module):
    "Logits of 1,000 classes out of the picture's number: right three times in four"
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(1))
    def forward(self, i): return F.one_hot(torch.where(i%4==0, (i*7)%1000, i%1000), 1000).float()*3 + self.w
ds = [(torch.tensor(i), torch.tensor(i%1000)) for i in range(50_000)]
dl = DataLoader(ds, bs=250, num_workers=0)
dls = DataLoaders(dl, dl)
dls.vocab = [f'class {i}' for i in range(1000)]
learn = Learner(dls, Says(), loss_func=CrossEntropyLossFlat(), cbs=[])
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
with learn.no_bar():
    learn.get_preds(dl=DataLoader(ds[:1000], bs=250, num_workers=0)) # what a batch takes, anywhere
    before = peak()
    interp = FineGrainedInterpretation.from_learner(learn)
    n,c = len(interp.most_confused()),interp.confusion_matrix()
assert c.sum()==50_000 and c.trace()==(interp.preds==interp.targs).sum() and n>100
print(peak()-before)
'''

def test_little_memory():
    "1,000 classes and 50,000 pictures: all probabilities would be 200 MB"
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', big], capture_output=True, text=True, check=True)
    assert float(res.stdout.split()[-1]) < 100

# fastai's own classes on our loaders

@pytest.fixture(scope='module', params=(False,True), ids=('one input','with parts'))
def ours(request, tmp_path_factory):
    "A learner on loaders of a table, and its test pictures"
    data = toy_birds(families=2, species=2, per_class=8, size=32, path=tmp_path_factory.mktemp('table')).split(valid=.4)
    torch.manual_seed(0)
    learn = fine_grained_learner(data.dls(size=32, bs=4, num_workers=0, device='cpu', **dict(parts=True) if request.param else {}), 'toy_resnet')
    learn.remove_cbs(learn.progress) if hasattr(learn, 'progress') else None
    return learn,data

def loaders(learn, data):
    return dict(valid=None, test=learn.dls.test_dl(data['test'].index, with_labels=True), train=learn.dls.train.new(shuffle=False, drop_last=False))

@pytest.mark.parametrize('split', ('valid','test','train'))
@pytest.mark.parametrize('cls', (Interpretation, ClassificationInterpretation, FineGrainedInterpretation))
@pytest.mark.filterwarnings('ignore')
def test_every_method_of_fastais_interpretation(ours, cls, split, capsys):
    learn,data = ours
    dl = loaders(learn, data)[split]
    it = cls.from_learner(learn, dl=dl)
    n = len(learn.dls.valid_ds if dl is None else dl.dataset)
    dl = learn.dls.valid.new(shuffle=False, drop_last=False) if dl is None else dl
    preds,targs,losses = learn.get_preds(dl=dl, with_loss=True)
    (vals,idx),(_,_,items) = it.top_losses(3),it.top_losses(3, items=True)
    if split!='train': # those are augmented anew each time
        torch.testing.assert_close(vals.as_subclass(torch.Tensor), losses.as_subclass(torch.Tensor).topk(3)[0], atol=1e-5, rtol=1e-5)
        assert [int(o) for o in items]==[int(list(dl.dataset.items)[i]) for i in idx]
        inps,p,t,d,l = it[[0,2]]
        torch.testing.assert_close(p, preds[[0,2]], atol=1e-5, rtol=1e-5)
        assert torch.equal(t, targs[[0,2]])
    assert len(it.top_losses()[0])==n and len(it.top_losses(2, largest=False)[0])==2
    if cls is FineGrainedInterpretation: assert len(it.top_losses(n+1)[0])==len(it.top_losses(10**6, items=True)[2])==n
    for show,shown in ((lambda: it.plot_top_losses(4), 4), (lambda: it.plot_top_losses(4, largest=False), 4), (lambda: it.plot_top_losses(range(1,3)), 2),
        (lambda: it.plot_top_losses([0,2]), 2), (lambda: it.show_results([0,3]), 2), (lambda: it.show_results(torch.tensor([1])), 1),
        (lambda: it.show_results(0), 1)):
        show()
        assert sum(len(ax.images)>0 for ax in plt.gcf().get_axes())==shown
        plt.close('all')
    if cls is Interpretation: return
    c = it.confusion_matrix()
    assert c.shape==(4,4) and c.sum()==n
    if split!='train': assert (c==np.histogram2d(targs, preds.argmax(1), bins=range(5))[0]).all()
    it.plot_confusion_matrix(), it.most_confused()
    plt.close('all')
    if cls is ClassificationInterpretation:
        it.print_classification_report()
        assert all(str(o) in capsys.readouterr().out for o in [learn.dls.vocab[0]])

@pytest.mark.parametrize('which', ('valid','train','test'))
@pytest.mark.filterwarnings('ignore')
def test_show_results(ours, which):
    learn,data = ours
    dl = dict(valid=learn.dls.valid, train=learn.dls.train, test=learn.dls.test_dl(data['test'].index, with_labels=True))[which]
    if which=='train': learn.show_results(ds_idx=0, max_n=3)
    else: learn.show_results(dl=dl, max_n=3)
    assert sum(len(ax.images)>0 for ax in plt.gcf().get_axes())==3
    plt.close('all')

@pytest.mark.filterwarnings('ignore')
def test_dollars_in_names(tmp_path):
    "Two of them begin a formula, and a broken one ends whatever draws it"
    data = toy_birds(families=2, species=2, per_class=6, size=64, path=tmp_path)
    data = data.rename({o: f'$^{i}$ $x_{{{i}$ {o}' for i,o in enumerate(data.vocab)})
    learn = fine_grained_learner(data.dls(64, bs=8, num_workers=0, cache=False, device='cpu'), 'toy_resnet')
    with learn.no_bar():
        it = FineGrainedInterpretation.from_learner(learn)
        for f in (learn.dls.show_batch, lambda: learn.dls.valid.show_batch(max_n=2), lambda: learn.show_results(max_n=4), lambda: it.plot_pair(*data.vocab[:2],
            k=1), lambda: it.plot_confused_pairs(1, 1), it.plot_confusion_matrix, it.plot_per_class, lambda: it.plot_top_losses(2)):
            f()
            fig = plt.gcf()
            fig.canvas.draw()
            said = [o.get_text() for o in fig.findobj(plt.Text)]
            assert any(r'\$^' in o for o in said), said
            plt.close('all')

@pytest.mark.parametrize('f,said', [(lambda i: i.most_confused(0), 'min_val=0'), (lambda i: i.plot_per_class('x'), "most='x'"), (lambda i: i.plot_confusion_matrix(0), 'most=0'),
    (lambda i: i.plot_confused_pairs(0), 'n=0'),
    (lambda i: i.plot_confused_pairs(1, 1.5), 'k=1.5'), (lambda i: i.plot_top_losses(None), 'k=None'), (lambda i: i.plot_top_losses([]), 'k is empty'),
    (lambda i: i.plot_top_losses([999]), 'place=999'), (lambda i: i.plot_top_losses(0), 'k=0'),
    (lambda i: i.plot_top_losses(2, ncols=0), 'ncols=0'), (lambda i: i.plot_pair('Emu', i.vocab[0]), "no 'Emu'"), (lambda i: i.plot_pair(None, i.vocab[0]), "no 'None'"),
    (lambda i: type(i).from_learner(i.learn, 7), 'ds_idx=7')])
def test_wrong_arguments(learn, f, said):
    with pytest.raises(FineGrainedError) as e: f(FineGrainedInterpretation.from_learner(learn))
    assert said in str(e.value)
