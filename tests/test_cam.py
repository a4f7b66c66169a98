"Where a model looks: every method on every body and pool, against slow references and the usual library, and the learner as it was"
import copy
from types import SimpleNamespace
import pytest, torch
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import TensorImage
from fgvc_fast.datasets.all import toy_birds
from fgvc_fast.core import FineGrainedError
from fgvc_fast.interpret.cam import cam
from fgvc_fast.interpret.methods import cam_methods
from fgvc_fast.interpret.probe import eval_fp32
from fgvc_fast.interpret.layers import view_layers
from fgvc_fast.interpret.score import energy_inside, pointing_game
from fgvc_fast.models.model import fine_grained_model
from fgvc_fast.models.pools import pools
from test_models import every, label, quick # chkstyle: ignore
from test_pools import bodies, has_token, model_of, name, one_size, shallow, tokens, whole

pytestmark = pytest.mark.usefixtures('one_thread')
square = {'tv_vit_b_16'}

@pytest.fixture(scope='module')
def data(tmp_path_factory): return toy_birds(families=2, species=4, per_class=4, size=64, path=tmp_path_factory.mktemp('toys'))

def learner(data, arch, size, pool='avg', head='linear', **kw):
    "A random model with statistics of its own in every norm layer, on loaders of `size` (height, width)"
    torch.manual_seed(0)
    dls = data.dls(size=size, bs=4, num_workers=0, device='cpu', aug='none')
    model = fine_grained_model(arch, len(dls.vocab), pool=pool, head=head, pretrained=False, img_size=size, **kw, **quick.get(arch, {}))
    for m in model.modules():
        if hasattr(m, 'running_mean') and m.running_mean is not None: m.running_mean.uniform_(-.1, .1)
    return Learner(dls, model, loss_func=CrossEntropyLossFlat())

def state(learn):
    "Everything that looking at a learner could have changed"
    m,hooks = learn.model,('_forward_hooks','_forward_pre_hooks','_backward_hooks','_backward_pre_hooks','_state_dict_hooks')
    return dict(modes={k: o.training for k,o in m.named_modules()}, hooks={k: [len(getattr(o, h)) for h in hooks] for k,o in m.named_modules()},
        weights={k: o.clone() for k,o in m.state_dict().items()}, grads={k: None if p.grad is None else p.grad.clone() for k,p in m.named_parameters()},
        needs={k: p.requires_grad for k,p in m.named_parameters()}, cbs=[type(o) for o in learn.cbs], on=(torch.is_grad_enabled(), torch.is_autocast_enabled('cpu')))

def same(a, b):
    assert a.keys()==b.keys()
    for k in a: assert torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else same(a[k], b[k]) is None if isinstance(a[k], dict) else a[k]==b[k], k

def slow(model, x, method, dtype=torch.float64):
    "Maps as the papers' formulas have them: the whole model backwards, place by place"
    model,kept = copy.deepcopy(model).to(dtype).eval().requires_grad_(True),[]
    def keep(m, i, o):
        o.retain_grad()
        kept.append(o)
    h = model.body.register_forward_hook(keep)
    logits = model(x.to(dtype))
    h.remove()
    t = logits.argmax(1)
    (logits.gather(1, t[:,None])[:,0]-logits.mean(1)).sum().backward()
    a,g = kept[0].detach(),kept[0].grad
    if method=='gradcam': raw = torch.stack([sum(gk.mean()*ak for gk,ak in zip(gi, ai)) for gi,ai in zip(g, a)])
    else:
        norm,fc = model.head.norm,model.head.fc
        w = (fc.weight-fc.weight.mean(0))*norm.weight/(norm.running_var+norm.eps).sqrt() # norm and linear layer as one
        raw = torch.stack([sum(w[ti,k]*ai[k] for k in range(len(ai))) for ti,ai in zip(t, a)]).detach()
    big = torch.nn.functional.interpolate(raw.clamp(min=0)[None], x.shape[2:], mode='bilinear')[0]
    return torch.stack([(o-o.min())/max((o-o.min()).max().item(), 1e-30) for o in big])

def sizes(arch, size):
    "Non-square wherever the body can"
    if isinstance(size, tuple) or label(arch) in square: return size if isinstance(size, tuple) else (size,size)
    return (size, size + size//2 if 'swin' not in label(arch) else 2*size)

@pytest.mark.parametrize('arch,size', [o[:2] for o in every], ids=lambda o: label(o) if not isinstance(o, (int,tuple)) else '')
def test_every_body(data, arch, size):
    size = sizes(arch, size)
    learn = learner(data, arch, size)
    learn.model.train()
    next(m for m in learn.model.modules() if not list(m.children())).eval() # a mode of its own
    for p in list(learn.model.parameters())[:3]: p.grad = torch.ones_like(p)
    x = learn.dls.valid.one_batch()[0][:3]
    assert isinstance(x, TensorImage) and x.shape[2:]==size
    before = state(learn)
    maps = {m: cam(learn, x, m) for m in ('gradcam','cam')}
    for m,got in maps.items():
        assert type(got) is torch.Tensor and got.shape==(3,*size) and got.dtype==torch.float32 and not got.requires_grad
        torch.testing.assert_close(got.double(), slow(learn.model, x.as_subclass(torch.Tensor), m), atol=2e-3, rtol=0)
        torch.testing.assert_close(cam(learn, x[:1], m), got[:1], atol=1e-3, rtol=0) # of one
        with torch.autocast('cpu', torch.bfloat16): assert torch.equal(cam(learn, x, m), got)
        with torch.inference_mode(): assert torch.equal(cam(learn, x, m), got)
    same(before, state(learn))
    learn.model.body.requires_grad_(False)
    before = state(learn)
    for m,got in maps.items(): assert torch.equal(cam(learn, x, m), got)
    same(before, state(learn))

def refused(method, layer, arch, pool):
    "What a method says that cannot be asked there"
    rolled,transformer = 'rollout' in method,'deit' in name(arch) or 'vit' in name(arch)
    if layer is not None and (rolled or method=='cam'): return 'leave `layer` out'
    if rolled and not transformer: return 'no attention|windows'
    if method=='cam' and pool in tokens: return "method='gradcam'"

def check_every_method(model, x, arch, pool, layers):
    next(m for m in model.train().modules() if not list(m.children())).eval() # a mode of its own
    before = state(SimpleNamespace(model=model, cbs=[]))
    with eval_fp32(model, x.device): logits,views = view_layers(model, x, torch.eye(5)[[1,3]]-torch.eye(5)[[0,1]], layers)
    for method,f in cam_methods.items():
        for layer,view in zip(layers, views):
            if method=='scorecam' and view.maps.shape[1]>64: continue # a look for each channel
            why = refused(method, layer, arch, pool)
            with eval_fp32(model, x.device):
                if why:
                    with pytest.raises(FineGrainedError, match=why): f(view)
                    continue
                heat = f(view)
            assert heat.shape==(2, *(view.maps.shape[2:] if 'rollout' not in method else views[0].maps.shape[2:])), method
            assert heat.isfinite().all() and heat.min()>=0 and not heat.requires_grad, method
    same(before, state(SimpleNamespace(model=model, cbs=[])))
    with torch.no_grad(): torch.testing.assert_close(logits, model.eval()(x), rtol=1e-4, atol=1e-4)

@pytest.mark.parametrize('arch,pool', [(a,p) for a in bodies for p in pools if (p not in tokens or has_token(a)) and not (p=='closer' and one_size(a))], ids=name) # which pools refuse which bodies: test_pools.py
def test_every_method_on_every_body_and_pool(arch, pool):
    model = model_of(arch, pool, 64)
    check_every_method(model, torch.rand(2, 3, 64, 64), arch, pool, (None,1))

@pytest.mark.parametrize('arch,size', [('toy_resnet',(65,97)), ('mobilenetv2_100',(101,67)), ('convnext_atto',(97,71)), ('hrnet_w18_small',(96,64)), ('swin_tiny_patch4_window7_224',(64,128)), ('deit_tiny_patch16_224',(48,80)), ('vit_wee_patch16_reg1_gap_256',(80,48))])
def test_every_method_on_odd_sizes(arch, size):
    check_every_method(model_of(arch, 'avg', size), torch.rand(2, 3, *size), arch, 'avg', (None,1))

def squares(n, side=128, cell=32):
    "Noise with one square, whose colour is the class; where it is (n, H, W)"
    x,y = .4+.2*torch.rand(n, 3, side, side),torch.arange(n)%3
    at = torch.zeros(n, side, side, dtype=torch.bool)
    for i,(a,b) in enumerate(torch.randint(0, side//cell, (n, 2))*cell):
        at[i,a:a+cell,b:b+cell] = True
        x[i,:,at[i]] *= .3
        x[i,y[i],at[i]] += .6
    return x,y,at

def test_maps_of_a_swin_that_has_learnt_are_on_what_it_has_learnt(data):
    arch = 'swin_tiny_patch4_window7_224'
    torch.manual_seed(0)
    model = fine_grained_model(arch, 3, pretrained=False, img_size=128, **shallow[arch])
    learn = Learner(data.subset(list(data.vocab[:3])).dls(size=128, bs=4, num_workers=0, device='cpu'), model, loss_func=CrossEntropyLossFlat())
    opt = torch.optim.AdamW(model.train().parameters(), 1e-3)
    for _ in range(60):
        x,y,_ = squares(12)
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    x,y,at = squares(30)
    with torch.no_grad(): assert (model.eval()(x).argmax(1)==y).float().mean()>.9
    for method in ('gradcam','cam','hirescam','layercam'):
        maps = cam(learn, x, method, y.tolist())
        assert pointing_game(maps, at).mean()>.9 and energy_inside(maps, at).mean()>3/16, method # one by chance

@pytest.mark.parametrize('key', [k for k in whole if k not in pools])
def test_every_method_on_whole_models(key):
    torch.manual_seed(0)
    model = fine_grained_model(n_out=5, pretrained=False, img_size=64, **whole[key])
    check_every_method(model, torch.rand(2, 3, 64, 64), whole[key]['arch'], '', (None,) if key=='two_streams' else (None,-2))

@pytest.mark.parametrize('where', ['body','pool','head'])
def test_left_as_it_was_after_an_exception(data, where, monkeypatch):
    learn = learner(data, 'resnet18', (64,64))
    learn.model.train()
    learn.model.body.model.layer1.eval()
    before = state(learn)
    def stop(*_): raise KeyboardInterrupt
    with monkeypatch.context() as mp:
        mp.setattr(getattr(learn.model, where), 'forward', stop)
        with pytest.raises(KeyboardInterrupt): cam(learn, learn.dls.valid.one_batch())
    same(before, state(learn))

@pytest.mark.parametrize('pool,head', [('gem','linear'), ('avg','fastai'), ('gem','fastai')])
def test_gradcam_of_other_pools_and_heads(data, pool, head):
    learn = learner(data, 'resnet18', (64,96), pool, head)
    x = learn.dls.valid.one_batch()[0]
    torch.testing.assert_close(cam(learn, x), slow(learn.model, x.as_subclass(torch.Tensor), 'gradcam', torch.float32), atol=1e-3, rtol=0)
    assert cam(learn, x, 'cam').shape==(len(x),64,96)

@pytest.mark.parametrize('arch', ['resnet18','vit_tiny_patch16_224'])
def test_what_all_classes_share_does_not_show(data, arch):
    "A softmax does not see what is added to every logit, and training with Adam does add it: so maps must not either"
    learn = learner(data, arch, (64,96))
    x,methods = learn.dls.valid.one_batch()[0][:2],['gradcam','cam','gradcampp','hirescam','layercam'] + ['gradrollout']*('vit' in arch)
    before,p = [cam(learn, x, m) for m in methods],learn.model.eval()(x).softmax(1)
    learn.model.head.fc.weight.data += .2*torch.randn(1, learn.model.head.fc.in_features)
    torch.testing.assert_close(learn.model(x).softmax(1), p)
    for m,b in zip(methods, before): torch.testing.assert_close(cam(learn, x, m), b, atol=5e-3, rtol=0, msg=m)

def tokens_of(h, w): return lambda o: o[:,1:].transpose(1, 2).unflatten(2, (h, w))

@pytest.mark.parametrize('arch,layer,reshape', [('resnet18', lambda m: m.layer4[-1], None), ('vgg16', lambda m: m.features[-1], None),
    ('vit_tiny_patch16_224', lambda m: m.norm, tokens_of(4, 6))], ids=['resnet18','vgg16','vit_tiny'])
def test_against_pytorch_grad_cam(data, arch, layer, reshape):
    from pytorch_grad_cam import GradCAM
    learn = learner(data, arch, (64,96))
    x = learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)
    model = learn.model.eval()
    with torch.no_grad(): likely = model(x).topk(2).indices.T.tolist()
    ours = [(t, cam(learn, x, target=t)) for t in likely]
    with GradCAM(model=model, target_layers=[layer(model.body.model)], reshape_transform=reshape) as theirs:
        for t,got in ours:
            ref = torch.tensor(theirs(input_tensor=x, targets=[lambda o, c=c: o[c]-o.mean() for c in t]))
            assert ref.amax((1,2)).mean()>.4 and (got-ref).abs().max()<1e-3

@pytest.mark.parametrize('method', ['gradcampp','hirescam','layercam']) # their Score-CAM enlarges masks with aligned corners
@pytest.mark.parametrize('arch,stage,layer,reshape', [('resnet18', -2, lambda m: m.layer3[-1], None), ('vit_tiny_patch16_224', None, lambda m: m.norm, tokens_of(4, 6)),
    ('swin_tiny_patch4_window7_224', None, lambda m: m.norm, lambda o: o.permute(0, 3, 1, 2))], ids=['resnet18','vit_tiny','swin_tiny'])
def test_other_methods_against_pytorch_grad_cam(data, arch, stage, layer, reshape, method):
    import pytorch_grad_cam as theirs
    cls = dict(gradcampp=theirs.GradCAMPlusPlus, hirescam=theirs.HiResCAM, layercam=theirs.LayerCAM)[method]
    learn = learner(data, arch, (64,96) if 'swin' not in arch else (64,128))
    learn.model.head.fc.weight.data.mul_(1000) # their Grad-CAM++ adds 1e-6 to squares of gradients
    x = learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)[:2]
    model = learn.model.eval()
    with torch.no_grad(): best,second = model(x).topk(2).indices.T.tolist()
    for target,asked in [(best, [lambda o, c=c: o[c]-o.mean() for c in best]),
        ([*zip(best, second)], [lambda o, c=c, d=d: o[c]-o[d] for c,d in zip(best, second)])]:
        got = cam(learn, x, method, target, stage)
        with cls(model=model, target_layers=[layer(model.body.model)], reshape_transform=reshape) as c: ref = torch.tensor(c(input_tensor=x, targets=asked))
        assert ref.amax((1,2)).mean()>.4 and (got-ref).abs().max()<1e-3
        torch.testing.assert_close(cam(learn, x, cls, target, stage, 'mean'), ref, atol=1e-3, rtol=0) # handed in

def test_any_class_of_pytorch_grad_cam(data):
    "On a frozen learner, whose maps they could not follow by themselves"
    import pytorch_grad_cam as theirs
    learn = learner(data, 'resnet18', (64,96))
    learn.model.requires_grad_(False)
    x = learn.dls.valid.one_batch()[0][:2]
    before = state(learn)
    for cls in (theirs.GradCAM, theirs.EigenGradCAM, theirs.XGradCAM, theirs.GradCAMElementWise, theirs.KPCA_CAM, theirs.AblationCAM, theirs.FinerCAM,
        theirs.ShapleyCAM, theirs.RefineCAM):
        got = cam(learn, x, cls)
        assert got.shape==(2,64,96) and got.isfinite().all() and 0<=got.min() and got.max()<=1, cls
    same(before, state(learn))

@pytest.mark.parametrize('arch,layer,reshape', [('resnet18', lambda m: m.layer4[-1], None), ('vit_tiny_patch16_224', lambda m: m.norm, tokens_of(4, 4))], ids=['resnet18','vit_tiny'])
def test_a_class_of_pytorch_grad_cam_gives_its_own_map(data, arch, layer, reshape):
    "The library's own target unless another is asked for; gradients and what learns are as before"
    import pytorch_grad_cam as theirs
    learn = learner(data, arch, (64,64))
    learn.model.head.fc.weight.data.mul_(30)
    for p in list(learn.model.head.parameters()): p.grad = torch.ones_like(p)
    x,model,before = learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)[:2],copy.deepcopy(learn.model).eval(),state(learn)
    for cls in [theirs.GradCAM, theirs.GradCAMPlusPlus, theirs.LayerCAM, theirs.EigenCAM, theirs.HiResCAM,
        theirs.FinerCAM] + [theirs.ScoreCAM if 'vit' in arch else theirs.FullGrad]:
        for target in (None, 1):
            got = cam(learn, x, cls, target)
            with cls(model=model, target_layers=[layer(model.body.model)], reshape_transform=reshape) as c:
                if cls is theirs.FinerCAM: ref = c(input_tensor=x, targets=None, target_idx=target)
                else: ref = c(input_tensor=x, targets=None if target is None else [theirs.utils.model_targets.ClassifierOutputTarget(target)]*2)
            torch.testing.assert_close(got, torch.tensor(ref), atol=1e-4, rtol=0, msg=cls.__name__)
    same(before, state(learn))
    for mine,cls in (('gradcam',theirs.GradCAM), ('hirescam',theirs.HiResCAM), ('layercam',theirs.LayerCAM)):
        torch.testing.assert_close(cam(learn, x, mine, 1, against=None), cam(learn, x, cls, 1), atol=1e-3, rtol=0)
        torch.testing.assert_close(cam(learn, x, mine, 1), cam(learn, x, cls, 1, against='mean'), atol=1e-3, rtol=0)
    assert (cam(learn, x, 'gradcam', 1, against=None)-cam(learn, x, 'gradcam', 1)).abs().max()>.05 # another question
    for cls in (theirs.GuidedBackpropReLUModel, theirs.AblationLayer, torch.nn.Linear): # which ask for other things
        with pytest.raises(FineGrainedError, match=cls.__name__): cam(learn, x, cls)
    same(before, state(learn))

def test_score_cam_against_pytorch_grad_cam(data, monkeypatch):
    "Masked to zero as the network sees it, which is the mean colour; theirs enlarges with aligned corners, the paper's code does not"
    from pytorch_grad_cam import ScoreCAM
    monkeypatch.setattr(torch.nn, 'UpsamplingBilinear2d', lambda size: torch.nn.Upsample(size=size, mode='bilinear'))
    learn = learner(data, 'resnet18', (64,96))
    learn.model.head.fc.weight.data.mul_(30)
    x,model = learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)[:2],copy.deepcopy(learn.model).eval()
    seen,model.norm = model.norm(x),torch.nn.Identity() # the usual way: pictures come normalised
    with ScoreCAM(model=model, target_layers=[model.body.model.layer1[0].conv1]) as c:
        c.batch_size = 64
        ref = torch.tensor(c(input_tensor=seen, targets=[lambda o: o[1]]*2))
    got = cam(learn, x, 'scorecam', 1, 'layer1.0.conv1', None)
    assert ref.amax((1,2)).min()>.9
    small = lambda o: o.unflatten(1, (16,4)).unflatten(3, (24,4))[:,:,1:3,:,1:3].mean((2,4)) # they enlarge with OpenCV
    torch.testing.assert_close(small(got), small(ref), atol=.03, rtol=0)

def test_of_two_classes_the_one_and_the_pair_agree(data):
    two = data.subset(list(data.vocab[:2]))
    for arch in ('resnet18','vit_tiny_patch16_224'):
        learn = learner(two, arch, (64,64))
        learn.model.head.fc.weight.data.mul_(100)
        x,(a,b) = learn.dls.valid.one_batch()[0][:1],learn.dls.vocab
        for m in cam_methods:
            if 'rollout' in m and 'vit' not in arch or m=='scorecam' and 'vit' not in arch: continue
            one,pair,other = cam(learn, x, m, a),cam(learn, x, m, (a,b)),cam(learn, x, m, 0, against=b)
            assert torch.equal(one, pair) and torch.equal(one, other), m

@pytest.mark.parametrize('kw', [dict(head='linear'), dict(head='mlp'), dict(head='levels', parents=[[0,0,0,0,1,1,1,1],[0,0,1,1,2,2,3,3]]), dict(branch=-2), dict(pool='bilinear')], ids=str)
def test_centered_logits(data, kw):
    "The same probabilities, and the score alone is what it was less the mean"
    from fgvc_fast.interpret.methods import center_logits
    torch.manual_seed(0)
    model,x = fine_grained_model('toy_resnet', 8, pretrained=False, img_size=64, **kw).eval(),torch.rand(2, 3, 64, 64)
    for m in model.modules():
        if isinstance(m, torch.nn.Linear): m.weight.data += torch.randn(m.in_features)
    def look(w):
        with eval_fp32(model, x.device): return [cam_methods[m](view_layers(model, x, w)[1][0]) for m in ('gradcam','hirescam')]
    with torch.no_grad(): before = model(x).double()
    own = torch.eye(8)[[1,6]]
    want = look(own-1/8)
    with torch.no_grad(): after = center_logits(model)(x).double()
    torch.testing.assert_close(after, before-before.mean(1, keepdim=True), atol=1e-3, rtol=1e-3)
    for a,b in zip(look(own), want): torch.testing.assert_close(a, b, atol=1e-3*b.max().item(), rtol=0)

@pytest.mark.parametrize('kw,err', [(dict(target=True), 'no class'), (dict(target=float('nan')), 'no class'), (dict(target=8), '0 to 7'), (dict(target='Emu'), "target='Emu'"), (dict(against='Emu'), "against='Emu'"),
    (dict(against=-1), '0 to 7'), (dict(against=('a','b')), 'no class'), (dict(target=0, against=0), 'itself'), (dict(target=(0,1), against=2), 'already'), (dict(method=None), 'unknown'), (dict(method=int), 'no maps'),
    (dict(layer=True), 'stage'), (dict(layer=()), 'at least one'), (dict(items=torch.ones(1, 4, 64, 64)), 'no batch'), (dict(items=torch.rand(0, 3, 64, 64)), 'no batch'),
    (dict(items=torch.full((1,3,64,64), float('nan'))), 'NaN'),
    (dict(items=torch.ones(1, 3, 64, 64).byte()), 'whole numbers'), (dict(items=None), 'no pictures'), (dict(items=3.5), 'no pictures')], ids=lambda o: str(o)[:40])
def test_what_cannot_be_asked(asker, kw, err):
    before = state(asker)
    with pytest.raises(FineGrainedError, match=err): cam(asker, **(dict(items=torch.rand(1, 3, 64, 64)) | kw))
    same(before, state(asker))

@pytest.fixture(scope='module')
def asker(data): return learner(data, 'toy_resnet', (64,64))

def test_against_what_the_model_says_itself(asker):
    x = torch.rand(4, 3, 64, 64)
    with torch.no_grad(): said = asker.model.eval()(x).argmax(1)
    with pytest.raises(FineGrainedError, match='set against itself'): cam(asker, x, against=said[0].item())
    other = next(i for i in range(8) if i not in said)
    assert torch.equal(cam(asker, x, against=other), cam(asker, x, target=[(int(o),other) for o in said]))
    assert torch.equal(cam(asker, x, target=said), cam(asker, x)) and torch.equal(cam(asker, x, target=said.numpy()), cam(asker, x))

def test_little_evidence_is_spread_and_none_is_not(asker):
    "Weights a trillion times smaller make the same map; a map that is the same everywhere is none; half weights are refused, double ones go"
    x,model = torch.rand(2, 3, 64, 64),asker.model
    want = cam(asker, x, 'gradcam', 1)
    asker.model = copy.deepcopy(model)
    asker.model.head.fc.weight.data.mul_(1e-12)
    torch.testing.assert_close(cam(asker, x, 'gradcam', 1), want, atol=1e-3, rtol=0)
    assert cam(asker, x, lambda v: v.maps.new_full((2,7,5), .1)).eq(0).all()
    asker.model = copy.deepcopy(model).double()
    torch.testing.assert_close(cam(asker, x, 'gradcam', 1), want, atol=1e-3, rtol=0)
    for m in (copy.deepcopy(model).half(), copy.deepcopy(model).bfloat16()):
        asker.model = m
        with pytest.raises(FineGrainedError, match='float'): cam(asker, x)
    asker.model = model

def test_caption_says_what_was_asked(asker):
    import matplotlib.pyplot as plt
    from pytorch_grad_cam import GradCAM
    x,(a,b) = torch.rand(2, 3, 64, 64),asker.dls.vocab[:2]
    for kw,says in [({}, 'against the mean of all'), (dict(against=None), 'score alone'), (dict(method=GradCAM), 'GradCAM: the class that is said, its score alone'), (dict(target=a, against=b), f'against {b}'),
        (dict(target=(a,b)), 'not of the other'), (dict(method='eigencam'), 'no class')]:
        asker.show_cam(x, **kw)
        fig = plt.gcf()
        assert says in ' '.join(fig._supxlabel.get_text().split()), kw
        assert (a in ' '.join(fig.axes[0].get_title().split()[1:])) or 'target' not in kw
        plt.close('all')

def test_a_map_that_is_not_the_first_argument():
    "Where a stage's map goes into the next one beside another, it is the map that is looked at"
    model = fine_grained_model('tnt_s_legacy_patch16_224', 4, pretrained=False, depth=4).eval()
    assert any(model.body._ways)
    x = torch.rand(2, 3, *model.body.img_size)
    with torch.no_grad(): stages = model.body.see(model.norm(x), stages=range(len(model.body.stages)))[1]['stages']
    with eval_fp32(model, x.device): views = view_layers(model, x, layers=list(range(len(stages))))[1]
    for v,want in zip(views, stages):
        assert v.maps.shape==want.shape
        torch.testing.assert_close(v.maps.detach(), want)

# Random weights of the smallest model of each family of timm: rolled out, or refused by its name
rolls = 'vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 vit_wee_patch16_reg1_gap_256 vit_relpos_small_patch16_224 eva02_tiny_patch14_224 vit_tiny_r_s16_p8_224 test_vit'.split()
not_rolls = 'cait_xxs24_224 xcit_nano_12_p16_224 volo_d1_224 pvt_v2_b0 twins_svt_small coatnet_pico_rw_224 nest_tiny visformer_tiny fastvit_sa12 swinv2_tiny_window8_256 mobilevit_xxs levit_128s convit_tiny'.split()

@pytest.mark.parametrize('arch', rolls+not_rolls)
def test_roll_out_of_every_family(arch):
    few = {k: dict(depth=2) for k in ('vit_tiny_patch16_224','deit_tiny_distilled_patch16_224','vit_relpos_small_patch16_224','eva02_tiny_patch14_224','vit_tiny_r_s16_p8_224','cait_xxs24_224','xcit_nano_12_p16_224')}
    torch.manual_seed(0)
    model = fine_grained_model(arch, 4, pretrained=False, **few.get(arch, {}))
    x = torch.rand(1, 3, *model.body.img_size)
    before = state(SimpleNamespace(model=model, cbs=[]))
    with eval_fp32(model, x.device): view = view_layers(model, x)[1][0]
    for method in ('rollout','gradrollout'):
        with eval_fp32(model, x.device):
            if arch in not_rolls:
                with pytest.raises(FineGrainedError, match=f"'{arch}'.*method='gradcam'"): cam_methods[method](view)
                continue
            flow,maps = cam_methods[method](view),model.maps(x)
        assert flow.shape[1:]==maps.shape[2:] and flow.isfinite().all() and flow.min()>=0 and (flow.std()>0 or method=='gradrollout') # beside a LayerScale of 1e-5 it is flat to rounding
    same(before, state(SimpleNamespace(model=model, cbs=[])))

def slow_flows(net, x, score):
    "Roll-out and gradient roll-out of a timm ViT, its attention computed by hand"
    t,kept = net._pos_embed(net.patch_embed(x)),[]
    for b in net.blocks:
        n,h = t.shape[1],b.attn.num_heads
        q,k,v = b.attn.qkv(b.norm1(t)).reshape(len(t), n, 3, h, -1).permute(2, 0, 3, 1, 4)
        a = (q@k.mT/q.shape[-1]**.5).softmax(-1)
        a.retain_grad()
        kept.append(a)
        t = t + b.attn.proj((a@v).transpose(1, 2).flatten(2))
        t = t + b.mlp(b.norm2(t))
    score(net.norm(t)).backward()
    eye = torch.eye(n, dtype=x.dtype).expand(len(x), n, n)
    plain,graded = eye,eye
    for a in kept:
        plain = (a.detach().mean(1)+eye)/2 @ plain
        graded = graded + (a*a.grad).clamp(min=0).mean(1).detach() @ graded
    return plain,graded

@pytest.mark.parametrize('pool', ['class_token','avg'])
def test_roll_out(data, pool):
    learn = learner(data, 'vit_tiny_patch16_224', (64,96), pool)
    x = learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)[:2]
    m = copy.deepcopy(learn.model).double().eval().requires_grad_(True)
    def score(t):
        rows = t[:,0] if pool=='class_token' else t[:,1:].mean(1)
        return (m.head(rows)*(torch.eye(8)[[3,5]]-1/8)).sum()
    for method,flow in zip(('rollout','gradrollout'), slow_flows(m.body.model, m.norm(x.double()), score)):
        raw = (flow[:,0] if pool=='class_token' else flow[:,1:].mean(1))[:,1:].unflatten(1, (4,6)) # of what the pool reads
        raw = torch.nn.functional.interpolate(raw[:,None], (64,96), mode='bilinear')[:,0]
        ref = (raw-raw.amin((1,2), keepdim=True))/(raw-raw.amin((1,2), keepdim=True)).amax((1,2), keepdim=True)
        torch.testing.assert_close(cam(learn, x, method, [3,5]).double(), ref, atol=1e-3, rtol=0)

def test_compiled(data):
    "What compiles a model is not asked: hooks would not be seen, and compiling takes longer than looking"
    learn = learner(data, 'resnet18', (64,64))
    x = learn.dls.valid.one_batch()[0]
    got = cam(learn, x, layer=-2)
    def fail(*_): raise AssertionError('compiled')
    learn.model = torch.compile(learn.model, backend=fail)
    assert torch.equal(cam(learn, x, layer=-2), got)
    learn.model._orig_mod.body.compile(backend=fail)
    assert torch.equal(cam(learn, x, layer=-2), got)

def test_several_layers_and_a_batch_made_in_inference_mode(data):
    learn = learner(data, 'resnet18', (64,64))
    with torch.inference_mode(): x = learn.dls.valid.one_batch()[0].clone()
    stages = ['layer1','layer2.0.conv1',learn.model.body.model.layer3,None]
    many = cam(learn, x, 'layercam', layer=stages)
    assert many.shape==(len(x),4,64,64)
    for i,o in enumerate(stages): torch.testing.assert_close(many[:,i], cam(learn, x, 'layercam', layer=o), atol=1e-4, rtol=0)

def test_fastai_model(data):
    "A body and a head of fastai, in one `nn.Sequential`"
    from fastai.vision.learner import create_body, create_head
    from torchvision.models import resnet18
    dls = data.dls(size=64, bs=4, num_workers=0, device='cpu')
    torch.manual_seed(0)
    model = torch.nn.Sequential(create_body(resnet18(), cut=-2), create_head(512, len(dls.vocab)))
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat())
    before = state(learn)
    x = dls.valid.one_batch()[0].as_subclass(torch.Tensor)
    got = cam(learn, x, target=1)
    same(before, state(learn))
    m = model.eval()[0](x).detach().requires_grad_()
    g, = torch.autograd.grad((model[1](m)[:,1]-model[1](m).mean(1)).sum(), m)
    raw = torch.nn.functional.interpolate(torch.einsum('bc,bchw->bhw', g.mean((2,3)), m).clamp(min=0)[:,None], (64,64), mode='bilinear')[:,0].detach()
    ref = (raw-raw.amin((1,2), keepdim=True))/(raw-raw.amin((1,2), keepdim=True)).amax((1,2), keepdim=True)
    torch.testing.assert_close(got, ref, atol=1e-4, rtol=0)

def test_in_batches_and_of_any_item(data):
    learn = learner(data, 'resnet18', (64,64))
    rows = list(data.items.index)
    assert len(rows)>2*learn.dls.valid.bs
    maps,names = cam(learn, rows, target=[i%8 for i in rows]),learn.dls.vocab
    assert len(maps)==len(rows)
    for i in (0, 5, len(rows)-1): torch.testing.assert_close(cam(learn, data.path(i), target=names[i%8])[0], maps[i], atol=1e-4, rtol=0)
    x = learn.dls.test_dl(rows[:4]).one_batch()[0]
    torch.testing.assert_close(cam(learn, [x[:1],x[1:4]]), cam(learn, x)) # several batches are all looked at

def test_diverged(data):
    learn = learner(data, 'resnet18', (64,64))
    learn.model.head.fc.weight.data.fill_(float('nan'))
    with pytest.raises(ValueError, match='not finite'): cam(learn, data.path(0))

def test_shown_without_a_label(data):
    "A test picture whose label its publisher keeps: said, but neither green nor red"
    import matplotlib.pyplot as plt
    learn = learner(data, 'resnet18', (64,64))
    secret = copy.copy(data)
    secret.items = data.items.assign(label=data.items.label.where(data.items.index!=0))
    learn.dls.data = secret
    learn.show_cam([0, 1])
    said = [ax.title for ax in plt.gcf().axes]
    plt.close('all')
    assert said[0].get_color()=='black' and said[1].get_color()!='black' and 'not' not in said[0].get_text()
