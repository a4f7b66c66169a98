"Attention: blocks against the papers' formulas, pools against plain loops, and both behind every kind of body"
import math
import pytest, torch
from torch import nn
from torch.nn import functional as F
from fgvc_fast.core import FineGrainedError
from fgvc_fast.models.attention import Attended, AttentionPool, ClassAttentionPool, attention_blocks
from fgvc_fast.models.body import Body
from fgvc_fast.models.pools import pools

both = pytest.mark.parametrize('cls', [AttentionPool, ClassAttentionPool])
kinds = pytest.mark.parametrize('kind', attention_blocks)

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def spread(m, std=.5):
    "`m` with every parameter drawn anew: nothing is near 0 or 1 by its initialisation"
    for p in m.parameters(): nn.init.normal_(p, std=std)
    return m

@torch.no_grad()
def loop(q, ks, vs, heads):
    "Softmax attention of one query, number by number: what it finds, and each head's weights"
    d,found,looks = len(q)//heads,[],[]
    for i in range(heads):
        part = range(i*d, (i+1)*d)
        e = [math.exp(sum(float(q[c]*k[c]) for c in part)/math.sqrt(d)) for k in ks]
        looks.append([o/sum(e) for o in e])
        found += [sum(a*float(v[c]) for a,v in zip(looks[-1], vs)) for c in part]
    return torch.tensor(found), torch.tensor(looks)

def even(x, heads):
    "Each head's numbers with mean 0 and variance 1"
    return torch.cat([(o-o.mean())/(o.var(correction=0)+1e-5).sqrt() for o in x.chunk(heads)])

def normed(x, m): return F.layer_norm(x, x.shape[-1:], m.weight, m.bias)

@pytest.mark.parametrize('h,w', [(1,1), (2,3), (5,2)])
def test_learned_query_against_loops(h, w):
    pool,x = spread(AttentionPool(12, 3)),torch.randn(2, 12, h, w)
    rows,looks = pool(x),pool.attention(x)
    assert looks.shape==(2,3,h,w)
    for b in range(2):
        places = [normed(x[b,:,i,j], pool.norm) for i in range(h) for j in range(w)]
        W,bias = pool.look.kv.weight,pool.look.kv.bias
        found,at = loop(pool.look.latent[0,0], [W[:12]@z+bias[:12] for z in places], [W[12:]@z+bias[12:] for z in places], 3)
        torch.testing.assert_close(rows[b], found, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(looks[b].flatten(1), at, rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('h,w', [(1,1), (2,3), (5,2)])
@pytest.mark.parametrize('width', [None, 6])
def test_class_attention_against_loops(h, w, width):
    pool,x = spread(ClassAttentionPool(12, 3, depth=2, width=width)),torch.randn(2, 12, h, w)
    rows,looks = pool(x),pool.attention(x)
    for b in range(2):
        places,t = [pool.narrow(x[b,:,i,j]) for i in range(h) for j in range(w)],pool.token[0,0]
        for n,o in enumerate(pool.looks):
            u = [normed(z, o.norm1) for z in (t, *places)]
            q,ks,vs = even(o.attn.q[0].weight@u[0], 3),[even(o.attn.k[0].weight@z, 3) for z in u],[o.attn.v.weight@z for z in u]
            if n==0: torch.testing.assert_close(looks[b].flatten(1), loop(q, ks[1:], vs[1:], 3)[1], rtol=1e-4, atol=1e-5)
            t = t + o.gamma_1*(o.attn.proj.weight@loop(q, ks, vs, 3)[0] + o.attn.proj.bias)
            m = o.mlp
            t = t + o.gamma_2*(m.fc2.weight@F.gelu(m.fc1.weight@normed(t, o.norm2) + m.fc1.bias) + m.fc2.bias)
        torch.testing.assert_close(rows[b], t, rtol=1e-4, atol=1e-4)

@both
def test_maps_say_how_much_a_place_counts(cls):
    "A place that nobody looks at may change as it likes"
    pool,x = spread(cls(12, 3)),torch.randn(2, 12, 4, 5)
    looks = pool.attention(x)
    assert (looks>=0).all()
    torch.testing.assert_close(looks.sum((2,3)), torch.ones(2, 3))
    flat = pool.attention(torch.randn(1, 12, 1, 1).expand(2, 12, 4, 5)) # all places alike
    torch.testing.assert_close(flat, torch.full((2,3,4,5), 1/20))
    order = torch.randperm(20) # places have no names
    mixed = x.flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(pool(mixed), pool(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pool.attention(mixed).flatten(2), looks.flatten(2)[..., order])

def test_a_learned_query_begins_near_the_mean():
    looks = 36*AttentionPool(64).attention(torch.randn(8, 64, 6, 6).relu())
    assert looks.min()>.6 and looks.max()<1.6

@both
@pytest.mark.parametrize('nf,heads,goes', [(192,8,8), (12,8,6), (13,8,1), (4,8,4), (30,1,1)])
def test_heads_divide(cls, nf, heads, goes):
    pool = cls(nf, heads)
    assert pool.heads==goes and pool.nf==nf and pool(torch.randn(2, nf, 3, 3)).shape==(2,nf)
    assert pool.attention(torch.randn(2, nf, 3, 3)).shape==(2,goes,3,3)

def test_wide_maps_are_brought_to_width():
    pool = ClassAttentionPool(1000)
    assert pool.nf==512 and pool(torch.randn(2, 1000, 2, 2)).shape==(2,512)

@both
@pytest.mark.parametrize('x', [torch.zeros(2, 24, 3, 3), torch.zeros(2, 24, 1, 1), torch.randn(2, 24, 1, 1), 1e4*torch.randn(2, 24, 2, 7),
    torch.full((2,24,3,3), 7.)],
    ids=['zeros','one zero','one place','large','flat'])
@pytest.mark.parametrize('bf16', [False, True], ids=['float32','bf16'])
def test_finite(cls, x, bf16):
    pool,x = cls(24),x.clone().requires_grad_()
    for train in (True,False):
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16): rows,looks = pool.train(train)(x),pool.attention(x)
        rows.float().square().sum().backward()
        assert rows.isfinite().all() and x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in pool.parameters())
        assert looks.dtype==torch.float32
        torch.testing.assert_close(looks.sum((2,3)), torch.ones(looks.shape[:2]))

@both
def test_every_parameter_learns(cls):
    "From the first step on, on a map and at a low rate"
    pool,x,y = cls(24),torch.randn(64, 24, 3, 3),torch.randn(64, cls(24).nf)
    before = {k: p.detach().clone() for k,p in pool.named_parameters()}
    F.mse_loss(pool(x), y).backward()
    dead = [k for k,p in pool.named_parameters() if p.grad is None or not p.grad.abs().max()>0]
    assert not dead
    torch.optim.SGD(pool.parameters(), lr=1e-2).step()
    assert all(not torch.equal(p, before[k]) for k,p in pool.named_parameters())

@both
def test_finds_the_one_place(cls):
    "One place of 36 tells the class; a mean sees a 36th of it"
    torch.manual_seed(1)
    mark,signs = F.normalize(torch.randn(16), dim=0)*6,torch.randn(4, 16)
    def batch(n):
        x,y,at = torch.randn(n, 16, 36),torch.randint(4, (n,)),torch.randint(36, (n,))
        x[torch.arange(n),:,at] = mark+2*signs[y]
        return x.view(n, 16, 6, 6),y,at
    pool = cls(16, heads=2)
    model = nn.Sequential(pool, nn.BatchNorm1d(16), nn.Linear(16, 4))
    opt = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        x,y,_ = batch(64)
        F.cross_entropy(model(x), y).backward()
        opt.step(), opt.zero_grad()
    x,y,at = batch(500)
    with torch.no_grad(): right,looks = (model.eval()(x).argmax(1)==y).float().mean(),pool.attention(x).mean(1).flatten(1)
    assert right > .9
    assert (looks.argmax(1)==at).float().mean() > .5 # by chance 0.03; a second look may find what the first did not

bodies = [('toy_resnet',64), ('toy_resnet',96), ('swin_tiny_patch4_window7_224',64), ('swin_tiny_patch4_window7_224',96), ('vit_tiny_patch16_224',64), ('vit_tiny_patch16_224',96)]

@pytest.fixture(scope='module')
def map_of():
    "The map that a body makes, made once"
    made = {}
    def f(arch, size):
        if (arch,size) not in made:
            torch.manual_seed(0)
            with torch.no_grad(): made[arch,size] = Body(arch, pretrained=arch=='toy_resnet', img_size=size).eval()(torch.randn(4, 3, size, size))
        return made[arch,size]
    return f

@pytest.mark.parametrize('arch,size', bodies)
@pytest.mark.parametrize('name', ['attention','class_attention'])
def test_behind_bodies(map_of, arch, size, name):
    x = map_of(arch, size)
    pool = pools[name](x.shape[1])
    rows = pool(x)
    assert rows.shape==(4,pool.nf)
    for m in (x.requires_grad_(False).clone().requires_grad_(), x.clone().to(memory_format=torch.channels_last).requires_grad_()):
        with torch.autocast('cpu', torch.bfloat16): half = pool(m)
        torch.testing.assert_close(half.float(), rows, rtol=.05, atol=.05)
        half.float().square().sum().backward()
        assert m.grad.isfinite().all() and all(p.grad.isfinite().all() for p in pool.parameters())

@pytest.mark.parametrize('arch,size', bodies)
@kinds
def test_blocks_behind_bodies(map_of, arch, size, kind):
    x = map_of(arch, size)
    m = Attended(x.shape[1], kind)
    assert torch.equal(m(x), x)
    m.a.data.fill_(.5)
    y = m(x)
    with torch.autocast('cpu', torch.bfloat16): half = m(x.clone().to(memory_format=torch.channels_last))
    assert y.shape==x.shape and not torch.equal(y, x)
    torch.testing.assert_close(half.float(), y, rtol=.05, atol=.05*x.abs().max().item())

def gate(kind, m, x):
    "What the block multiplies one map `x` (C, h, w) by, by the papers' formulas"
    C,h,w = x.shape
    mean,top = x.mean((1,2)),x.amax((1,2))
    if kind=='eca': # neighbours among the channels, zeros beyond the ends
        k = m.conv.weight[0,0]
        n = len(k)//2
        return torch.stack([sum(k[j+n]*mean[c+j] for j in range(-n, n+1) if 0<=c+j<C) for c in range(C)]).sigmoid()[:,None,None]
    mlp = m if kind=='se' else m.channel
    def two(z): return F.linear(F.linear(z, mlp.fc1.weight[...,0,0], mlp.fc1.bias).relu(), mlp.fc2.weight[...,0,0], mlp.fc2.bias)
    if kind=='se': return two(mean).sigmoid()[:,None,None]
    s = (two(mean)+two(top)).sigmoid()[:,None,None]
    conv,bn = m.spatial.conv.conv,m.spatial.conv.bn
    two_maps = F.pad(torch.stack([(s*x).mean(0), (s*x).amax(0)]), (3,3,3,3))
    a = torch.stack([torch.stack([(conv.weight[0]*two_maps[:,i:i+7,j:j+7]).sum() for j in range(w)]) for i in range(h)])
    a = (a-bn.running_mean)/(bn.running_var+bn.eps).sqrt()*bn.weight+bn.bias
    return s*a.sigmoid()

@kinds
@pytest.mark.parametrize('a', [0., .3, 1.])
def test_blocks_against_formulas(kind, a):
    m = spread(Attended(24, kind).eval())
    m.a.data.fill_(a)
    x = torch.randn(3, 24, 4, 6)
    want = torch.stack([(1-a)*o + a*o*gate(kind, m.block, o) for o in x])
    torch.testing.assert_close(m(x), want, rtol=1e-4, atol=1e-5)

@kinds
def test_a_block_fades_in(kind):
    "The model begins unchanged; `a` learns at once, the block from the second step on"
    m,x = Attended(24, kind),torch.randn(8, 24, 5, 5)
    opt = torch.optim.SGD(m.parameters(), lr=.1)
    for step in range(2):
        assert torch.equal(m(x), x)==(step==0)
        opt.zero_grad()
        (m(x)-1).square().mean().backward()
        assert m.a.grad.abs()>0
        learns = {k: p.grad.abs().max().item()>0 for k,p in m.block.named_parameters()}
        assert any(learns.values())==(step==1)
        opt.step()
    assert all(learns.values()), learns

@kinds
@pytest.mark.parametrize('nf,h,w', [(1,3,3), (8,1,1), (768,2,5)])
def test_blocks_of_any_shape(kind, nf, h, w):
    for x in (torch.randn(2, nf, h, w), torch.zeros(2, nf, h, w)):
        m,x = Attended(nf, kind),x.requires_grad_()
        m.a.data.fill_(.5)
        m(x).sum().backward()
        assert m(x).shape==x.shape and x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in m.parameters())

@pytest.mark.parametrize('make,says', [(lambda: Attended(8, 'cbma'), "'cbma' is no attention block: use one of se, eca, cbam"), (lambda: Attended(8, None), 'use one of se, eca, cbam'),
    (lambda: Attended(8, ['se']), 'use one of'), (lambda: AttentionPool(8, heads=0), 'heads=0'), (lambda: AttentionPool(8, heads='8'), "heads='8'"), (lambda: ClassAttentionPool(8, heads=-1), 'heads=-1'),
    (lambda: ClassAttentionPool(8, depth=0), 'depth=0'), (lambda: ClassAttentionPool(8, width=0), 'width=0')])
def test_wrong_options(make, says):
    with pytest.raises(FineGrainedError) as e: make()
    assert says in str(e.value)
