"""Start-up of a bundle against `import timm`, and a folder of pictures against a hand-written timm loop with the same workers

    python benchmarks/predict.py --pictures 1000 --rounds 3
"""
import argparse, os, subprocess, sys, tempfile, time
import timm, torch
from pathlib import Path
from PIL import Image
from statistics import median
from timm.data import create_transform, resolve_model_data_config
from torch.utils.data import DataLoader, Dataset
from fgvc_fast.bundle import _workers, load_bundle, write_bundle
from fgvc_fast.datasets.toy import toy_birds
from fgvc_fast.models.model import fine_grained_model
from _table import goals, table

arch,size = 'mobilenetv2_100',224

def pictures(folder, n):
    "A folder of `n` pictures: photographs where there are some, else drawn birds"
    cub = Path(os.environ.get('FGVC_SHARED', '../shared'), 'data', 'cub50', 'CUB_200_2011', 'images')
    what = 'photographs of cub50' if cub.is_dir() else 'toy birds'
    found = sorted(cub.rglob('*.jpg')) if cub.is_dir() else sorted(toy_birds(folder/'drawn', per_class=-(-n//16), size=size).root.rglob('*.jpg'))
    step = max(len(found)//n, 1)
    home = folder/'pictures'
    home.mkdir()
    for i,p in enumerate(found[::step][:n]): (home/f'{i:05d}{p.suffix}').symlink_to(p.resolve())
    return home,what

class Files(Dataset):
    "Pictures as timm's own transforms give them"
    def __init__(self, paths, tfm): self.paths,self.tfm = paths,tfm
    def __len__(self): return len(self.paths)
    def __getitem__(self, i): return self.tfm(Image.open(self.paths[i]).convert('RGB'))

def by_hand(folder, bs, workers, device, form, classes=50):
    "A function that predicts all of `folder` as one would write it with timm"
    net = timm.create_model(arch, num_classes=classes).eval().to(device, memory_format=form)
    tfm = create_transform(**resolve_model_data_config(net))
    paths = sorted(folder.iterdir())
    def go():
        dl = DataLoader(Files(paths, tfm), bs, num_workers=workers, pin_memory=device.type=='cuda')
        with torch.inference_mode(): return torch.cat([net(x.to(device, non_blocking=True).contiguous(memory_format=form)).softmax(1) for x in dl]).topk(3)
    return go

def ready(net, x, n, batches=8):
    "Seconds for `n` pictures that lie ready as tensors, from `batches` of them: what the model alone takes"
    def go():
        with torch.inference_mode():
            for _ in range(batches): net(x).cpu()
    return seconds(go)*n/(batches*len(x))

def seconds(go):
    "Wall time of `go`"
    t = time.perf_counter()
    go()
    return time.perf_counter()-t

def fresh(code): return seconds(lambda: subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True))

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--pictures', type=int, default=1000)
    p.add_argument('--bs', type=int, default=32)
    p.add_argument('--workers', type=int, default=None, help='of both; default: what a bundle takes by itself')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--starts', type=int, default=5)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        folder,what = pictures(Path(d), args.pictures)
        n = len(list(folder.iterdir()))
        model = fine_grained_model(arch, 50, pretrained=False, img_size=size)
        where = write_bundle(Path(d)/'bundle', model, [f'label {i}' for i in range(50)])
        codes = 'import timm',f'from fgvc_fast.bundle import load_bundle; load_bundle({str(where)!r})'
        starts = [[fresh(c) for c in codes] for _ in range(args.starts+1)][1:] # the first only warms the disk
        bundle = load_bundle(where)
        workers = _workers(n) if args.workers is None else args.workers
        x = torch.rand(args.bs, 3, size, size).to(bundle.device, memory_format=torch.channels_last)
        hands = [by_hand(folder, args.bs, workers, bundle.device, form) for form in (torch.contiguous_format, torch.channels_last)]
        def ours(): bundle.predict(folder, bs=args.bs, num_workers=workers, progress=False)
        ready(bundle.model, x, n, 2)
        rounds = [[*map(seconds, hands), seconds(ours), ready(bundle.model, x, n)] for _ in range(args.rounds)] # in turn: the machine's speed drifts
    print(f'{n} {what}, {arch} at {size} px, batches of {args.bs}, {workers} workers, {bundle.device}')
    table([dict(what=k, median_s=median(ts), min_s=min(ts), max_s=max(ts)) for k,ts in zip(('import timm','load_bundle'), zip(*starts))])
    table([dict(what=k, median_s=median(ts), pictures_s=n/median(ts)) for k,ts in zip(('timm by hand','... channels-last','bundle.predict','model on ready tensors'), zip(*rounds))])
    start,speed = median(b/a for a,b in starts),median(min(a,b)/c for a,b,c,_ in rounds)
    goals(('a bundle starts in at most 2 × import timm', f'{start:.2f} ×', start<=2), ('predict at least 0.9 × as fast as the faster timm loop', f'{speed:.2f} ×', speed>=.9))

if __name__=='__main__': main()
