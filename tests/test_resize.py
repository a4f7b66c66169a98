"Another size: what was set still acts, what was learned about places is resampled from its own grid; and stages are what a hook can see"
import copy, subprocess, sys
import numpy as np, pytest, torch
from torch import nn
from fgvc_fast.core import FineGrainedError
from fgvc_fast.models.body import Body
from fgvc_fast.models.model import fine_grained_model
from fgvc_fast.models.streams import TwoStreams

pytestmark = pytest.mark.usefixtures('one_thread')

free = [('test_resnet',{}), ('test_convnext',{}), ('vgg11',{}), ('hrnet_w18_small',{}), ('inception_next_atto',{}), ('toy_resnet',{}), ('xcit_nano_12_p8_224',dict(depth=2))]
bound = [('vit_tiny_patch16_224',dict(depth=4)), ('deit_tiny_distilled_patch16_224',dict(depth=4)), ('vit_wee_patch16_reg1_gap_256',dict(depth=4)), ('cait_xxs24_224',dict(depth=4)),
    ('swin_tiny_patch4_window7_224',dict(depths=(1,2,1,1), embed_dim=24, num_heads=(1,2,4,8))), ('test_vit_relpos',{}), ('test_coatnet',{}),
    ('swinv2_tiny_window8_256',dict(depths=(1,2,1,1), embed_dim=24, num_heads=(1,2,4,8))), ('beit_base_patch16_224',dict(depth=4, embed_dim=48, num_heads=2)), ('eva02_tiny_patch14_224',dict(depth=4))]
def label(o): return o if isinstance(o, str) else ''

def made(arch, kw, size):
    "A model with all that can be set, set"
    torch.manual_seed(0)
    model = fine_grained_model(arch, 3, pretrained=False, img_size=size, blocks={1:'se', -2:'eca'}, **kw)
    for o in model.body.after.values(): nn.init.constant_(o.a, .7)
    body = model.body
    for k,p in body.model.named_parameters():
        if 'pos' in k: nn.init.normal_(p)
    if arch not in ('vgg11','hrnet_w18_small'): body.model.set_grad_checkpointing(True)
    for p in body.groups()[0]: p.requires_grad_(False)
    model.double().train()
    for m in body.model.modules():
        if isinstance(m, nn.BatchNorm2d): m.eval()
    return model

def flags(body):
    return ([(k, m.training, getattr(m, 'grad_checkpointing', None), len(m._forward_pre_hooks)) for k,m in body.model.named_modules()]
        + [(k, p.requires_grad, p.dtype) for k,p in body.model.named_parameters()])

@pytest.mark.parametrize('arch,kw', free+bound, ids=label)
def test_what_was_set_acts_after_another_size(arch, kw):
    a,b = ((56,84),(84,56)) if 'patch14' in arch else ((64,96),(96,64))
    model = made(arch, kw, a)
    body,met,xa,xb = model.body,[],torch.rand(2, 3, *a).double(),torch.rand(2, 3, *b).double()
    was,ids = flags(body),{k: id(p) for k,p in body.model.named_parameters()}
    with torch.no_grad(): before = model.eval()(xa)
    model.train(), [m.eval() for m in body.model.modules() if isinstance(m, nn.BatchNorm2d)]
    norm = copy.deepcopy(model.head.norm.state_dict())
    body.model.get_submodule(body._doors[1]).register_forward_hook(lambda *_: met.append(1))
    rng = torch.get_rng_state()
    model.resize(b)
    if body.fixed: assert torch.equal(rng, torch.get_rng_state())
    assert flags(body)==was and body.img_size==b
    moved = {k for k,p in body.model.named_parameters() if id(p)!=ids[k]}
    assert all('pos' in k or 'relative_position' in k for k in moved) and bool(moved)==((arch,kw) in bound and arch not in ('test_vit_relpos','swinv2_tiny_window8_256'))
    model(xb).square().sum().backward()
    assert met and all(p.grad is not None and p.grad.abs().sum()>0 for p in body.after.parameters()) and len(body.after)==2

    other = made(arch, kw, b) # a fresh one of that size, with these weights, says the same
    other.load_state_dict(model.state_dict())
    with torch.no_grad(): assert torch.equal(model.eval()(xb), other.eval()(xb))
    model.resize(a).head.norm.load_state_dict(norm)
    if not moved:
        with torch.no_grad(): assert torch.equal(model(xa), before)

def cubic(n, m):
    "The matrix that takes `n` places to `m`: Keys' kernel, as wide as the coarser of the two grids"
    scale = n/m
    d = np.abs((np.arange(n)+.5)[None] - ((np.arange(m)+.5)*scale)[:,None])/max(scale, 1)
    w = np.where(d<1, 1.5*d**3-2.5*d**2+1, np.where(d<2, -.5*d**3+2.5*d**2-4*d+2, 0))
    return torch.from_numpy(w/w.sum(1, keepdims=True))

@pytest.mark.parametrize('old,new', [((64,96),(96,64)), ((64,96),(128,96)), ((32,128),(64,64)), ((64,64),(64,96))])
@pytest.mark.parametrize('arch,pre', [('vit_tiny_patch16_224',1), ('deit_tiny_distilled_patch16_224',2), ('cait_xxs24_224',0)])
def test_embeddings_come_from_the_grid_they_were_learned_on(arch, pre, old, new):
    body = Body(arch, False, img_size=old, **(dict(depth=1, depth_token_only=1) if pre==0 else dict(depth=1)))
    nn.init.normal_(body.model.pos_embed)
    was = body.model.pos_embed.detach().double()
    (h,w),(h2,w2) = [[s//16 for s in o] for o in (old, new)]
    want = torch.einsum('ih,jw,hwc->ijc', cubic(h, h2), cubic(w, w2), was[0,pre:].view(h, w, -1)).flatten(0, 1)
    now = body.resize(new).model.pos_embed.detach().double()
    torch.testing.assert_close(now[0,pre:], want, atol=1e-5, rtol=0)
    assert torch.equal(now[:,:pre], was[:,:pre])

@pytest.mark.parametrize('arch,kw', [bound[4], bound[8]], ids=label)
def test_tables_of_places_come_from_the_window_they_were_learned_on(arch, kw):
    "What depends on the column alone does so afterwards, and turned pictures give the turned table"
    def tables(body): return [p for k,p in body.model.named_parameters() if 'relative_position_bias_table' in k]
    def planes(body):
        ws = [m.window_size for m in body.model.modules() if 'relative_position_bias_table' in m._parameters]
        return [t.detach()[:(2*h-1)*(2*w-1)].view(2*h-1, 2*w-1, -1) for t,(h,w) in zip(tables(body), ws)]
    a,b = (Body(arch, False, img_size=o, **kw) for o in ((64,96),(96,64)))
    for o in planes(a): o.copy_(torch.randn(1, o.shape[1], o.shape[2]).expand_as(o))
    for p,q in zip(planes(a), planes(b)): q.copy_(p.transpose(0, 1))
    a.resize((96,64)), b.resize((64,96))
    seen = 0
    for p,q in zip(planes(a), planes(b)):
        torch.testing.assert_close(p, p[:1].expand_as(p), atol=1e-5, rtol=0)
        torch.testing.assert_close(q.transpose(0, 1), p, atol=1e-5, rtol=0)
        seen += p[0].std().item()>.1
    assert seen

def test_what_cannot_be_resampled_is_refused_and_stays():
    body = Body('efficientformerv2_s0', False, img_size=(64,96)).eval()
    was,x = {k: v.clone() for k,v in body.state_dict().items()},torch.rand(1, 3, 64, 96)
    with torch.no_grad(): y = body(x)
    for size in ((96,64),(96,96)):
        with pytest.raises(FineGrainedError, match='efficientformerv2_s0.*stays at 64×96'): body.resize(size)
    with torch.no_grad(): assert torch.equal(body(x), y) and all(torch.equal(v, was[k]) for k,v in body.state_dict().items())
    two = TwoStreams(('vit_tiny_patch16_224','efficientformerv2_s0'), False, img_size=64)
    at = two.bodies[0].model.pos_embed
    with pytest.raises(FineGrainedError, match='stays'): two.resize(96)
    assert two.bodies[0].model.pos_embed is at and two.img_size==two.bodies[0].img_size==(64,64)

def test_a_module_that_somebody_exchanged_is_not_resized_behind_his_back():
    body = Body('eva02_tiny_patch14_224', False, img_size=56, depth=1)
    body.model.rope = nn.Identity()
    with pytest.raises(FineGrainedError, match='stays'): body.resize(84)

# Stages

@pytest.mark.parametrize('arch,names', [('nest_tiny',['patch_embed','levels.0','levels.1','levels.2']), ('tnt_s_legacy_patch16_224',['pixel_embed','norm1_proj','blocks.1','blocks.5','blocks.9']), ('nasnetalarge',None), ('visformer_tiny',None), ('swin_tiny_patch4_window7_224',None)])
def test_every_stage_is_a_map_that_can_be_seen(arch, names):
    with torch.device('meta'):
        body = Body(arch, False).eval()
        maps,seen = body.see(torch.zeros(2, 3, *body.img_size), range(len(body.stages)))
        assert names is None or body.group_names()==names
        for s,o in zip(body.stages, seen['stages']):
            assert o.shape[1]==s.channels and all(abs(n-size/s.reduction)<=1+.1*n for n,size in zip(o.shape[2:], body.img_size))
        for i,s in enumerate(body.stages): body.put_after(i, nn.Conv2d(s.channels, s.channels, 1))
        assert body(torch.zeros(2, 3, *body.img_size)).shape==maps.shape

@pytest.mark.parametrize('arch', ['pit_ti_224','pit_ti_distilled_224','coat_lite_tiny','crossvit_9_240'])
def test_what_gives_no_map_is_refused_by_name(arch):
    with torch.device('meta'), pytest.raises(FineGrainedError, match=arch) as e: Body(arch, False)
    assert '\n' not in str(e.value)

# Gradient checkpointing, and a name

def test_part_tokens_with_gradient_checkpointing():
    torch.manual_seed(0)
    model,x = fine_grained_model('vit_tiny_patch16_224', 3, pool='part_tokens', pretrained=False, img_size=64, depth=2),torch.rand(2, 3, 64, 64)
    def grads():
        model.zero_grad(), model(x).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]
    plain = grads()
    model.body.model.set_grad_checkpointing(True)
    again = grads()
    assert len(plain)==len(again)
    for a,b in zip(plain, again): torch.testing.assert_close(a, b)
    model.body.model.set_grad_checkpointing(False), grads()
    assert all(o.attn.fused_attn for o in model.body.model.blocks)

def test_the_toy_resnet_is_known_to_whoever_imports_a_bundle_alone():
    subprocess.run([sys.executable, '-c', "import fgvc_fast.bundle, timm; assert timm.create_model('toy_resnet', pretrained=True)"], check=True)
