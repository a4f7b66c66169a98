"Every kind of body: its maps against the library's own, its groups, its weights; and the model round it"
import copy, math, os, pickle, socket
from functools import partial
from pathlib import Path
import pytest, timm, torch, torchvision
from safetensors.torch import save_file
from fastai.vision.core import TensorImage
from timm.layers import resample_abs_pos_embed
from timm.models._manipulate import group_with_matcher
from torch.nn import functional as F
from fgvc_fast.core import FineGrainedError
from fgvc_fast.models.body import Body, read_weights
from fgvc_fast.models.head import heads
from fgvc_fast.models.model import fine_grained_model
from fgvc_fast.models.pools import pools

tv = torchvision.models

pytestmark = pytest.mark.usefixtures('one_thread')

cnns = [('resnet18',64), ('resnet50',64), ('vgg16',64), ('inception_v3',96), ('densenet121',64), ('mobilenetv2_100',64), ('efficientnet_b0',64),
    ('convnext_atto',64), ('hrnet_w18_small',64), (tv.resnet50,64), (tv.vgg16,64), (tv.inception_v3,96), (tv.densenet121,64)]
transformers = [('vit_tiny_patch16_224',(64,96)), ('deit3_small_patch16_224',64), ('swin_tiny_patch4_window7_224',128), ('swinv2_tiny_window8_256',(128,64)),
    ('vit_small_patch14_dinov2',56), (tv.vit_b_16,64), (tv.swin_t,64)]
every = [(*o,4) for o in cnns] + [(*o,5) for o in transformers]
quick = {tv.inception_v3: dict(init_weights=False)} # its own initialisation takes most of a minute
def label(o): return ('tv_'*callable(o) + getattr(o, '__name__', str(o)))

def maps_of(body, x):
    "The last map of `body`'s weights by the library's own road, place by place where it gives tokens"
    kw = dict(img_size=body.img_size) if body.fixed else {}
    if 'vgg' in body.name: # most of it is classifier: not worth drawing at random
        with torch.device('meta'): ref = body.arch(weights=None) if callable(body.arch) else timm.create_model(body.arch)
        ref.load_state_dict(body.model.state_dict(), strict=False, assign=True)
        return ref.features(x)
    if callable(body.arch):
        ref = body.arch(weights=None, **(dict(image_size=body.img_size[0]) if body.fixed else quick.get(body.arch, {}))).eval()
        ref.load_state_dict(body.model.state_dict(), strict=False)
        got = []
        vit = hasattr(ref, 'encoder')
        if vit: ref.encoder.register_forward_hook(lambda m, i, o: got.append(o))
        elif hasattr(ref, 'avgpool'): ref.avgpool.register_forward_pre_hook(lambda m, i: got.append(i[0]))
        else: return ref.features(x).relu() # DenseNet, as its `forward` has it
        ref(x)
        f,pre = got[0],1
    else:
        ref = timm.create_model(body.arch, num_classes=3, **kw).eval()
        ref.load_state_dict(body.model.state_dict(), strict=False)
        f,pre = ref.forward_features(x),getattr(ref, 'num_prefix_tokens', 0)
        if f.ndim==4 and 'swin' in body.arch: return torch.stack([f[...,c] for c in range(f.shape[3])], 1)
    if f.ndim==4: return f
    h,w = (s//body.stages[-1].reduction for s in x.shape[2:])
    return torch.stack([torch.stack([f[:, pre+i*w+j] for j in range(w)], -1) for i in range(h)], -2)

def check_groups(body, least):
    "Every parameter once, shallow before deep, by the library's own order of layers"
    groups = body.groups()
    assert sorted(map(id, body.parameters())) == sorted(id(p) for g in groups for p in g)
    assert len(groups)==len(body.stages)==len(body.group_names())==len(set(body.group_names())) and len(groups)>=least and all(groups)
    reds = [o.reduction for o in body.stages]
    assert reds==sorted(reds) and body.stages[-1].channels==body.nf
    if callable(body.arch): order = {k: i for i,(k,_) in enumerate(body.model.named_parameters()) if 'encoder.pos' not in k}
    else: order = group_with_matcher(body.model.named_parameters(), body.model.group_matcher(coarse=False), reverse=True)
    depth = [[order[k] for k,p in body.model.named_parameters() if k in order and any(p is o for o in g)] for g in groups]
    assert all(max(a)<=min(b) for a,b in zip(depth, depth[1:]))

@pytest.mark.parametrize('arch,size,least', every, ids=label)
def test_body(arch, size, least):
    torch.manual_seed(0)
    model = fine_grained_model(arch, 7, pretrained=False, img_size=size, stats=([.5]*3, [.5]*3), **quick.get(arch, {}))
    body = model.body
    check_groups(body, least)
    H,W = body.img_size
    x = torch.rand(2, 3, H, W)
    # maps
    model.eval()
    with torch.no_grad():
        m = model.maps(x)
        r = body.stages[-1].reduction
        if 'inception' not in body.name: assert m.shape == (2, body.nf, math.ceil(H/r), math.ceil(W/r)) # inception does not pad
        assert m.shape[1] == body.nf
        torch.testing.assert_close(m, maps_of(body, x*2-1), rtol=1e-4, atol=1e-4)
        y,z = model(x),model(TensorImage(x))
        assert type(z) is torch.Tensor and z.shape==(2,7) and torch.equal(y, z)
    # one step of training reaches every parameter
    before = [[p.detach().clone() for p in g] for g in model.groups()]
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model.train()(x), torch.tensor([1,2])).backward()
    assert [k for k,p in model.named_parameters() if p.grad is None] == []
    opt.step()
    assert all(any(not torch.equal(a, b) for a,b in zip(*o)) for o in zip(before, model.groups()))

def test_big_bodies_on_meta():
    for arch,size in (('resnext101_32x8d',224), ('vit_large_patch14_dinov2',518)):
        with torch.device('meta'): body = Body(arch, pretrained=False)
        check_groups(body, 5)
        assert body.img_size == (size,size)

@pytest.mark.parametrize('pool', ('avg','gem')) # all others: test_pools.py
@pytest.mark.parametrize('head', heads)
def test_pools_and_heads(pool, head):
    for arch in ('resnet18', 'vit_tiny_patch16_224'):
        make = partial(heads[head], parents=[[0,0,0,1,1]]) if head=='levels' else head
        model = fine_grained_model(arch, 5, pool, make, drop=0.1, pretrained=False, img_size=64)
        y = model(torch.rand(4, 3, 64, 64))
        assert y.shape==(4,5) and y.isfinite().all()
        assert len(model.groups())==len(model.group_names())==len(model.body.stages)+1
        assert sorted(map(id, model.parameters())) == sorted(id(p) for g in model.groups() for p in g)

def test_body_is_what_the_classifier_saw():
    ref = timm.create_model('resnet18', num_classes=5).eval()
    body = Body('resnet18', pretrained=False).eval()
    body.model.load_state_dict({k:v for k,v in ref.state_dict().items() if not k.startswith('fc')})
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad(): torch.testing.assert_close(ref.fc(pools['avg'](body.nf)(body(x))), ref(x))

# Weights

def wrap(sd, how):
    "`sd` as people save it"
    return dict(plain=lambda: sd, state_dict=lambda: dict(state_dict={f'module.{k}':v for k,v in sd.items()}, epoch=3), model=lambda: dict(model=sd))[how]()

def same(body, sd): return all(torch.equal(v, sd[k]) for k,v in body.model.state_dict().items())

@pytest.mark.parametrize('arch', ['resnet18', 'vgg16', 'convnext_atto', tv.resnet18, tv.squeezenet1_1], ids=label)
def test_weights_round_trip(arch, tmp_path):
    small = dict(num_classes=5)
    sd = (arch(weights=None, **small) if callable(arch) else timm.create_model(arch, **small)).state_dict()
    save_file(sd, tmp_path/'w.safetensors')
    assert same(Body(arch, weights=tmp_path/'w.safetensors'), sd)
    for how in ('plain', 'state_dict', 'model') if arch=='resnet18' else ():
        torch.save(wrap(sd, how), tmp_path/f'{how}.pth')
        assert same(Body(arch, weights=str(tmp_path/f'{how}.pth')), sd)

def test_weights_of_our_own_model(tmp_path):
    birds = fine_grained_model('resnet18', 5, pretrained=False)
    for name,m in dict(model=birds, body=birds.body).items():
        save_file(m.state_dict(), tmp_path/f'{name}.safetensors')
        assert same(fine_grained_model('resnet18', 9, weights=tmp_path/f'{name}.safetensors').body, birds.body.model.state_dict())

def test_weights_that_do_not_fit(tmp_path):
    f,sd = tmp_path/'w.safetensors',timm.create_model('resnet18').state_dict()
    def said(sd):
        save_file(sd, f)
        with pytest.raises(FineGrainedError) as e: Body('resnet18', weights=f)
        assert str(f) in str(e.value)
        return str(e.value)
    assert '1 missing (layer4.1.bn2.running_mean)' in said({k:v for k,v in sd.items() if k!='layer4.1.bn2.running_mean'})
    assert '1 unexpected (layer5.weight)' in said(sd | {'layer5.weight': torch.zeros(1)})
    assert '1 of another shape (conv1.weight (64, 4, 7, 7) for (64, 3, 7, 7))' in said(sd | {'conv1.weight': torch.zeros(64, 4, 7, 7)})
    assert 'missing' in said(timm.create_model('mobilenetv2_100').state_dict())
    f.write_bytes(b'no weights at all')
    with pytest.raises(FineGrainedError, match='cannot be read'): Body('resnet18', weights=f)
    (tmp_path/'half.pth').write_bytes(b'PK')
    with pytest.raises(FineGrainedError, match='half.pth'): Body('resnet18', weights=tmp_path/'half.pth')
    with pytest.raises(FineGrainedError, match='nowhere.pth'): Body('resnet18', weights=tmp_path/'nowhere.pth')

class Hostile:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)

def test_hostile_pickle_stays_closed(tmp_path):
    torch.save(dict(state_dict=timm.create_model('resnet18').state_dict(), args=Hostile(tmp_path/'done')), tmp_path/'w.pth')
    with pytest.raises(FineGrainedError, match='would run code'): Body('resnet18', weights=tmp_path/'w.pth')
    (tmp_path/'old.pt').write_bytes(pickle.dumps(Hostile(tmp_path/'done')))
    with pytest.raises(FineGrainedError, match='old.pt'): read_weights(tmp_path/'old.pt')
    assert not (tmp_path/'done').exists()

@pytest.mark.parametrize('size', [96, (64,128)])
def test_position_embeddings_are_resampled(size, tmp_path):
    sd = timm.create_model('vit_tiny_patch16_224').state_dict()
    sd['pos_embed'] = torch.randn_like(sd['pos_embed'])
    save_file(sd, tmp_path/'w.safetensors')
    body = Body('vit_tiny_patch16_224', weights=tmp_path/'w.safetensors', img_size=size)
    grid = [s//16 for s in body.img_size]
    assert same(body, sd | {'pos_embed': resample_abs_pos_embed(sd['pos_embed'], grid, num_prefix_tokens=1)})

def test_resampled_elsewhere(tmp_path):
    small = dict(depths=(1,1,1,1))
    for arch,make,kw in (('swin_tiny_patch4_window7_224',timm.create_model,small), (tv.vit_b_32,None,{})):
        sd = (make(arch, **kw) if make else arch(weights=None)).state_dict()
        save_file(sd, tmp_path/'w.safetensors')
        body = Body(arch, weights=tmp_path/'w.safetensors', img_size=128, **kw)
        own = body.model.state_dict()
        differ = [k for k in own if own[k].shape!=sd[k].shape]
        assert differ and all('relative_position' in k or 'pos_embed' in k for k in differ)
        assert all(torch.equal(own[k], sd[k]) for k in own if k not in differ)
        assert body(torch.rand(2, 3, 128, 128)).shape == (2, 768, 4, 4)

def test_real_weights():
    f = Path(os.environ.get('FGVC_SHARED', '../shared'))/'weights'/'mobilenetv2_100.imagenet1k.safetensors'
    if not f.exists(): pytest.skip(f'{f} is not here: set FGVC_SHARED')
    body = Body('mobilenetv2_100', weights=f, pad_type='same').eval()
    sd = read_weights(f)
    assert same(body, sd)
    with torch.no_grad(): y = body(torch.rand(2, 3, 224, 224)*2-1).mean((2,3)) @ sd['classifier.weight'].T
    assert y.shape==(2,1000) and y.std()>0.5

# Re-initialising

def test_reinit_is_the_constructors_own():
    torch.manual_seed(1)
    body = Body('resnet18', pretrained=False)
    for b in body.buffers(): b.add_(1)
    torch.manual_seed(2)
    fresh = Body('resnet18', pretrained=False)
    torch.manual_seed(2)
    assert same(body.reinit(5), fresh.model.state_dict())

@pytest.mark.parametrize('arch,n', [('resnet18',2), ('vit_tiny_patch16_224',1), (tv.resnet18,3)], ids=label)
def test_reinit_from_the_deep_end(arch, n):
    model = fine_grained_model(arch, 3, pretrained=False, img_size=64)
    body = model.body
    with torch.no_grad():
        for t in body.state_dict().values(): t.add_(1)
    old = {k: v.clone() for k,v in body.model.state_dict().items()}
    assert model.reinit(0) is model and same(body, old)
    model.reinit(n)
    changed = {body.group_of(k) for k,v in body.model.state_dict().items() if not torch.equal(v, old[k])}
    kept = {body.group_of(k) for k,v in body.model.state_dict().items() if torch.equal(v, old[k])}
    g = len(body.stages)
    assert changed==set(range(g-n, g)) and kept==set(range(g-n))
    for bad in (g+1, -1):
        with pytest.raises(FineGrainedError, match=f'has {g} groups'): body.reinit(bad)

# Sizes and errors

@pytest.mark.parametrize('arch,good,bad', [('vit_tiny_patch16_224',(48,80),100), ('swin_tiny_patch4_window7_224',96,30), ('swinv2_tiny_window8_256',256,130),
    ('vit_small_patch14_dinov2',70,64), (tv.vit_b_16,96,(96,64)), ('inception_v3',75,74)], ids=label)
def test_sizes(arch, good, bad):
    body = Body(arch, pretrained=False, img_size=good).eval()
    h,w = body.img_size
    with torch.no_grad(): assert min(body(torch.rand(1, 3, h, w)).shape) > 0
    if body.fixed:
        with pytest.raises(FineGrainedError, match='img_size=32'): body(torch.rand(1, 3, 32, 32))
    with pytest.raises(FineGrainedError, match='multiple|75 px and more'): Body(arch, pretrained=False, img_size=bad)

def test_bad_arguments():
    for kw,said in ((dict(img_size=-3),'img_size'), (dict(img_size=(1,2,3)),'img_size'), (dict(pad_typ='same'),'pad_typ')):
        with pytest.raises(FineGrainedError, match=said): Body('resnet18', pretrained=False, **kw)
    with pytest.raises(FineGrainedError, match="timm has no model 'resnet81'; near it: .*resnet18"): Body('resnet81')
    with pytest.raises(FineGrainedError, match='nope'): Body('resnet18.nope')
    with pytest.raises(FineGrainedError, match='list instead of one feature map'): Body('coat_tiny', pretrained=False)
    for kw,said in ((dict(pool='gen'),'use one of avg, gem'), (dict(head='line'),'use one of linear, fastai'), (dict(n_out=0),'n_out'), (dict(stats=0.5),'stats=0.5')):
        with pytest.raises(FineGrainedError, match=said): fine_grained_model(**dict(arch='resnet18', n_out=3, pretrained=False) | kw)

@pytest.mark.parametrize('arch', ['resnet18', tv.resnet18], ids=label)
def test_no_network(arch, tmp_path, monkeypatch):
    from huggingface_hub import constants
    def nowhere(*args, **kwargs): raise OSError('Name or service not known')
    monkeypatch.setattr(socket, 'getaddrinfo', nowhere)
    for k in ('http_proxy','https_proxy','all_proxy'):
        for o in (k, k.upper()): monkeypatch.delenv(o, raising=False)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    before = constants.HF_HUB_OFFLINE
    with pytest.raises(FineGrainedError, match="once, .*weights='file.safetensors'.*pretrained=False") as e: Body(arch, **({} if callable(arch) else dict(cache_dir=tmp_path)))
    assert e.value.__cause__ is not None and constants.HF_HUB_OFFLINE is before

def test_no_published_weights():
    name = next(o for o in timm.list_models('*resnet*') if not timm.get_pretrained_cfg(o).has_weights)
    with pytest.raises(FineGrainedError, match='timm has no published weights'): Body(name)

def test_stats():
    x = torch.rand(2, 3, 8, 8)
    for arch,mean in (('resnet18',(.485,.456,.406)), ('vit_tiny_patch16_224',(.5,.5,.5)), (tv.resnet18,(.485,.456,.406))):
        body = Body(arch, pretrained=False)
        assert tuple(body.mean)==mean and len(body.std)==3
    model = fine_grained_model('vit_tiny_patch16_224', 3, pretrained=False, stats=((.1,.2,.3), (.4,.5,.6)))
    want = torch.stack([(x[:,c]-m)/s for c,(m,s) in enumerate(zip((.1,.2,.3), (.4,.5,.6)))], 1)
    torch.testing.assert_close(model.norm(x), want)

# Living with others

@pytest.mark.parametrize('arch', ['resnet18', 'vit_tiny_patch16_224', 'convnext_atto', tv.resnet18], ids=label)
def test_channels_last_copies_and_pickles(arch):
    model = fine_grained_model(arch, 3, pretrained=False, img_size=64).eval().to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, *model.body.img_size).to(memory_format=torch.channels_last)
    with torch.no_grad():
        y = model(x)
        assert model.maps(x).stride(1)==1
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(twin(x), y)
            assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
