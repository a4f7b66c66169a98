"Weights from files and names: what cannot be had is said by its name, quickly, and with a way out"
import os, pickle, socket, time
from enum import Enum
from pathlib import Path
import pytest, timm, torch, torchvision
from safetensors.torch import save_file
from fgvc_fast.core import FineGrainedError
from fgvc_fast.models.all import Body, fine_grained_model, read_weights

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture(scope='module')
def sd():
    torch.manual_seed(0)
    return {k: v+torch.rand(()) if v.is_floating_point() else v for k,v in timm.create_model('toy_resnet').state_dict().items()}

def body(weights): return Body('toy_resnet', weights=weights)

def same(b, sd): return all(torch.equal(v, sd[k]) for k,v in b.model.state_dict().items())

def test_where_the_file_lies(sd, tmp_path, monkeypatch):
    "From one's home, as text or path, under whatever ending"
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(sd, tmp_path/'x.pth')
    save_file(sd, tmp_path/'y.safetensors')
    save_file(sd, tmp_path/'safe.pth')
    torch.save(sd, tmp_path/'pickled.safetensors')
    torch.save(sd, tmp_path/'old.bin', _use_new_zipfile_serialization=False)
    for o in ('~/x.pth', Path('~/y.safetensors'), tmp_path/'safe.pth', '~/pickled.safetensors', '~/old.bin', sd): assert same(body(o), sd)
    assert same(fine_grained_model('toy_resnet', 3, weights='~/x.pth').body, sd)

class Learnt:
    def __reduce__(self): return os.mkdir, ('never',)

def cut(b): return b[:len(b)//2]

def test_what_is_no_weights(sd, tmp_path, monkeypatch):
    "Each kind of file that people take for weights: one error that names it; no code is run"
    monkeypatch.chdir(tmp_path)
    torch.save(sd, tmp_path/'good.pth')
    save_file(sd, tmp_path/'good.safetensors')
    torch.save(sd, tmp_path/'old.pth', _use_new_zipfile_serialization=False)
    good,safe,old = [(tmp_path/o).read_bytes() for o in ('good.pth','good.safetensors','old.pth')]
    net = torch.nn.Linear(2, 2)
    opt = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward(), opt.step()
    made = dict(learner=dict(model=Learnt()), optimizer=opt.state_dict(), fastai_opt=dict(opt=opt.state_dict()), tensor=torch.zeros(3), lists=[torch.zeros(3)],
        empty={}, numbers={1: torch.zeros(3)}, nested=dict(a=dict(b=torch.zeros(3))), text='x', none=None)
    for k,v in made.items(): torch.save(v, tmp_path/f'{k}.pth')
    raw = {'pickle.pkl': pickle.dumps(Learnt()), 'html.pth': b'<html>404</html>', 'nothing.pth': b'', 'cut.pth': cut(good), 'cut.safetensors': cut(safe), 'cut_old.pth': cut(old), 'zeros.pth': bytes(1000), 'zip.pth': b'PK\x03\x04'+bytes(99),
        'npy.npy': b'\x93NUMPY'+bytes(99), 'hdf.h5': b'\x89HDF\r\n\x1a\n'+bytes(99), 'head.safetensors': safe[:8]+b'{'*90, 'pointer.safetensors': b'version https://git-lfs.github.com/spec/v1\n'}
    for k,b in raw.items(): (tmp_path/k).write_bytes(b)
    (tmp_path/'folder').mkdir()
    os.mkfifo(tmp_path/'pipe.pth')
    for k in (*[f'{k}.pth' for k in made], *raw, 'folder', 'pipe.pth', 'gone.pth', 'x'*400):
        with pytest.raises(FineGrainedError) as e: body(tmp_path/k)
        assert k in str(e.value)
    assert not (tmp_path/'never').exists()
    with pytest.raises(FineGrainedError, match='would run code'): read_weights(tmp_path/'learner.pth')
    with pytest.raises(FineGrainedError, match='is a folder: give the weights file in it'): read_weights('folder')
    with pytest.raises(FineGrainedError, match='it holds state, param_groups'): read_weights('optimizer.pth')
    with pytest.raises(FineGrainedError, match='neither a safetensors file nor one that torch'): read_weights('html.pth')

class Not(Enum): A = 1

@pytest.mark.parametrize('weights', [5, 0, True, False, 2.5, [], ['a.pth'], (), {}, dict(a=1), {1: torch.zeros(1)}, torch.zeros(3), object(), Not.A, b'x.pth'], ids=lambda o: f'{type(o).__name__}')
def test_weights_that_are_none(weights):
    "Nothing else is taken for `pretrained=True`"
    with pytest.raises(FineGrainedError, match='weights='): Body('toy_resnet', weights=weights)

def test_of_another_network(sd, tmp_path):
    "Names the file and the first that do not fit; the tensors given stay as they were"
    save_file({k: v for k,v in timm.create_model('resnet18').state_dict().items()}, tmp_path/'r18.safetensors')
    with pytest.raises(FineGrainedError, match=r"r18.safetensors' does not fit the model: .*missing \(conv1.0.weight.*Is it the same architecture"): body(tmp_path/'r18.safetensors')
    before = {k: v.clone() for k,v in sd.items()}
    for other in ({**sd, 'layer1.0.conv1.weight': torch.zeros(3)}, {k: v for k,v in sd.items() if k!='conv1.0.weight'}, sd | {'layer9.weight': torch.zeros(1)}):
        with pytest.raises(FineGrainedError, match='the tensors given.* does not fit'): body(other)
    assert all(torch.equal(sd[k], before[k]) for k in sd)
    with pytest.raises(FineGrainedError): Body(torchvision.models.resnet18, weights=torchvision.models.ResNet50_Weights.DEFAULT)
    for bad in ('yes', 1, 0, None, 2.):
        with pytest.raises(FineGrainedError, match='pretrained='): Body('toy_resnet', pretrained=bad)

@pytest.mark.parametrize('name,kwargs', [('hf-hub:somebody/something', {}), ('hf-hub:somebody/something', dict(pretrained=False)), ('hf-hub:x', {}), ('resnet18.a1_in1k', {})], ids=str)
def test_hub_without_a_network(name, kwargs, tmp_path, monkeypatch):
    "Nobody is asked a second time, nobody waits, and a way out is said"
    import httpx
    asked,slept = [],[]
    def nowhere(*args, **kw):
        asked.append(args)
        raise OSError('Name or service not known')
    monkeypatch.setattr(socket, 'getaddrinfo', nowhere)
    monkeypatch.setattr(time, 'sleep', slept.append)
    monkeypatch.setattr(httpx.HTTPTransport, 'handle_request', nowhere)
    for k in ('http_proxy','https_proxy','all_proxy'):
        for o in (k, k.upper()): monkeypatch.delenv(o, raising=False)
    with pytest.raises(FineGrainedError, match="connect to the internet once.*weights='file.safetensors'.*pretrained=False") as e: Body(name, cache_dir=tmp_path, **kwargs)
    assert name in str(e.value) and len(asked)==1 and not slept
