"Maps half way through a body against the libraries' own, and what is put in between"
import pytest, timm, torch, torchvision
from torch import nn
from fgvc_fast.core import FineGrainedError
from fgvc_fast.models.stages import Body

swin = 'swin_tiny_patch4_window7_224',dict(depths=(1,1,2,1), embed_dim=32, num_heads=(1,2,2,4))

@pytest.mark.parametrize('arch,kw', [('resnet18',{}), ('convnext_atto',{}), ('densenet121',{}), ('vgg11',{}), swin], ids=lambda o: o if isinstance(o, str) else '')
def test_maps_are_those_of_timm(arch, kw):
    "timm builds another model to give them (`features_only`); ours are of the model as it is"
    size = (64,96)
    body = Body(arch, False, img_size=size, **kw).eval()
    ref = timm.create_model(arch, features_only=True, **kw, **(dict(img_size=size) if 'swin' in arch else {})).eval()
    own = body.model.state_dict()
    ref.load_state_dict({k: own[o] for k in ref.state_dict() if (o := next((o for o in own if o.replace('.','_')==k.replace('.','_')), None))}, strict=False)
    x = torch.rand(2, 3, *size)
    with torch.no_grad(): ours,theirs = body.see(x, range(len(body.stages)))[1]['stages'],ref(x)
    theirs = [o.permute(0,3,1,2) if 'swin' in arch else o for o in theirs]
    matched = 0
    for o in ours:
        same = [t for t in theirs if t.shape==o.shape]
        if any(torch.allclose(o, t, atol=1e-4) for t in same): matched += 1
    assert matched>=(4 if arch!='swin_tiny_patch4_window7_224' else 3), [tuple(o.shape) for o in ours]

def test_tokens_are_those_of_forward_intermediates():
    body = Body('vit_tiny_patch16_224', False, img_size=(64,96)).eval()
    x = torch.rand(2, 3, 64, 96)
    doors = [int(o.split('.')[1]) for o in body._doors] # the block that a stage's map goes into
    with torch.no_grad():
        ours = body.see(x, range(len(doors)))[1]['stages']
        theirs = body.model.forward_intermediates(x, indices=[d-1 for d in doors if d], intermediates_only=True)
    pairs = list(zip([o for o,d in zip(ours, doors) if d], theirs))
    assert len(pairs)>=3
    for o,t in pairs: torch.testing.assert_close(o, t)

@pytest.mark.parametrize('arch', ('resnet18', torchvision.models.resnet18, 'vit_tiny_patch16_224', 'hrnet_w18_small'), ids=lambda o: getattr(o, '__name__', o))
def test_looking_leaves_nothing_behind(arch):
    body = Body(arch, False, img_size=64).eval()
    def hooks(): return sum(len(m._forward_pre_hooks)+len(m._forward_hooks) for m in body.modules())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad(): was = body(x)
    body.see(x, (0,-2))
    with pytest.raises(FineGrainedError): body.see(x, ('nowhere',))
    with pytest.raises(Exception): body.see(torch.rand(2, 5, 64, 64), (0,))
    assert hooks()==0
    with torch.no_grad(): assert torch.equal(body(x), was)

@pytest.mark.parametrize('arch,kw', [('resnet18',{}), ('vit_tiny_patch16_224',dict(depth=6)), swin, ('hrnet_w18_small',{})], ids=lambda o: o if isinstance(o, str) else '')
def test_a_block_between_is_met_once_and_learns(arch, kw):
    body,met = Body(arch, False, img_size=64, **kw),[]
    for i in (1,-1):
        block = nn.Conv2d(body.stages[i].channels, body.stages[i].channels, 1)
        nn.init.dirac_(block.weight), nn.init.zeros_(block.bias)
        block.register_forward_hook(lambda m, a, o: met.append(o.shape))
        body.put_after(i, block)
    plain = Body(arch, False, img_size=64, **kw)
    plain.model.load_state_dict(body.model.state_dict())
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(body.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-4) # they pass on what they get
    assert [o[1] for o in met]==[body.stages[1].channels, body.stages[-1].channels]
    body(x).square().mean().backward()
    assert all(p.grad.abs().sum()>0 for o in body.after.values() for p in o.parameters())
    assert not {id(p) for p in body.after.parameters()} & {id(p) for g in body.groups() for p in g}
