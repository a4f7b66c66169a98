"Heads against closed forms and plain loops: cosines, scores along a tree, the loss of a group's probability"
import copy, math
from functools import partial
import pytest, torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from fgvc_fast.core import FineGrainedError
from fgvc_fast.datasets.all import fine_grained_data
from fgvc_fast.levels import Levels
from fgvc_fast.models.head import CosineHead, FastaiHead, LevelHead, heads
from fgvc_fast.models.model import fine_grained_model

tree = [[0,0,0,0,1,1,1], [2,2,0,0,1,1,3]] # order, family of seven labels
every = {k: partial(v, parents=tree) if v is LevelHead else v for k,v in heads.items()}

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

# All heads

@pytest.mark.parametrize('name', every)
def test_dropout_acts_in_training_only(name):
    head,x = every[name](32, 7, .5),torch.randn(64, 32)
    assert not torch.equal(head(x), head(x))
    head.eval()
    kept = copy.deepcopy(head)
    off = [m for m in kept.modules() if isinstance(m, torch.nn.Dropout)]
    assert off
    for m in off: m.p = 0.
    torch.testing.assert_close(head(x), kept.train(False)(x), rtol=0, atol=0)
    plain = every[name](32, 7, 0.)
    assert all(m.p==0 for m in plain.modules() if isinstance(m, torch.nn.Dropout))
    torch.testing.assert_close(plain(x), plain(x), rtol=0, atol=0)

@pytest.mark.parametrize('name', every)
def test_autocast_close_to_single_precision(name):
    head,x = every[name](32, 7, 0.),torch.randn(16, 32)
    with torch.no_grad():
        ref = head(x)
        with torch.autocast('cpu', torch.bfloat16): got = head(x)
    torch.testing.assert_close(got.float(), ref, atol=.05*ref.abs().max().item(), rtol=0)

@pytest.mark.parametrize('name', every)
@pytest.mark.parametrize('fill', [0., 1e-30, 3e4])
def test_rows_that_are_all_alike(name, fill):
    "Also all zero, as from a picture in which nothing lights up: no NaN, forwards or backwards"
    head,x = every[name](8, 7, 0.),torch.full((4,8), fill, requires_grad=True)
    for o in (head, head.eval()):
        y = o(x)
        loss = F.cross_entropy(y, torch.tensor([0,1,2,3]))
        for _,w,v in getattr(head, 'aux_losses', lambda *_: [])(x, y): loss = loss + w*F.cross_entropy(v, torch.tensor([0,1,2,3]))
        loss.backward()
        assert y.isfinite().all() and x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in head.parameters())

@pytest.mark.parametrize('name', every)
def test_in_a_model(name):
    model = fine_grained_model('resnet18', 7, 'avg', every[name], drop=.1, pretrained=False, img_size=64)
    F.cross_entropy(model(torch.rand(4, 3, 64, 64)), torch.tensor([0,1,2,3])).backward()
    assert all(p.grad is not None for p in model.head.parameters())

@pytest.mark.parametrize('hidden', [3, 128])
def test_width_of_the_hidden_layer(hidden):
    head = FastaiHead(8, 5, 0., hidden)
    assert [tuple(p.shape) for p in head.parameters() if p.ndim==2]==[(hidden,8), (5,hidden)]

# Cosine

def test_cosine_and_its_gradients_against_pytorch():
    head,x = CosineHead(6, 5, scale=7.).double(),torch.randn(9, 6).double().requires_grad_()
    def slow(x): return head.log_scale.detach().exp()*F.cosine_similarity(head.norm(x)[:,None], head.weight[None], dim=2)
    w = torch.randn(9, 5).double()
    torch.testing.assert_close(head(x), slow(x), rtol=1e-10, atol=1e-10)
    for got,ref in zip(torch.autograd.grad((head(x)*w).sum(), (x,head.weight)), torch.autograd.grad((slow(x)*w).sum(), (x,head.weight))):
        torch.testing.assert_close(got, ref, rtol=1e-8, atol=1e-10)
    head.eval()
    assert torch.autograd.gradcheck(head, x)

def test_length_of_row_and_vector_do_not_matter():
    head = CosineHead(8, 5).eval()
    x = torch.randn(4, 8)
    ref = head(x)
    head.weight.data *= torch.tensor([.1,1,10,100,1000])[:,None]
    torch.testing.assert_close(head(x), ref)
    torch.testing.assert_close(head(50*x), ref, rtol=1e-4, atol=1e-4)
    assert ref.abs().max()<=head.log_scale.exp()

def test_scale_is_learned_and_stays_positive():
    head = CosineHead(8, 3, scale=.5)
    x = torch.randn(30, 8)
    opt = torch.optim.SGD([head.log_scale], lr=50.)
    for _ in range(20):
        opt.zero_grad()
        F.cross_entropy(head(x), (-head(x)).argmax(1)).backward() # the worst label wants no scale at all
        opt.step()
    assert 0<=head.log_scale.exp()<.1

@pytest.mark.parametrize('n', [2, 3, 20, 200, 10_000])
def test_default_scale_reaches_99_percent(n):
    s = CosineHead(2, n).log_scale.exp().item()
    own,other = math.exp(s),math.exp(-s/(n-1))
    assert abs(own/(own+(n-1)*other)-.99)<1e-5

def test_no_vectors_do_better_than_the_bound():
    "Optimised freely, the least likely own class stays below it"
    n,p = 5,.9
    s = (n-1)/n*math.log((n-1)*p/(1-p))
    head = CosineHead(n, n, scale=s)
    head.norm = torch.nn.Identity()
    x = torch.randn(n, n, requires_grad=True)
    opt = torch.optim.Adam([x,head.weight], lr=.05)
    for _ in range(400):
        opt.zero_grad()
        F.cross_entropy(head(x), torch.arange(n)).backward()
        opt.step()
    got = head(x).softmax(1).diag()
    assert .895<got.min() and got.mean()<=p+1e-4

@pytest.mark.parametrize('scale', [0, -1.])
def test_no_scale_below_zero(scale):
    with pytest.raises(FineGrainedError, match='scale'): CosineHead(8, 5, scale=scale)

# Levels

def test_scores_along_the_tree():
    head,x = LevelHead(8, 7, parents=tree).eval(),torch.randn(5, 8)
    got,rows = head(x),head.norm(x)
    for b in range(5):
        for k in range(7):
            ref = rows[b]@head.fc.weight[k]+head.fc.bias[k]
            for fc,up in zip(head.above, tree): ref = ref + rows[b]@fc.weight[up[k]]+fc.bias[up[k]]
            torch.testing.assert_close(got[b,k], ref, rtol=1e-5, atol=1e-5)

@pytest.fixture(scope='module')
def birds(): return fine_grained_data('toy_birds', families=3, species=3, per_class=4, size=32)

def test_probabilities_are_those_of_levels(birds):
    up = Levels(birds)
    head = LevelHead(8, 9, parents=[up.up['family'].tolist()]).double()
    x = torch.randn(6, 8).double()
    logits = head(x)
    (_,_,value),fam = head.aux_losses(x, logits)[0],up.at('family', logits.softmax(1))
    torch.testing.assert_close(up.at('family', value.exp()), fam)
    torch.testing.assert_close(fam.sum(1), torch.ones(6).double())
    torch.testing.assert_close(value.exp(), fam[:,up.up['family']]/3)

def test_loss_is_that_of_the_groups_probability():
    head,x,y = LevelHead(8, 7, parents=tree).double(),torch.randn(11, 8).double(),torch.randint(7, (11,))
    params = list(head.parameters())
    for i,up in enumerate(torch.tensor(tree)):
        logits = head(x)
        n = up.bincount().double()
        p = logits.softmax(1) @ F.one_hot(up).double()
        nll = -p[torch.arange(11), up[y]].log()
        got = F.cross_entropy(head.aux_losses(x, logits)[i][2], y, reduction='none')
        torch.testing.assert_close(got-nll, n.log()[up[y]])
        for a,b in zip(*[torch.autograd.grad(o.sum(), params, retain_graph=True, allow_unused=True) for o in (got,nll)]): torch.testing.assert_close(a, b)

def test_targets_may_be_mixed_and_smoothed():
    head,x = LevelHead(8, 7, parents=tree).double(),torch.randn(11, 8).double()
    logits = head(x)
    a,b = torch.randint(7, (2, 11))
    soft = .3*F.one_hot(a, 7).double() + .7*F.one_hot(b, 7).double()
    for i,up in enumerate(torch.tensor(tree)):
        v,to = head.aux_losses(x, logits)[i][2],F.one_hot(up).double()
        p,n = logits.softmax(1)@to,to.sum(0)
        torch.testing.assert_close(F.cross_entropy(v, soft), -((soft@to)*(p/n).log()).sum(1).mean())
        torch.testing.assert_close(F.cross_entropy(v, a, label_smoothing=.1), .9*F.cross_entropy(v, a) - .1*((n/7)*(p/n).log()).sum(1).mean())

@pytest.mark.parametrize('size', [1e4, 1e-8])
def test_extreme_scores(size):
    head,y = LevelHead(8, 7, parents=tree),torch.arange(7)
    logits = (size*torch.randn(7, 7)).requires_grad_()
    for _,_,v in head.aux_losses(None, logits):
        loss = F.cross_entropy(v, y)
        g, = torch.autograd.grad(loss, logits, retain_graph=True)
        assert loss.isfinite() and g.isfinite().all()
    half = head.aux_losses(None, logits.detach().bfloat16())
    assert all(v.dtype is torch.float32 and not v.isnan().any() for _,_,v in half)

class Largest(TorchDispatchMode):
    "How many numbers the largest tensor holds that is made inside"
    n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        res = func(*args, **(kwargs or {}))
        for o in res if isinstance(res, (tuple,list)) else [res]:
            if isinstance(o, torch.Tensor): self.n = max(self.n, o.numel())
        return res

def test_many_labels_make_no_table_of_labels_by_groups():
    head = LevelHead(2, 10_000, parents=[[i//1000 for i in range(10_000)], [i//10 for i in range(10_000)]])
    logits = torch.randn(4, 10_000, requires_grad=True)
    with Largest() as most: sum(v[:,0].sum() for _,_,v in head.aux_losses(None, logits)).backward()
    assert 40_000<=most.n<=2*40_000

def test_sides_keep_their_weight():
    head = LevelHead(8, 7, parents=tree, weight=.25)
    assert [(name,w) for name,w,_ in head.aux_losses(None, torch.randn(2, 7))]==[('level 1',.25), ('level 2',.25)]

@pytest.mark.parametrize('parents,said', [(None,'needs `parents`'), ([],'needs `parents`'), ([[0,0,1]],'list of 3: give a list of 7'), ([0,0,0,1,1,1,1],'parents[0] is 0'),
    ([[0,0,0,2,2,2,2]],'has no group 1, but a group 2'), ([[1,1,1,2,2,2,2]],'has no group 0, but a group 2'), ([list('aabbccc')],"but a group 'a'"),
    ([tree[0], [0,0,0,0,0,1,1]],'Group 0 of parents[1] lies in the groups 0 and 1 of parents[0]'), (tree[::-1],'coarse → fine')])
def test_parents_that_do_not_fit(parents, said):
    with pytest.raises(FineGrainedError) as e: LevelHead(8, 7, parents=parents)
    assert said in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(FineGrainedError): fine_grained_model('resnet18', 7, head=partial(LevelHead, parents=parents), pretrained=False)

def test_a_saved_state_brings_its_tree():
    a,b = LevelHead(8, 7, parents=tree),LevelHead(8, 7, parents=[tree[0], [1,1,0,0,2,2,3]])
    b.load_state_dict(a.state_dict())
    x = torch.randn(3, 8)
    torch.testing.assert_close(a.eval()(x), b.eval()(x), rtol=0, atol=0)
