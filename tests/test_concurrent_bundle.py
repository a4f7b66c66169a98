"Bundles that are written, read, killed and forged at the same time: a reader gets one of them whole, or one clear error"
import copy, hashlib, json, os, signal, stat, sys, tempfile
from pathlib import Path
import numpy as np, pytest, torch
from safetensors.torch import load_file, save
from fgvc_fast import bundle as B
from fgvc_fast.bundle import load_bundle, write_bundle
from fgvc_fast.core import FineGrainedError
from fgvc_fast.models.all import fine_grained_model

pytestmark = [pytest.mark.usefixtures('one_thread'), pytest.mark.skipif(not hasattr(os, 'fork'), reason='kills children that are forked')]
names = 'config.json','README.md','model.safetensors'

@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return fine_grained_model('toy_resnet', 3, img_size=32, pretrained=False).eval()

def bias(net): return [p for k,p in net.head.named_parameters() if k.endswith('bias')][-1]

def version(net, v):
    "A model and labels that both say `v`"
    res = copy.deepcopy(net)
    with torch.no_grad(): bias(res).fill_(v)
    return res,[f'{v} {o}' for o in 'abc']

def said(bundle):
    "The version that the weights of `bundle` are of, once it is sure that its labels are of the same"
    v = {int(o) for o in bias(bundle.model)}
    assert {int(o.split()[0]) for o in bundle.labels}==v and len(v)==1
    return v.pop()

def put(net, folder, v): write_bundle(folder, *version(net, v))

def child(f):
    "The number of a forked process that does `f`, and what it ended with: 0, or 1 for an error"
    pid = os.fork()
    if pid: return pid
    try:
        f()
        os._exit(0)
    except BaseException: os._exit(1)

@pytest.fixture
def no_exchange(request, monkeypatch):
    "A system that cannot exchange folders, if asked for"
    if request.param=='two renames': monkeypatch.setattr(B, '_exchange', lambda a, b: False)
    elif not (sys.platform in ('linux','darwin') and can_exchange()): pytest.skip('this file system cannot exchange folders')
    return request.param

def can_exchange():
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/'a').mkdir(), (Path(d)/'b').mkdir(), (Path(d)/'a'/'x').touch()
        return B._exchange(Path(d)/'a', Path(d)/'b') and (Path(d)/'b'/'x').exists()

both = pytest.mark.parametrize('no_exchange', ['exchange','two renames'], indirect=True)

@both
def test_readers_and_three_savers(net, tmp_path, no_exchange):
    "Nobody fails; who loads meanwhile sees one of the bundles, labels and weights of the same"
    folder = tmp_path/'b'
    put(net, folder, 0)
    def saver(v): return lambda: [put(net, folder, v) for _ in range(3)]
    pids,seen = [child(saver(v)) for v in (1, 2, 3)],[]
    left = set(pids)
    while left or len(seen)<20:
        seen.append(said(load_bundle(folder, 'cpu')))
        for pid in list(left):
            if (done := os.waitpid(pid, os.WNOHANG))[0]:
                left.remove(pid)
                assert done[1]==0
    assert len(set(seen))>1 and seen[-1]>0
    assert [o.name for o in tmp_path.iterdir() if not o.name.endswith('.lock')]==['b']

def killed_at(net, folder, v, n):
    "Save in a child that kills itself before the `n`th thing it does to the files here; was it killed?"
    def go():
        left,here = [n],str(folder.parent)
        def hook(ev, args):
            if not ev.startswith(('os.','open','shutil.','ctypes.call','fcntl.')) or not any(here in os.fsdecode(o) for o in args if isinstance(o, (str,bytes,Path))): return
            if ev=='open' and not (args[2] & (os.O_WRONLY|os.O_RDWR)): return
            left[0] -= 1
            if left[0]==0: os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        swap = B._exchange
        def exchange(a, b): # no audit event tells of it
            hook('os.exchange', (str(a),))
            res = swap(a, b)
            hook('os.exchange', (str(a),))
            return res
        B._exchange = exchange
        put(net, folder, v)
    status = os.waitpid(child(go), 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status)==0
    return os.WIFSIGNALED(status)

@both
def test_killed_at_every_step(net, tmp_path, no_exchange):
    "Old or new, never neither and never a mix; the next save tidies up"
    folder,n,seen = tmp_path/'b',0,[]
    put(net, folder, 1)
    while True:
        n += 1
        if not killed_at(net, folder, 2, n): break
        seen.append(said(load_bundle(folder, 'cpu')))
        if seen[-1]==2 or n%4==0:
            put(net, folder, 1)
            assert sorted(o.name for o in tmp_path.iterdir() if not o.name.endswith('.lock'))==['b'] and said(load_bundle(folder, 'cpu'))==1
    assert n>8 and set(seen)=={1,2}, seen

def test_what_a_killed_save_left(net, tmp_path):
    "Swept by the next, if nobody else's: other names, and files of the user's, stay"
    folder = tmp_path/'b'
    left = [tmp_path/f'.b.{o}' for o in ('0123abcd.new','0123abcd.old','ffffffff.new')]
    for o in left: put(net, o.with_name('x'), 5), (tmp_path/'x').rename(o)
    for o in ('.bb.0123abcd.new','.b.mine.new','.b.0123abcd.keep'): (tmp_path/o).mkdir()
    (left[2]/'mine.txt').write_text('mine')
    assert said(load_bundle(folder, 'cpu'))==5 # what was moved aside is found
    put(net, folder, 1)
    assert not left[0].exists() and not left[1].exists() and (left[2]/'mine.txt').read_text()=='mine'
    assert all((tmp_path/o).is_dir() for o in ('.bb.0123abcd.new','.b.mine.new','.b.0123abcd.keep')) and said(load_bundle(folder, 'cpu'))==1

def test_file_that_comes_while_saving(net, tmp_path):
    "Somebody puts a photograph into the folder before the exchange: refused, both stay"
    folder = tmp_path/'b'
    put(net, folder, 1)
    with pytest.raises(FineGrainedError, match='photo.jpg with it'): write_bundle(folder, *version(net, 2), verify=lambda _: (folder/'photo.jpg').write_text('mine'))
    assert (folder/'photo.jpg').read_text()=='mine' and said(load_bundle(folder, 'cpu'))==1

def test_modes_and_disk(net, tmp_path, monkeypatch):
    "All files have the modes that the umask gives; a full disk is said, and changes nothing"
    old = os.umask(0o027)
    try: put(net, tmp_path/'b', 1)
    finally: os.umask(old)
    assert {stat.S_IMODE((tmp_path/'b'/o).stat().st_mode) for o in names}=={0o640}
    real = Path.write_bytes
    def full(self, b):
        if self.name=='model.safetensors': raise OSError(28, 'No space left on device')
        return real(self, b)
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(FineGrainedError, match='cannot be written .No space left on device.: make room'): put(net, tmp_path/'b', 2)
    assert said(load_bundle(tmp_path/'b', 'cpu'))==1 and [o.name for o in tmp_path.iterdir() if not o.name.endswith('.lock')]==['b']
    (tmp_path/'file').write_text('mine')
    with pytest.raises(FineGrainedError, match='cannot be written .*give another folder'): put(net, tmp_path/'file'/'b', 2)

def test_labels_that_are_no_text(net, tmp_path):
    "A name from an old file system comes back as it was; all files can be read as UTF-8"
    labels = ['M\udcfcve', 'gull', 'tern']
    write_bundle(tmp_path/'b', net, labels, levels=dict(family=dict.fromkeys(labels, 'M\udcfc')))
    bundle = load_bundle(tmp_path/'b', 'cpu')
    assert bundle.labels==labels and bundle.levels['family']['gull']=='M\udcfc'
    for o in names[:2]: assert '\\udcfc' in (tmp_path/'b'/o).read_text(encoding='utf-8')

# Forged bundles

@pytest.fixture(scope='module')
def saved(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp('forged')/'b'
    write_bundle(folder, net, list('abc'), levels=dict(family=dict(a='x', b='x', c='y')))
    return {o: (folder/o).read_bytes() for o in names}

def sealed(cfg): return cfg | dict(sha256=hashlib.sha256(json.dumps({k: v for k,v in cfg.items() if k!='sha256'}, sort_keys=True).encode()).hexdigest())

def paths(o, at=()):
    "All places in the JSON value `o`"
    yield at
    for k,v in o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else (): yield from paths(v, (*at, k))

def changed(cfg, at, v, gone=False):
    "`cfg` with `v` at a place, or without it"
    res = o = copy.deepcopy(cfg)
    for k in at[:-1]: o = o[k]
    if gone: del o[at[-1]]
    else: o[at[-1]] = v
    return res

strange = None,True,False,0,-1,1,3,2.5,1e30,10**40,'','x','../x','\ud800',[],[0],['a'],[[]],{},{'a': 1},{'': None},[1]*2000,'y'*5000

def forgeries(files, every):
    "(what was done, {name: bytes}) of wrong bundles: every `every`th of each kind"
    cfg = json.loads(files['config.json'])
    def text(c): return dict(files, **{'config.json': json.dumps(c).encode()})
    rng,n = np.random.default_rng(0),0
    def kind(gen):
        for i,o in enumerate(gen):
            if i%every==0: yield o
    def values():
        for at in paths({k: v for k,v in cfg.items() if k!='sha256'}):
            for v in strange if at else (): yield f'{at} = {v!r}'[:80],text(sealed(changed(cfg, at, v)))
            if at: yield f'{at} gone',text(sealed(changed(cfg, at, None, True)))
    def bytes_():
        for name in names[::2]:
            for i in range(40):
                b = bytearray(files[name])
                at = int(rng.integers(len(b)))
                if i%4==0: b[at] ^= 1<<int(rng.integers(8))
                elif i%4==1: del b[at:]
                elif i%4==2: b[at:at] = rng.bytes(9)
                else: b = bytearray(rng.bytes(200))
                yield f'{name} byte {at}, {i%4}',dict(files, **{name: bytes(b)})
    def resealed():
        "The weights are others, and the sums are right"
        w,more = files['model.safetensors'],load_weights(files)
        n = int.from_bytes(w[:8], 'little')
        heads = [bytes(8), b'\xff'*8+w[8:], (n+1).to_bytes(8, 'little')+w[8:], w[:8]+b'{'*n+w[8+n:], w[:8]+b'[' *n+w[8+n:], b'', b'x', w[:100], w[:-4], w+b'abcd',
            w[:8]+w[8:8+n].replace(b'F32', b'I32')+w[8+n:],
            w[:8]+w[8:8+n].replace(b'"shape"', b'"shapf"')+w[8+n:], w[:8]+w[8:8+n].replace(b'F32', b'Q99')+w[8+n:], w[:8]+w[8:8+n].replace(b'data_offsets', b'data_offsetx')+w[8+n:]]
        first = next(k for k,v in more.items() if v.ndim)
        heads += [save(o) for o in ({}, {k: v for k,v in more.items() if k!=first}, more | dict(extra=torch.zeros(3)), more | {first: more[first][:1].clone()},
            more | {first: more[first].double()}, more | {first: more[first].half()}, dict(x=torch.zeros(2)))]
        for i,b in enumerate(heads): yield f'weights {i}',dict(text(sealed(cfg | dict(files={'model.safetensors': dict(bytes=len(b), sha256=hashlib.sha256(b).hexdigest())}))), **{'model.safetensors': b})
    def texts():
        raw = files['config.json'].decode()
        for i,t in enumerate((raw.replace('"format": 1', '"format": 1, "format": 1'), raw.replace('0.0', 'NaN', 1), raw.replace('0.5', 'Infinity'), '['*100_000, '{"a":'*100_000, 'null', '[]', '5', '"x"', raw+'}', '\ufeff'+raw, raw.replace('"format": 1', '"format": 1'+'0'*6000), '')):
            yield f'text {i}',dict(files, **{'config.json': t.encode()})
        for b in (raw.encode('utf-16'), b'\xff'+raw.encode(), raw.encode()[:-1]+b'\x00'): yield 'bytes',dict(files, **{'config.json': b})
    def models():
        huge = [('img_size', 10**6), ('img_size', [3000,3000]), ('drop', 1e300), ('kwargs', dict(layers=[10**7]*4)), ('kwargs', dict(channels=[10**6]*4)), ('kwargs', dict(layers=[900]*4)),
            ('kwargs', dict(num_classes=10**12)), ('kwargs', dict(in_chans=10**9)),
            ('kwargs', dict(stem_width=10**9)), ('kwargs', dict(block='os.system')), ('kwargs', dict(norm_layer=5)), ('kwargs', dict(act_layer='eval')), ('kwargs', dict(img_size='x')),
            ('kwargs', dict(pretrained_cfg=dict(file='/etc/passwd'))),
            ('kwargs', dict(cache_dir='/')), ('kwargs', dict(drop_rate='x')), ('kwargs', dict(output_stride=3)), ('kwargs', dict(cardinality=-7)), ('kwargs', dict(self=1)), ('kwargs', dict(arch='resnet18')), ('kwargs', {'': 1}),
            ('options', dict(pool=dict(nf=9))),
            ('options', dict(pool=dict(flatten=10**9))), ('options', dict(head=dict(n_out=10**9))), ('options', dict(head=dict(drop='x'))), ('blocks', [['layer4','os']]), ('blocks', [[99,'se']]), ('branch', 99), ('zoom', True), ('pool', 'bilinear'),
            ('pool', 'parts'), ('head', 'levels'),
            ('head', 'cosine'), ('arch', 'resnet18'), ('arch', 'vit_giant_patch14_224'), ('arch', 'vit_gigantic_patch14_224'), ('arch', ''), ('arch', '.'), ('arch', 'toy_resnet.x'), ('arch', 'local-dir:/tmp'), ('arch', ['toy_resnet']*2), ('library', 'torchvision')]
        for k,v in huge: yield f'{k}={v}'[:80],text(sealed(changed(cfg, ('model', k), v)))
        for n in (10**6, 10**9): yield 'many labels',text(sealed(cfg | dict(labels=[f'{i}' for i in range(min(n, 200_000))])))
        for s in ([1,1],[4096,4096],[10**9,1]): yield f'size {s}',text(sealed(changed(cfg, ('transforms','size'), s)))
    yield from (o for g in (values, bytes_, resealed, texts, models) for o in kind(g()))

def load_weights(files):
    with tempfile.NamedTemporaryFile(suffix='.safetensors') as f:
        f.write(files['model.safetensors'])
        f.flush()
        return {k: v.clone() for k,v in load_file(f.name).items()}

every = int(os.environ.get('FGVC_FORGERIES', 8)) # 1: all of them, some minutes

def test_forged_bundles(saved, tmp_path):
    "Each is refused by one error that names the bundle, or gives a bundle that answers; none takes long or much"
    folder,n,refused = tmp_path/'forged',0,0
    for what,files in forgeries(saved, every):
        folder.mkdir(exist_ok=True)
        for k,b in files.items(): (folder/k).write_bytes(b)
        n += 1
        try: bundle = load_bundle(folder, 'cpu')
        except FineGrainedError as e:
            refused += 1
            assert str(folder) in str(e), what
            str(e).encode('utf-8')
        except BaseException as e: raise AssertionError(f'{what}: {type(e).__name__}: {e}') from e
        else:
            assert 'gone' in what or '=' in what or 'README' in what or 'size' in what, what
            assert len(bundle.predict(np.zeros((9,9,3), np.uint8)))==1 or bundle.transforms['size'][0]>64, what
    print(n, refused)
    assert n>=60 and refused>=.8*n

def test_places_instead_of_files(saved, tmp_path):
    "Folders, pipes, links and devices where files should be"
    def fresh(i):
        b = tmp_path/f'{i}'
        b.mkdir()
        for k,v in saved.items(): (b/k).write_bytes(v)
        return b
    makers = dict(folder=Path.mkdir, pipe=lambda o: os.mkfifo(o), outside=lambda o: o.symlink_to('/etc/hostname'), device=lambda o: o.symlink_to('/dev/zero'),
        nowhere=lambda o: o.symlink_to('gone'), itself=lambda o: o.symlink_to(o.name), up=lambda o: o.symlink_to('..'))
    for i,(name,make) in enumerate((a, b) for a in names[::2] for b in makers.values()):
        b = fresh(i)
        (b/name).unlink()
        make(b/name)
        with pytest.raises(FineGrainedError) as e: load_bundle(b)
        assert str(b) in str(e.value)
    b = fresh('long')
    for bad in (b/'config.json', b/'gone', b/('x'*400), tmp_path/'a\0b'):
        with pytest.raises(FineGrainedError): load_bundle(bad)

def test_hostile_size_takes_no_memory(saved, tmp_path):
    "A configuration that asks for billions of numbers is answered before one of them is made: beside it, an honest load"
    cfg,made = json.loads(saved['config.json']),[]
    def asked(kwargs, arch='toy_resnet'):
        b = tmp_path/f'{len(made)}'
        b.mkdir()
        for k,v in saved.items(): (b/k).write_bytes(v)
        (b/'config.json').write_text(json.dumps(sealed(changed(changed(cfg, ('model','kwargs'), kwargs), ('model','arch'), arch))))
        sizes = []
        class Watch(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, f, types, args=(), kwargs=None):
                res = f(*args, **kwargs or {})
                if torch.is_tensor(res) and res.device.type!='meta': sizes.append(res.numel())
                return res
        made.append(b)
        with Watch():
            try: load_bundle(b, 'cpu')
            except FineGrainedError as e: return max(sizes, default=0),str(e)
        return max(sizes),''
    most,err = asked({})
    assert not err
    for kwargs,arch in ((dict(channels=[4096]*4), 'toy_resnet'), ({}, 'vit_large_patch16_224'), ({}, 'resnet152'), (dict(img_size=2048), 'vit_tiny_patch16_224')):
        n,err = asked(kwargs, arch)
        assert 'does not fit' in err and n<=most
