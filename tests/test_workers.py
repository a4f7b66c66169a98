"Workers that are not forked (Windows, macOS, Python 3.14): every kind of loader gives them what it gives itself"
import multiprocessing, os, subprocess, sys
import pytest

script = '''
import os, sys, torch, warnings
warnings.simplefilter('ignore')

def one_of_each(cache):
    "Loaders by name, all seeded"
    import numpy as np
    from fastai.vision.all import Resize, aug_transforms
    from fgvc_fast.datasets.all import toy_birds
    from torchvision.transforms import v2
    data = toy_birds(families=2, species=2, per_class=8, size=64)
    def dls(**kwargs): return data.dls(**{**dict(size=32, bs=6, num_workers=0, seed=3, cache=False, device='cpu'), **kwargs})
    made = dict(plain=dls(), unseeded=dls(seed=None, aug='none'), cached=dls(cache=cache), parts=dls(parts=True), box=dls(parts='box', crop='box'), balanced=dls(balanced=True), several=dls(per_class=3), more=dls(aug=['standard','pose',v2.RandomGrayscale(.5)]),
        families=dls(label_level='family'), fastai=dls(item_tfms=Resize(32), batch_tfms=aug_transforms()))
    res = {k: v.train for k,v in made.items() if k!='unseeded'}
    res['valid'],res['cached valid'],res['none to seed'] = made['plain'].valid,made['cached'].valid,made['unseeded'].valid
    paths,x = [data.path(i) for i in range(7)],np.asarray(data.picture(0))
    res['test rows'],res['test paths'] = made['parts'].test_dl(range(9), with_labels=True),made['plain'].test_dl([*paths, x, torch.from_numpy(x.copy()).permute(2,0,1)])
    weighted = data.block(32, cache=False, device='cpu').weighted_dataloaders(data, np.ones(len(data)), bs=6, num_workers=0, device='cpu')
    res['weighted'],res['share'] = weighted.valid,dls().train.shard(0, 2)
    return res

def batch(dl):
    "Its first batch, as plain tensors"
    for b in dl: break
    if not hasattr(dl, 'seed'): dl.__dict__.pop('it', None) # fastai's own loader would send it
    return [o.as_subclass(torch.Tensor).nan_to_num(-1) for o in b]

if __name__=='__main__':
    torch.set_num_threads(1)
    from copy import deepcopy
    res = one_of_each(sys.argv[2])
    state = {k: deepcopy(o.rng) for k,o in res.items()}
    want = {k: batch(o) for k,o in res.items()}
    torch.multiprocessing.set_start_method(sys.argv[1], force=True)
    if sys.argv[1]=='forkserver': torch.multiprocessing.set_forkserver_preload(['fastai.vision.all','fgvc_fast.datasets.all']) # once for all
    names = list(res) if sys.argv[1]=='forkserver' else ['more']
    if sys.argv[1]=='spawn':
        import pickle
        for k,o in res.items(): assert len(pickle.dumps(o))<1e6, k
    for k in names:
        dl = res[k]
        dl.rng,dl.fake_l.num_workers = state[k],1
        got = batch(dl)
        assert len(got)==len(want[k]) and all(torch.equal(a, b) for a,b in zip(got, want[k])), k
        print('same', k, flush=True)
'''

@pytest.mark.parametrize('how,n', [('forkserver',16), ('spawn',1)])
def test_one_batch_of_every_kind(how, n, tmp_path):
    "Under forkserver all of them, each in a worker of its own; spawn, where a worker takes seconds to start, sends all and starts one"
    if how not in multiprocessing.get_all_start_methods(): pytest.skip(f'no {how} here')
    (tmp_path/'loaders.py').write_text(script, encoding='utf-8')
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(sys.path)}
    res = subprocess.run([sys.executable, tmp_path/'loaders.py', how, tmp_path/'cache'], capture_output=True, text=True, env=env, timeout=1800)
    assert res.returncode==0, res.stderr[-3000:]
    assert res.stdout.count('same')==n, res.stdout
