"Second-order pools: against definitions in double precision, on every kind of body, and on maps that break careless ones"
import copy
import pytest, torch
from torch.autograd import gradcheck
from torch.nn import functional as F
from fgvc_fast.core import FineGrainedError
from fgvc_fast.models.all import BilinearPool, Body, CompactPool, CovPool, newton_schulz, pools, signed_sqrt
from fgvc_fast.models.second import _products

names = 'bilinear','compact','cov'

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

# References, slow and in double precision

def outer(x, y):
    "Sum over places of outer products, one by one"
    x,y = x.double().flatten(2),y.double().flatten(2)
    return sum(x[:,:,None,p]*y[:,None,:,p] for p in range(x.shape[2]))

def root_of(x):
    "The square root of each picture's covariance"
    lam,V = torch.linalg.eigh(torch.stack([o.double().flatten(1).cov(correction=0) for o in x]))
    return (V*lam.clamp(min=0).sqrt()[:,None]) @ V.mT

def upper(G): return G[:, *torch.triu_indices(*G.shape[1:])]

@pytest.mark.parametrize('h,w', [(1,1), (1,5), (7,7)])
def test_bilinear_is_the_outer_product(h, w):
    x = torch.randn(3, 10, h, w)
    G = upper(outer(x, x))
    i,j = torch.triu_indices(10, 10)
    want = F.normalize(G.sign()*G.abs().sqrt()*torch.where(i==j, 1., 2**.5))
    torch.testing.assert_close(BilinearPool(10)(x).double(), want, rtol=0, atol=5e-3) # its root is a little flat near zero
    want = F.normalize(signed_sqrt(G)*torch.where(i==j, 1., 2**.5).double())
    torch.testing.assert_close(BilinearPool(10)(x).double(), want, rtol=1e-4, atol=1e-6)
    want = F.normalize(signed_sqrt(outer(x[:,:4], x[:,4:]).flatten(1)))
    torch.testing.assert_close(BilinearPool(10, streams=(4,6))(x).double(), want, rtol=1e-4, atol=1e-6)

def test_bilinear_reduces_each_body():
    x = torch.randn(2, 30, 3, 3)
    pool = BilinearPool(30, dim=4, streams=(20,10))
    a,b = (torch.einsum('oc,bchw->bohw', f[0].weight[:,:,0,0], m) for f,m in zip(pool.reduce, (x[:,:20], x[:,20:])))
    torch.testing.assert_close(pool(x).double(), F.normalize(signed_sqrt(outer(a, b).flatten(1))), rtol=1e-4, atol=1e-6)
    assert BilinearPool(30, dim=None).nf == 30*31//2 and BilinearPool(30, dim=4).nf == 4*5//2

@pytest.mark.parametrize('size', [2, 9])
@pytest.mark.parametrize('dim', [16, 37])
def test_sketch_is_the_definition_both_ways(size, dim):
    x = torch.randn(2, 12, size, size)
    for streams in (None, (5,7)):
        pool = CompactPool(12, dim, streams=streams)
        a,b = (x,x) if streams is None else x.split(streams, 1)
        G,want = outer(a, b),torch.zeros(2, dim, dtype=torch.float64)
        for i,(h,s) in enumerate(zip(pool.bin_a.tolist(), pool.sign_a.tolist())):
            for j,(k,t) in enumerate(zip(pool.bin_b.tolist(), pool.sign_b.tolist())): want[:, (h+k)%dim] += s*t*G[:,i,j]
        for got in (pool.sketch(x), pool._pairs(a.flatten(2), b.flatten(2)), pool._places(a.flatten(2), b.flatten(2))):
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-3)

def test_sketch_keeps_the_polynomial_kernel():
    x,y = torch.randn(2, 1, 20, 1, 1)
    true,scale,n,dim = (x*y).sum()**2,x.norm()**2*y.norm()**2,400,128
    err = torch.stack([(pool.sketch(x)*pool.sketch(y)).sum() for pool in (CompactPool(20, dim, seed=s) for s in range(n))]) - true
    assert err.mean().abs() < 4*err.std()/n**.5  # unbiased
    assert err.var() < 11/dim*scale**2           # the bound
    assert err.var() > .05/dim*scale**2          # and it is a sketch, no accident of the reference

@pytest.mark.parametrize('h', [3, 8])
def test_cov_goes_to_the_square_root(h):
    x = torch.randn(3, 12, h, h, dtype=torch.float64)
    want = upper(root_of(x))
    far = [(CovPool(12, iters=i).double()(x)/CovPool(12).triangle.root2.double() - want).abs().max() for i in (2, 5, 25)]
    assert far[0]>far[1]>far[2] and far[2]<1e-6

def test_cov_eigenvalues_and_products_agree():
    x = torch.randn(4, 40, 9)
    A = x @ x.mT # singular
    for inverse in (False, True):
        got = [f(A.clone().requires_grad_(), 5, inverse) for f in (newton_schulz, _products)]
        torch.testing.assert_close(*got, rtol=1e-3, atol=1e-4)
    g,grads = torch.randn(4, 40, 40),[]
    for f in (newton_schulz, _products):
        o = A.clone().requires_grad_()
        f(o, 5, False).backward(g+g.mT)
        grads.append(o.grad)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)

def test_cov_by_the_smaller_matrix_is_the_same():
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64) # 15 places of 16 channels
    o = x.flatten(2) - x.flatten(2).mean(2, keepdim=True)
    want = _products(o @ o.mT / 15, 5, False)
    pool = CovPool(16).double()
    torch.testing.assert_close(pool(x)/pool.triangle.root2, upper(want))

# Gradients

@pytest.mark.parametrize('pool', [BilinearPool(4), BilinearPool(4, streams=(1,3)), BilinearPool(4, dim=2), CompactPool(4, 6), CompactPool(4, 6, streams=(2,2)),
    CovPool(4), CovPool(4, dim=3, iters=3)],
    ids=['bilinear','streams','reduced','compact','compact_streams','cov','cov_reduced'])
@pytest.mark.parametrize('h', [1, 3])
def test_gradients(pool, h):
    x = torch.randn(2, 4, h, h, dtype=torch.float64, requires_grad=True)
    assert gradcheck(pool.double().eval(), x)

# Maps that break careless ones

r = torch.randn(2, 24, 6, 6, generator=torch.Generator().manual_seed(0))
bad = dict(zero=0*r, one_zero=r*torch.tensor([0.,1.])[:,None,None,None], constant=0*r+3, huge=1e4*r, huge_constant=0*r+1e4, one_place=r[...,:1,:1],
    rank_one=r[:,:1]*r[:,:,:1,:1], lit_once=r*(torch.arange(36)==7).view(6, 6),
    ill_conditioned=r*torch.logspace(0, -10, 24)[:,None,None], tiny=1e-12*r, dead_channels=r*(torch.arange(24)<2)[:,None,None], few_places=r[...,:2,:2],
    many=r.repeat(1, 1, 3, 3))

@pytest.mark.parametrize('name', names)
@pytest.mark.parametrize('m', bad)
@pytest.mark.parametrize('train', [True, False])
def test_no_nan(name, m, train):
    pool = pools[name](24, **{} if name=='compact' else dict(dim=16)).train(train)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = bad[m].to(dtype, copy=True).requires_grad_()
        with torch.autocast('cpu', torch.bfloat16): rows = pool(x)
        assert rows.shape==(2, pool.nf) and rows.dtype==torch.float32 and rows.isfinite().all()
        (rows*torch.randn_like(rows)).sum().backward()
        assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in pool.parameters())

@pytest.mark.parametrize('name', ['bilinear', 'compact'])
def test_scale_does_not_matter(name):
    pool = pools[name](24)
    for s in (1e-3, 1e4): torch.testing.assert_close(pool(s*r), pool(r), rtol=1e-3, atol=1e-5)

def test_cov_scales_with_the_map(): torch.testing.assert_close(CovPool(24)(1e4*r), 1e4*CovPool(24)(r), rtol=1e-3, atol=1)

def test_nan_goes_through():
    for name in names: assert pools[name](24)(torch.full_like(r, torch.nan)).isnan().all() # for callbacks that watch the loss

# In a model

@pytest.mark.parametrize('arch', ['toy_resnet', 'swin_tiny_patch4_window7_224', 'vit_tiny_patch16_224'])
@pytest.mark.parametrize('size', [64, 96])
def test_bodies(arch, size):
    kw = dict(depths=(1,1,1,1)) if 'swin' in arch else dict(depth=2) if 'vit' in arch else {}
    body = Body(arch, pretrained=False, img_size=size, **kw)
    with torch.no_grad(): maps = body.train()(torch.rand(2, 3, size, size))
    for name in names:
        pool = pools[name](body.nf)
        for train in (True, False):
            rows = []
            for autocast in (False, True):
                x = maps.clone().requires_grad_()
                with torch.autocast('cpu', torch.bfloat16, enabled=autocast): rows.append(pool.train(train)(x))
                rows[-1].sum().backward()
                assert rows[-1].shape==(2, pool.nf) and rows[-1].isfinite().all() and x.grad.isfinite().all()
            torch.testing.assert_close(*rows)
        torch.testing.assert_close(pool(maps.to(memory_format=torch.channels_last)), pool(maps), rtol=1e-3, atol=1e-4)

@pytest.mark.parametrize('name', names)
def test_state_is_all_it_takes(name):
    pool,other = pools[name](24),pools[name](24)
    if name=='compact': other = CompactPool(24, seed=5)
    other.load_state_dict(copy.deepcopy(pool.state_dict()))
    assert torch.equal(pool.eval()(r), other.eval()(r))

def test_seeds():
    assert torch.equal(CompactPool(24)(r), CompactPool(24)(r))
    assert not torch.allclose(CompactPool(24)(r), CompactPool(24, seed=1)(r), atol=1e-3)

@pytest.mark.parametrize('make,said', [(lambda: BilinearPool(8, dim=0), 'dim=0'), (lambda: BilinearPool(8, dim=2.5), 'dim=2.5'), (lambda: CompactPool(8, dim=-1), 'dim=-1'),
    (lambda: CovPool(8, dim='all'), "dim='all'"),
    (lambda: CovPool(8, iters=0), 'iters=0'), (lambda: BilinearPool(8, streams=(4,5)), r'streams=\(4, 5\).*together the 8'), (lambda: CompactPool(8, streams=(8,)), 'streams'),
    (lambda: BilinearPool(8, streams=(8,0)), 'streams')])
def test_options_that_cannot_be(make, said):
    with pytest.raises(FineGrainedError, match=said): make()

@pytest.mark.parametrize('pool', (CovPool, BilinearPool))
@pytest.mark.parametrize('C', (6, 40), ids=('narrow', 'wide'))
def test_a_gradient_asked_for_inside_autocast(pool, C):
    "As of attacks and maps in mixed precision: the way back is as exact as the way there"
    x,o = torch.randn(2, C, 5, 5, requires_grad=True),pool(C).eval()
    want, = torch.autograd.grad(o(x).sum(), x)
    with torch.autocast('cpu', torch.bfloat16): got, = torch.autograd.grad(o(x).sum(), x)
    torch.testing.assert_close(got, want, rtol=.05, atol=.05*want.abs().max().item())
