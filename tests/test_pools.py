"Every pool on every kind of body: shapes, gradients, mixed precision, explanations, bundles; and what a bad combination says"
import copy, json, pickle
from functools import lru_cache, partial
import pytest, torch, torchvision
from torch.nn import functional as F
from fgvc_fast.bundle import load_bundle, write_bundle
from fgvc_fast.core import FineGrainedError
from fgvc_fast.models.body import Body
from fgvc_fast.models.head import LinearHead
from fgvc_fast.models.model import FineGrainedModel, NormalizeInput, _build, fine_grained_model
from fgvc_fast.models.pools import pools

tv = torchvision.models
bodies = ['toy_resnet', 'resnet10t', tv.mobilenet_v3_small, 'mobilenetv2_100', 'convnext_atto', 'hrnet_w18_small', # maps
    'swin_tiny_patch4_window7_224', 'deit_tiny_patch16_224', 'vit_wee_patch16_reg1_gap_256'] # maps with channels last, tokens
options = dict(annotated_parts=dict(parts=3), parts=dict(parts=4), bilinear=dict(dim=32), cov=dict(dim=32), compact=dict(dim=256),
    class_attention=dict(width=32), pyramid=dict(width=32))
shallow = dict(swin_tiny_patch4_window7_224=dict(depths=(1,1,2,1), embed_dim=32, num_heads=(1,2,2,4)), deit_tiny_patch16_224=dict(depth=5),
    vit_wee_patch16_reg1_gap_256=dict(depth=5))
tokens = 'class_token','tokens','part_tokens'
def name(o): return ('tv_'*callable(o)) + getattr(o, '__name__', str(o))

pytestmark = pytest.mark.usefixtures('one_thread')

@lru_cache(2)
def body_of(arch, size): return Body(arch, False, img_size=size, **shallow.get(arch, {}))

def model_of(arch, pool, size):
    "A model whose body is shared with the next test"
    torch.manual_seed(0)
    body = body_of(arch, size)
    pool = _build(partial(pools[pool], **options.get(pool, {})), body.nf, body=body)
    return FineGrainedModel(NormalizeInput(*[[.5]*3]*2), body, pool, LinearHead(pool.nf, 5))

def one_size(arch): return any(o in name(arch) for o in ('swin','deit','vit')) # which `closer` cannot show anything smaller
def has_token(arch): return 'deit' in name(arch) # the ViT has a register, which is no class token

@pytest.mark.parametrize('pool', pools)
@pytest.mark.parametrize('size', (32, 64))
@pytest.mark.parametrize('arch', bodies, ids=name) # the slowest to change, since a body takes longest to build
def test_every_pool_on_every_body(arch, pool, size):
    if pool in tokens and not has_token(arch):
        with pytest.raises(FineGrainedError, match='reads the class token'): model_of(arch, pool, size)
        return
    if pool=='closer' and one_size(arch):
        with pytest.raises(FineGrainedError, match='takes only one'): model_of(arch, pool, size)
        return
    model,x,y = model_of(arch, pool, size),torch.rand(4, 3, size, size),torch.tensor([0,1,2,3])
    points = dict(points=torch.rand(4, 3, 2)) if pool=='annotated_parts' else {}
    # training: a finite loss reaches every new parameter
    for amp in (False, True):
        model.train().zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            with model.trace('aux_losses') as t: out = model(x, **points)
            loss = F.cross_entropy(out.float(), y) + sum(w*(v if v.ndim==0 else F.cross_entropy(v.float(), y)) for _,w,v in t.aux_losses)
        loss.backward()
        assert out.shape==(4,5) and loss.isfinite()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        assert [k for k,p in [*model.pool.named_parameters(), *model.head.named_parameters()] if p.grad is None]==[]
    # evaluation: rows of the promised width, half precision near to full, and the two halves are the whole
    model.eval()
    with torch.no_grad():
        rows,full = model.features(x),model(x)
        assert rows.shape==(4, model.pool.nf) and full.shape==(4,5)
        with torch.autocast('cpu', torch.bfloat16): half = model(x)
        assert half.isfinite().all()
        if pool!='part_tokens': torch.testing.assert_close(half.float(), full, rtol=.1, atol=.1*full.std().item()+.05) # which chooses, and may choose another
        maps,decide = model.halves(x)
        torch.testing.assert_close(decide(maps), full, rtol=1e-4, atol=1e-4)

def test_gradcam_of_a_class_token_sees_the_picture():
    "The class token's own last map gives no gradient; what goes into the last block does"
    model = model_of('vit_tiny_patch16_224', 'class_token', 64).eval()
    maps,decide = model.halves(torch.rand(2, 3, 64, 64))
    maps = maps.detach().requires_grad_()
    grad, = torch.autograd.grad(decide(maps)[:,0].sum(), maps)
    assert (grad.abs().sum((1,2,3))>0).all()

whole = dict(two_streams=dict(arch=('resnet18', tv.resnet18), pool=partial(pools['bilinear'], dim=16)), branch=dict(arch='resnet18', branch='layer3'),
    blocks=dict(arch='resnet18', blocks={'layer2': 'eca', 3: 'se', -1: 'cbam'}), zoom=dict(arch='resnet18', pool=partial(pools['parts'], parts=4), zoom=True),
    levels=dict(arch='resnet18', head='levels', parents=[[0,0,0,1,1],[0,0,1,2,2]]), mlp=dict(arch='resnet18', head='mlp', drop=.2), cosine=dict(arch='resnet18', head='cosine'),
    swin_pyramid=dict(arch='swin_tiny_patch4_window7_224', pool=partial(pools['pyramid'], stages=['layers.1', -1], width=32)), stride=dict(arch='resnet18', output_stride=16),
    **{k: dict(arch='vit_tiny_patch16_224' if k in tokens else 'toy_resnet', pool=partial(v, **options[k]) if k in options else k) for k,v in pools.items()})

@pytest.mark.parametrize('kw', whole.values(), ids=whole)
def test_bundles_keep_every_combination(kw, tmp_path):
    torch.manual_seed(0)
    model = fine_grained_model(n_out=5, pretrained=False, img_size=64, **kw)
    model.train()
    x,points = torch.rand(3, 3, 64, 64),dict(points=torch.rand(3, 3, 2)) if 'points' in getattr(model.pool, 'wants', {}) else {}
    with torch.no_grad():
        for _ in range(2): model(x, **points) # so that running statistics are not those of the beginning
        for p in model.parameters(): p.add_(.01*torch.randn_like(p))
    b = load_bundle(write_bundle(tmp_path/'b', model, list('abcde')), 'cpu')
    for o in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), b.model):
        with torch.inference_mode(): torch.testing.assert_close(o.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    with torch.no_grad(): # what is explained is what is answered, branch and closer look included
        maps,decide = model.halves(x)
        torch.testing.assert_close(decide(maps), model(x), rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path/'b'/'config.json').read_text())['model']['pool']==model.recipe['pool']
    groups = model.groups()
    assert sorted(map(id, model.parameters()))==sorted(id(p) for g in groups for p in g) and len(groups)==len(model.group_names())

def test_a_bundle_without_the_new_entries_still_loads(tmp_path, monkeypatch):
    "As written before pools had options"
    import fgvc_fast.bundle as b
    model,made = fine_grained_model('toy_resnet', 3, 'gem', pretrained=False, img_size=64),b.recipe
    monkeypatch.setattr(b, 'recipe', lambda m: {k: v for k,v in made(m).items() if k not in ('options','blocks','branch','zoom')})
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode(): torch.testing.assert_close(load_bundle(write_bundle(tmp_path/'b', model, list('abc')), 'cpu').model(x), model.eval()(x))

def test_a_copy_with_blocks_between_is_its_own():
    model = fine_grained_model('resnet18', 5, pretrained=False, img_size=64, blocks={'layer3': 'se'})
    twin = copy.deepcopy(model)
    with torch.no_grad(): twin.body.after['3'].a.fill_(1.)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad(): assert not torch.allclose(model.eval()(x), twin.eval()(x)) # a hook that still knew the first body's block would give the same

@pytest.mark.parametrize('kw,said', [(dict(pool='gems'), "'gems' is no pool"), (dict(pool=partial(pools['parts'], parts=513)), 'cannot be made from a map of 512'),
    (dict(pool='class_token'), "'resnet18' has none"), (dict(pool=partial(pools['stages'], stages=(9,))), 'use a number from -5 to 4'),
    (dict(blocks={'layer7': 'se'}), "has no stage 'layer7'"), (dict(blocks={-1: 'sse'}), 'is no attention block'), (dict(branch=-1), 'no more than the last one'),
    (dict(zoom=True), 'nothing to look closer at'), (dict(head='levels'), 'needs `parents`'), (dict(pool=partial(pools['bilinear'], dim=0)), 'dim'), (dict(arch=('resnet18',)*3), 'give one architecture'),
    (dict(arch=('resnet18','resnet18'), branch=-2), 'has two bodies'), (dict(arch=('resnet18','resnet18'), weights='a.pth'), 'two files')], ids=lambda o: o if isinstance(o, str) else '')
def test_a_bad_combination_is_one_clear_error(kw, said):
    with pytest.raises(FineGrainedError, match=said): fine_grained_model(**{**dict(arch='resnet18', n_out=5, pretrained=False, img_size=64), **kw})
